"""What a caller is told of each failure: the real server's status and code, in its own shape."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core import errors
from sie_core.errors import ResourceExhaustedError, SIEError
from sie_core.local import LocalClient
from sie_core.server.failures import failure_of, refuse
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

RECORDED = Path(__file__).parent.parent / "remote" / "recorded"
BODY = {"query": {"text": "river"}, "items": [{"text": "the river"}]}


class OutOfMemory(LocalClient):
    """A client whose device has no memory left, once its models are loaded."""

    def submit(self, *_: Any, **__: Any) -> Any:
        message = "the device ran out of memory on a batch of 9 tokens"
        raise ResourceExhaustedError(message)


def recorded(name: str) -> tuple[int, Any]:
    """Return the status and the body of a recorded reply."""
    content = json.loads((RECORDED / f"{name}.json").read_text())
    return int(content["status_line"].split()[1]), content["response_body_decoded"]


def test_out_of_memory_is_told_as_the_real_server_tells_it(
    serve: Callable[..., Server], cold_bert: Path
) -> None:
    """503 RESOURCE_EXHAUSTED, with a time to come back."""
    models = (ModelSettings(name="m", source=str(cold_bert)),)
    server = serve(models=models, client=OutOfMemory(mode="exact"))
    reply = httpx.post(f"{server.url}/v1/score/m", json=BODY, timeout=30)
    status, body = recorded("fault_oom_503_resource_exhausted")
    assert reply.status_code == status
    assert reply.json()["detail"]["code"] == body["detail"]["code"]
    assert int(reply.headers["retry-after"]) == 5


def test_out_of_memory_is_not_an_inference_error_of_cohere_s_route(
    serve: Callable[..., Server], cold_bert: Path
) -> None:
    """There sie-server answers 500; a client that may come back is told so on ours."""
    models = (ModelSettings(name="m", source=str(cold_bert)),)
    server = serve(models=models, client=OutOfMemory(mode="exact"))
    rerank = {"model": "m", "query": "river", "documents": ["the river"]}
    reply = httpx.post(f"{server.url}/v1/rerank", json=rerank, timeout=30)
    _, body = recorded("fault_oom_rerank")
    assert reply.status_code == 503
    assert set(reply.json()["error"]) >= set(body["error"])
    assert reply.json()["error"]["code"].upper() == "RESOURCE_EXHAUSTED"


def test_a_failed_load_is_told_alike_on_cohere_s_route(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """502 MODEL_LOAD_FAILED, with what the real server says besides."""
    (tmp_path / "config.json").write_text("{}")
    models = (ModelSettings(name="m", source=str(tmp_path), preload=False),)
    server = serve(models=models, wait_for_load_seconds=30.0)
    rerank = {"model": "m", "query": "q", "documents": ["a", "b"]}
    reply = httpx.post(f"{server.url}/v1/rerank", json=rerank, timeout=30)
    status, body = recorded("rerank_load_failed")
    assert reply.status_code == status
    found, theirs = reply.json()["error"], body["error"]
    assert found["code"] == theirs["code"]
    assert found["type"] == theirs["type"]
    assert set(found) == set(theirs)


def test_every_error_of_ours_has_a_status() -> None:
    """None is answered as a failure that nobody foresaw, but those that no engine raises."""
    of_clients = {"ServerError", "ServerUnavailableError", "CreditsError", "CircuitOpenError"}
    others = {"MissingDependencyError", "InvalidResponseError", "SIEConnectionError"}
    waits = {"ModelLoadingError", "ProvisioningError", "DatasetError", "SIEError"}
    kinds = inspect.getmembers(errors, inspect.isclass)
    for name, kind in kinds:
        if not issubclass(kind, SIEError) or name in of_clients | others | waits:
            continue
        failure = failure_of(kind("why"))
        assert failure.code != "INTERNAL_ERROR", name
        assert "why" in failure.message


def test_what_nobody_foresaw_is_not_told() -> None:
    """A stack trace, or even a message, may hold what is nobody's business."""
    failure = failure_of(KeyError("secret"))
    assert (failure.status, failure.code) == (500, "INTERNAL_ERROR")
    assert b"secret" not in refuse("/v1/score/m", failure).body


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (3.4, "4")])
def test_a_time_to_come_back_is_whole_seconds(seconds: float, header: str) -> None:
    """Rounded up, since a client that comes too early comes twice."""
    failure = failure_of(ResourceExhaustedError("x"))
    changed = type(failure)(status=503, code="QUEUE_FULL", message="x", retry_after_seconds=seconds)
    assert refuse("/v1/score/m", changed).headers["retry-after"] == header
