"""One call by the server's rules: options, profiles, adapters, too much work, callers who leave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgpack
import numpy as np
import pytest

from sie_core import SIEClient
from sie_core.errors import InferenceError, InvalidRequestError
from sie_core.local import LocalClient
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings
from sie_core.types import Item

QUERY = Item(text="how many people live in berlin")
ITEMS = [Item(text="berlin population people"), Item(text="a banana"), Item(text="the museum")]
PATIENCE_SECONDS = 30


def test_scores_are_the_engines(served: Server, tiny_bert: Path) -> None:
    """Over msgpack and JSON, to the last digit."""
    expected = LocalClient(mode="exact").score(str(tiny_bert), QUERY, ITEMS)
    for content_format in ("msgpack", "json"):
        with SIEClient(served.url, content_format=content_format) as client:
            result = client.score("test/tiny-bert-ce", QUERY, ITEMS)
        assert result["scores"] == expected["scores"]
        assert result["usage"] == expected["usage"]
        assert result["score_space"] == expected["score_space"]


@pytest.mark.parametrize("has_ids", [True, False])
def test_items_that_lost_their_end_are_named_across_requests(
    served: Server, *, has_ids: bool
) -> None:
    """By the caller's ids, or the ones that the caller sees; 600 items are two requests."""
    texts = ["river " * (500 if i in {0, 511, 512, 599} else 1) for i in range(600)]
    given = [Item(id=f"d{i}", text=text) if has_ids else Item(text=text) for i, text in enumerate(texts)]  # fmt: skip  # noqa: E501
    with SIEClient(served.url) as client:
        result = client.score("test/tiny-bert-ce", QUERY, given)
        none = client.score("test/tiny-bert-ce", QUERY, ITEMS)
    prefix = "d" if has_ids else "item-"
    assert result["truncated"] == [f"{prefix}{i}" for i in (0, 511, 512, 599)]
    assert "truncated" not in none


def test_the_score_space_asked_for_is_given(served: Server) -> None:
    """`score_space` is an option like any other, and the reply confirms it."""
    with SIEClient(served.url) as client:
        options = {"score_space": "probability"}
        result = client.score("test/tiny-bert-ce", QUERY, ITEMS, options=options)
    assert result["score_space"] == "probability"
    assert all(0 < entry["score"] < 1 for entry in result["scores"])


def test_embeddings_are_the_engines(served: Server, tiny_embedder: Path) -> None:
    """Dense vectors of queries and documents, in both number formats."""
    local = LocalClient(mode="exact")
    with SIEClient(served.url) as client:
        for is_query in (True, False):
            for dtype in ("float32", "float16"):
                terms: dict[str, Any] = {"is_query": is_query, "output_dtype": dtype}
                ours = client.encode("test/tiny-embed", ITEMS, **terms)
                expected = local.encode(str(tiny_embedder), ITEMS, **terms)
                for one, other in zip(ours, expected, strict=True):
                    assert one["dense"].dtype == other["dense"].dtype == dtype
                    np.testing.assert_array_equal(one["dense"], other["dense"])


def test_a_profile_brings_its_instruction_and_the_caller_may_give_another(
    served: Server, tiny_bert: Path
) -> None:
    """What the caller says wins over the profile, and the profile over nothing."""
    local = LocalClient(mode="exact")
    with SIEClient(served.url) as client:
        for given, expected in ((None, "rank by topic"), ("other", "other")):
            result = client.score(
                "test/tiny-bert-ce",
                QUERY,
                ITEMS,
                instruction=given,
                options={"profile": "instructed"},
            )
            theirs = local.score(str(tiny_bert), QUERY, ITEMS, instruction=expected)
            assert result["scores"] == theirs["scores"]


def test_an_adapter_changes_its_callers_scores_only(
    served: Server, recorded_models: tuple[ModelSettings, ...], tiny_bert: Path
) -> None:
    """`options.lora` names one of the server's adapters; calls without it get the base model."""
    folder = recorded_models[0].loras["x/y"]
    local = LocalClient(mode="exact")
    adapted = local.score(str(tiny_bert), QUERY, ITEMS, options={"lora": folder})
    plain = local.score(str(tiny_bert), QUERY, ITEMS)
    assert adapted["scores"] != plain["scores"]
    with SIEClient(served.url) as client:
        options = {"lora": "x/y"}
        ours = client.score("test/tiny-bert-ce", QUERY, ITEMS, options=options)
        assert ours["scores"] == adapted["scores"]
        assert client.score("test/tiny-bert-ce", QUERY, ITEMS)["scores"] == plain["scores"]


def test_a_failure_of_the_model_is_an_error_and_no_score(served: Server) -> None:
    """Scores that are no numbers are not given to anyone."""
    with SIEClient(served.url) as client, pytest.raises(InferenceError) as caught:
        client.score("test/nan-ce", QUERY, ITEMS)
    assert caught.value.code == "INFERENCE_ERROR"
    assert caught.value.status_code == 500


def test_messages_name_the_model_and_not_its_folder(served: Server, tiny_bert: Path) -> None:
    """Where the files are is the server's affair."""
    with SIEClient(served.url) as client, pytest.raises(InvalidRequestError) as caught:
        client.encode("test/tiny-bert-ce", ITEMS)
    assert "test/tiny-bert-ce" in str(caught.value)
    assert str(tiny_bert) not in str(caught.value)


class Held(LocalClient):
    """A client whose workers wait for leave before each batch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(mode="exact", num_threads=1, **settings)
        self.may_run = threading.Event()
        self.may_run.set()
        self.has_work = threading.Event()

    def hold(self, model: str) -> None:
        """Make the workers of a model that is loaded wait."""
        loaded = self.loaded_model(model)
        assert loaded is not None
        scheduler = loaded.scheduler
        run = scheduler._run

        def run_with_leave(*arguments: Any) -> None:
            self.has_work.set()
            self.may_run.wait()  # `held` gives leave in the end
            run(*arguments)

        scheduler._run = run_with_leave  # type: ignore[method-assign]


@pytest.fixture
def held(serve: Callable[..., Server]) -> Iterator[Callable[..., Held]]:  # noqa: ARG001  ends later
    """A maker of such clients, whose workers may go on when the servers are about to end."""
    made: list[Held] = []

    def make(**settings: Any) -> Held:
        made.append(Held(**settings))
        return made[-1]

    yield make
    for client in made:
        client.may_run.set()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(100 * PATIENCE_SECONDS):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen in time")


def post(url: str, num_items: int) -> socket.socket:
    """Send a request for scores, and return the connection."""
    address = urlsplit(url)
    body = msgpack.packb(
        {"query": {"text": "q"}, "items": [{"text": f"d{i} museum"} for i in range(num_items)]}
    )
    head = (
        f"POST /v1/score/m HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/msgpack\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS)
    connection.sendall(head.encode() + body)
    return connection


def test_who_hangs_up_is_not_computed_for(
    serve: Callable[..., Server], held: Callable[..., Held], tiny_bert: Path
) -> None:
    """Work of a caller who left before its turn is dropped: no batch ever sees it."""
    client = held()
    server = serve(models=(ModelSettings(name="m", source=str(tiny_bert)),), client=client)
    client.hold(str(tiny_bert))
    loaded = client.loaded_model(str(tiny_bert))
    assert loaded is not None
    before = loaded.scheduler.stats().num_sequences
    client.may_run.clear()
    first = post(server.url, 1)
    wait_for(lambda: server.app.state.service.door.num_requests == 1)
    assert client.has_work.wait(PATIENCE_SECONDS)
    second = post(server.url, 100)
    wait_for(lambda: loaded.scheduler.stats().num_queued_requests == 1)
    second.close()
    wait_for(lambda: loaded.scheduler.stats().num_queued_requests == 0)
    client.may_run.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    first.close()
    wait_for(lambda: server.app.state.service.door.num_requests == 0)
    assert loaded.scheduler.stats().num_sequences == before + 1


def test_too_much_work_is_told_to_come_back(
    serve: Callable[..., Server], held: Callable[..., Held], tiny_bert: Path
) -> None:
    """503 QUEUE_FULL with Retry-After; when there is room again, calls are taken again."""
    client = held(max_queued_tokens=200)
    server = serve(models=(ModelSettings(name="m", source=str(tiny_bert)),), client=client)
    client.hold(str(tiny_bert))
    loaded = client.loaded_model(str(tiny_bert))
    assert loaded is not None
    client.may_run.clear()
    waiting = [post(server.url, 1)]
    wait_for(lambda: server.app.state.service.door.num_requests == 1)
    assert client.has_work.wait(PATIENCE_SECONDS)
    waiting.append(post(server.url, 15))
    wait_for(lambda: loaded.scheduler.stats().num_queued_requests == 1)
    body = {
        "query": {"text": "q"},
        "items": [{"text": "museum"}] * 1 + [{"text": f"x{i}"} for i in range(40)],
    }
    reply = httpx.post(f"{server.url}/v1/score/m", json=body, timeout=PATIENCE_SECONDS)
    assert reply.status_code == 503
    assert reply.json()["detail"]["code"] == "QUEUE_FULL"
    assert int(reply.headers["retry-after"]) >= 1
    client.may_run.set()
    for connection in waiting:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
    assert httpx.post(f"{server.url}/v1/score/m", json=body).status_code == 200


def test_a_full_house_lets_nobody_in_and_says_so(
    serve: Callable[..., Server], held: Callable[..., Held], tiny_bert: Path
) -> None:
    """More requests than may be in progress are refused before their bodies are read."""
    client = held()
    models = (ModelSettings(name="m", source=str(tiny_bert)),)
    server = serve(models=models, client=client, max_requests=2)
    client.hold(str(tiny_bert))
    client.may_run.clear()
    inside = [post(server.url, 1), post(server.url, 1)]
    wait_for(lambda: server.app.state.service.door.num_requests == 2)
    reply = httpx.post(f"{server.url}/v1/score/m", json={}, timeout=PATIENCE_SECONDS)
    assert reply.status_code == 503
    assert reply.json()["detail"]["code"] == "QUEUE_FULL"
    client.may_run.set()
    for connection in inside:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
    wait_for(lambda: server.app.state.service.door.num_requests == 0)
    assert server.app.state.service.door.num_bytes == 0
