"""What stands before the replicas, with replicas that a test makes up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from sie_core.distributed.forwarding import ForwardedCall, ForwardedReply
from sie_core.distributed.front import Front, create_front
from sie_core.local import LocalClient
from sie_core.server.app import create_app
from sie_core.server.failures import Failure, RefusedError
from sie_core.server.keys import make_key
from sie_core.server.record import CallRecord
from sie_core.server.settings import ModelSettings, ServerSettings

BODY = {"query": {"text": "a"}, "items": [{"text": "b"}]}
MODELS = (ModelSettings(name="one"), ModelSettings(name="two"))


def reply(content: Any, status: int = 200, **found: Any) -> ForwardedReply:
    """Make what a replica answers."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    headers = ((b"content-type", b"application/json"),)
    return ForwardedReply(status=status, headers=headers, body=body, record=CallRecord(**found))


class FakeReplicas:
    """Answers as it is told to, and remembers what it was asked."""

    def __init__(self, *views: ForwardedReply) -> None:
        self.asked: list[tuple[ForwardedCall, str | None]] = []
        self.answer: ForwardedReply | Exception = reply({"scores": []})
        self.reloaded: list[ForwardedReply] = []
        self._views = views

    async def ask(self, call: ForwardedCall, model: str | None) -> ForwardedReply:
        """Answer."""
        self.asked.append((call, model))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def ask_all(self, call: ForwardedCall) -> dict[str, ForwardedReply]:
        """Answer for each of them."""
        del call
        return {f"r{place}": view for place, view in enumerate(self._views)}

    async def reload(self, model: str, call: ForwardedCall, seconds: float) -> list[ForwardedReply]:
        """Answer for each that holds the model."""
        del model, call, seconds
        return self.reloaded


def front(replicas: FakeReplicas | None, **settings: Any) -> TestClient:
    """Make a client of a front."""
    made = Front(ServerSettings(**({"models": MODELS} | settings)))
    if replicas is not None:
        made.open(replicas)
    return TestClient(create_front(made))


def test_a_front_has_the_routes_of_one_server() -> None:
    """What one learns, the other must: callers are not to see which it is."""
    settings = ServerSettings(models=MODELS)
    with LocalClient() as client:
        one = create_app(settings, client)
    assert routes_of(create_front(Front(settings))) == routes_of(one)


def routes_of(app: Starlette) -> set[tuple[str, str]]:
    """Return each path with its method."""
    return {
        (route.path, method)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/score/one", BODY, "one"),
        ("/v1/encode/two", BODY, "two"),
        ("/v1/score/none", BODY, None),
        ("/v1/rerank", {"model": "two", "query": "q", "documents": ["d"]}, "two"),
        ("/v2/rerank", {"model": ["two"]}, None),
        ("/v1/embeddings", {"input": "a", "model": "one"}, "one"),
        ("/rerank", {"query": "q", "texts": [], "model": "two"}, "two"),
    ],
)
def test_a_request_is_sent_to_its_model(path: str, body: Any, model: str | None) -> None:
    """By its path, or its body; what is not served goes anywhere, and is refused there."""
    replicas = FakeReplicas()
    assert front(replicas).post(path, json=body).status_code == 200
    ((call, asked),) = replicas.asked
    assert asked == model
    assert msgspec.json.decode(call.body) == body


def test_a_body_that_is_too_large_reaches_no_replica() -> None:
    """Announced or not: it is read no further than the limit."""
    replicas = FakeReplicas()
    client = front(replicas, max_body_bytes=10)
    announced = client.post("/v1/score/one", content=b"x" * 11)
    unannounced = client.post("/v1/score/one", content=iter([b"x" * 6, b"x" * 6]))
    assert [announced.status_code, unannounced.status_code] == [413, 413]
    assert not replicas.asked


def test_rates_and_keys_are_counted_before_any_replica() -> None:
    """By the tokens that replicas report; keys stay here, and the name of the caller goes on."""
    replicas = FakeReplicas()
    replicas.answer = reply({}, model="one", num_items=1, usage={"input_tokens": 60})
    client = front(replicas, rate_limits=("100 tokens/hour",))
    codes = [client.post("/v1/score/one", json=BODY).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    assert len(replicas.asked) == 2


def test_a_key_does_not_leave_the_front(tmp_path: Any) -> None:
    """Replicas are told who calls, and need no file of keys."""
    key, line = make_key("tester", is_admin=True)
    file = tmp_path / "keys"
    file.write_text(f"{line}\n")
    file.chmod(0o600)
    replicas = FakeReplicas()
    client = front(replicas, api_key_file=str(file))
    assert client.post("/v1/score/one", json=BODY).status_code == 401
    headers = {"Authorization": f"Bearer {key}"}
    assert client.post("/v1/score/one", json=BODY, headers=headers).status_code == 200
    ((call, _),) = replicas.asked
    assert (call.caller, call.is_admin) == ("tester", True)
    assert key.encode() not in msgspec.json.encode([it[1].decode() for it in call.headers])


def test_before_there_are_replicas_callers_are_told_to_come_back() -> None:
    """In the code that clients wait at; and it is not ready."""
    client = front(None)
    refused = client.post("/v1/score/one", json=BODY)
    assert refused.status_code == 503
    assert refused.json()["detail"]["code"] == "MODEL_LOADING"
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200
    assert "sie_ready 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/v1/score/one", "/v1/rerank", "/v2/rerank", "/rerank"])
def test_what_replicas_cannot_do_is_told_in_the_shape_of_the_route(path: str) -> None:
    """With the status, the code and when to come back."""
    replicas = FakeReplicas()
    failure = Failure(status=503, code="QUEUE_UNAVAILABLE", message="gone", retry_after_seconds=1.0)
    replicas.answer = RefusedError(failure)
    refused = front(replicas).post(path, json=BODY | {"model": "one"})
    assert (refused.status_code, refused.headers["x-sie-error-code"]) == (503, failure.code)
    assert refused.headers["retry-after"] == "1"
    assert "gone" in refused.text


def test_a_replica_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    """The request's own limit holds, and what was asked is dropped."""
    dropped = threading.Event()

    class SilentReplicas(FakeReplicas):
        async def ask(self, call: ForwardedCall, model: str | None) -> ForwardedReply:
            del call, model
            try:
                await asyncio.Event().wait()
            finally:
                dropped.set()
            raise AssertionError

    refused = front(SilentReplicas(), request_timeout_seconds=0.05).post("/v1/score/one", json=BODY)
    assert (refused.status_code, refused.json()["detail"]["code"]) == (504, "DEADLINE_EXCEEDED")
    assert dropped.wait(5)


def test_a_failure_of_a_replica_is_passed_on_and_counted() -> None:
    """In the metrics by its code, in the status as failed."""
    replicas = FakeReplicas(reply({"models": {}}))
    replicas.answer = reply({"detail": {}}, 404, code="MODEL_NOT_FOUND")
    client = front(replicas)
    assert client.post("/v1/score/one", json=BODY).status_code == 404
    requests = client.get("/v1/status").json()["requests"]
    assert (requests["total"], requests["failed"]) == (1, 1)


def model(name: str, state: str, **more: Any) -> dict[str, Any]:
    """Make what a replica says of a model."""
    described = {"name": name, "state": state, "loaded": state == "loaded", "last_error": None}
    return described | more


def test_models_stand_as_they_do_where_they_stand_best() -> None:
    """Loaded anywhere is loaded; an error counts where none has it."""
    views = (
        {"models": [model("one", "unloaded"), model("two", "failed", last_error="no file")]},
        {"models": [model("one", "loaded"), model("two", "unloaded")]},
    )
    found = front(FakeReplicas(*map(reply, views))).get("/v1/models").json()
    assert found["models"] == found["data"]
    assert {it["name"]: it["state"] for it in found["models"]} == {"one": "loaded", "two": "failed"}
    assert [it["last_error"] for it in found["models"]] == [None, "no file"]


def test_the_status_sums_what_replicas_did() -> None:
    """And takes requests from where they came in."""
    views = (
        {"models": {"one": {"state": "loaded", "tokens": 3}}},
        {"models": {"one": {"state": "unloaded"}}},
        {"models": {"one": {"state": "loading", "tokens": 4}}},
    )
    found = front(FakeReplicas(*map(reply, views))).get("/v1/status").json()
    assert found["models"] == {"one": {"state": "loaded", "tokens": 7}}


def test_metrics_name_the_replica_and_each_family_once() -> None:
    """As Prometheus wants them: one scrape for all."""
    text = b'# HELP sie_workers w\n# TYPE sie_workers gauge\nsie_workers{model="one"} 2.0\n'
    found = front(FakeReplicas(reply(text), reply(text))).get("/metrics").text
    assert 'sie_workers{model="one",replica="r0"} 2.0' in found
    assert 'sie_workers{model="one",replica="r1"} 2.0' in found
    assert found.count("# TYPE sie_workers gauge") == 1


def test_a_reload_reaches_every_replica_that_holds_the_model() -> None:
    """The reply counts all; another source is refused, since later replicas would not know it."""
    replicas = FakeReplicas()
    replicas.reloaded = [reply(model("one", "loaded", replaced=1)) for _ in range(2)]
    client = front(replicas)
    assert client.post("/v1/models/one/reload").json()["replaced"] == 2
    assert not replicas.asked
    refused = client.post("/v1/models/one/reload", json={"source": "elsewhere"})
    assert refused.status_code == 400
    assert "elsewhere" not in refused.text
    replicas.reloaded = []
    replicas.answer = reply({"detail": {}}, 403, code="FORBIDDEN")
    assert client.post("/v1/models/one/reload").status_code == 403


def test_one_that_names_no_model_asks_for_the_first_that_scores() -> None:
    """Found out once."""
    replicas = FakeReplicas()
    outputs: Callable[..., dict[str, Any]] = lambda name, *given: {"name": name, "outputs": given}  # noqa: E731
    replicas.answer = reply({"models": [outputs("one", "dense"), outputs("two", "score")]})
    client = front(replicas)
    for _ in range(2):
        client.post("/rerank", json={"query": "q", "texts": ["d"]})
    assert [asked for _, asked in replicas.asked] == [None, "two", "two"]
