"""What the server traces: requests, and under them what the engine did; in the caller's trace."""

from __future__ import annotations

import gzip
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core import Embedder, Item, Reranker, SIEAsyncClient, SIEClient
from sie_core.errors import InvalidRequestError, MissingDependencyError
from sie_core.server.otlp import exporting
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings
from sie_core.telemetry.otel import find_tracer

QUERY = Item(text="secret question")
ITEMS = [Item(id="first", text="secret museum"), Item(text="a river")]
MODEL = "test/tiny-bert-ce"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


def body() -> dict[str, Any]:
    """Make the body of a score request."""
    return {"query": QUERY, "items": ITEMS}


def server_span(telemetry: Any, wait: Callable[[Callable[[], bool]], None]) -> Any:
    """Return the only SERVER span, which ends a moment after the reply."""

    def found() -> list[Any]:
        return [span for span in telemetry.spans() if span.kind.name == "SERVER"]

    wait(lambda: bool(found()))
    [span] = found()
    return span


@pytest.fixture
def wait() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so."""
    tick = threading.Event()

    def wait_for(condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition():
                return
            tick.wait(0.01)
        pytest.fail("it did not happen in time")

    return wait_for


def test_a_request_is_a_server_span_in_the_callers_trace(
    served: Server, telemetry: Any, wait: Any
) -> None:
    """Method, route, status, request id and where the time went; no query, no text."""
    headers = {"traceparent": TRACEPARENT, "X-Request-Id": "request-7"}
    reply = httpx.post(f"{served.url}/v1/score/{MODEL}?secret=1", json=body(), headers=headers)
    assert reply.status_code == 200
    assert reply.headers["x-request-id"] == "request-7"
    span = server_span(telemetry, wait)
    assert span.name == "POST /v1/score/{model}"
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    said = dict(span.attributes)
    assert said["http.request.method"] == "POST"
    assert said["http.route"] == "/v1/score/{model}"
    assert said["url.path"] == f"/v1/score/{MODEL}"
    assert said["http.response.status_code"] == 200
    assert said["sie.request_id"] == "request-7"
    assert said["sie.model"] == MODEL
    assert said["sie.num_items"] == 2
    assert said["sie.timing.total_ms"] > 0
    assert span.status.is_ok
    assert "secret" not in span.to_json()


def test_what_the_engine_did_is_a_span_under_the_request(
    served: Server, telemetry: Any, wait: Any
) -> None:
    """RERANKER for scores, one and not two; places and scores of the items; no contents."""
    headers = {"Accept": "application/json"}
    reply = httpx.post(f"{served.url}/v1/score/{MODEL}", json=body(), headers=headers).json()
    request = server_span(telemetry, wait)
    span = telemetry.span("RERANKER")
    assert span.parent.span_id == request.context.span_id
    said = span.attributes
    assert said["reranker.model_name"] == MODEL
    assert said["sie.num_documents"] == 2
    assert said["sie.status"] == "complete"
    assert said["sie.timing.inference_ms"] > 0
    best = reply["scores"][0]
    assert said["reranker.output_documents.0.document.score"] == pytest.approx(best["score"])
    expected = "0" if best["item_id"] == "first" else "1"
    assert said["reranker.output_documents.0.document.id"] == expected
    assert "secret" not in span.to_json()
    (duration,) = telemetry.points("sie.rerank.duration")
    assert (duration.count, duration.attributes["sie.model"]) == (1, MODEL)


def test_contents_are_traced_where_the_servers_environment_says_so(
    served: Server, telemetry: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIE_TRACE_CONTENT=1: query and texts, on the RERANKER span alone."""
    monkeypatch.setenv("SIE_TRACE_CONTENT", "1")
    httpx.post(f"{served.url}/v1/score/{MODEL}", json=body())
    assert "secret" not in server_span(telemetry, wait).to_json()
    said = telemetry.span("RERANKER").attributes
    assert said["reranker.query"] == "secret question"
    assert said["reranker.input_documents.0.document.content"] == "secret museum"


def test_embeddings_are_an_embedding_span(served: Server, telemetry: Any, wait: Any) -> None:
    """With the model and the number of texts."""
    httpx.post(f"{served.url}/v1/encode/test/tiny-embed", json={"items": ITEMS})
    request = server_span(telemetry, wait)
    span = telemetry.span("EMBEDDING")
    assert span.parent.span_id == request.context.span_id
    assert span.attributes["embedding.model_name"] == "test/tiny-embed"
    assert span.attributes["sie.num_texts"] == 2
    assert span.attributes["sie.status"] == "complete"
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(
    ("model", "status", "code", "is_servers"),
    [
        ("test/nan-ce", 500, "INFERENCE_ERROR", True),
        ("no/such-model", 404, "MODEL_NOT_FOUND", False),
    ],
)
def test_a_failure_has_its_status_and_code(  # noqa: PLR0917  cases and fixtures
    served: Server,
    telemetry: Any,
    wait: Any,
    model: str,
    status: int,
    code: str,
    is_servers: bool,
) -> None:
    """The server's failures are errors of the span; the caller's are not."""
    assert httpx.post(f"{served.url}/v1/score/{model}", json=body()).status_code == status
    span = server_span(telemetry, wait)
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes["sie.error_code"] == code
    assert span.status.is_ok is not is_servers
    assert span.attributes.get("error.type") == (code if is_servers else None)
    failed = [call.attributes["sie.status"] for call in telemetry.spans("RERANKER")]
    assert failed == (["failed"] if is_servers else [])


def test_those_who_watch_the_server_are_not_traced(served: Server, telemetry: Any) -> None:
    """Health and metrics are asked for every few seconds."""
    for path in ("/healthz", "/livez", "/readyz", "/metrics"):
        assert httpx.get(f"{served.url}{path}").status_code == 200
    httpx.get(f"{served.url}/v1/models")
    assert [span.name for span in telemetry.spans()] == ["GET /v1/models"]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_rerankers_call_and_the_servers_work_are_one_trace(
    way: str, served: Server, telemetry: Any, wait: Any
) -> None:
    """The reranker's span, under it the server's, under that the engine's; large calls too."""
    async with Reranker(MODEL, base_url=served.url) as reranker:
        documents = [f"museum {i}" for i in range(600)]  # more than one request's
        if way == "sync":
            reranker.rerank("secret question", documents)
        else:
            await reranker.arerank("secret question", documents)
    (call,) = [span for span in telemetry.spans("RERANKER") if span.parent is None]
    engine = [span for span in telemetry.spans("RERANKER") if span.parent is not None]
    assert len(engine) > 1
    wait(lambda: sum(it.kind.name == "SERVER" for it in telemetry.spans()) == len(engine))
    requests = [span for span in telemetry.spans() if span.kind.name == "SERVER"]
    assert {span.parent.span_id for span in requests} == {call.context.span_id}
    assert {span.parent.span_id for span in engine} == {it.context.span_id for it in requests}
    assert {span.context.trace_id for span in telemetry.spans()} == {call.context.trace_id}
    assert call.attributes["sie.served_by"] == served.url
    assert call.attributes["sie.timing.inference_ms"] > 0


def test_an_embedders_call_and_the_servers_work_are_one_trace(
    served: Server, telemetry: Any, wait: Any
) -> None:
    """The same for embeddings."""
    with Embedder("test/tiny-embed", base_url=served.url) as embedder:
        embedder.embed(["secret"])
    request = server_span(telemetry, wait)
    call, engine = sorted(telemetry.spans("EMBEDDING"), key=lambda span: span.start_time)
    assert request.parent.span_id == call.context.span_id
    assert engine.parent.span_id == request.context.span_id


async def test_clients_send_the_callers_context_and_nothing_without_one(
    served: Server, telemetry: Any, wait: Any
) -> None:
    """`SIEClient` and `SIEAsyncClient`, with no reranker around them."""
    tracer = telemetry.tracer_provider.get_tracer("program")
    with SIEClient(served.url) as client:
        client.score(MODEL, QUERY, ITEMS)
        wait(lambda: len(telemetry.spans()) == 2)
        assert telemetry.spans()[-1].parent is None
        with tracer.start_as_current_span("program") as program:
            client.score(MODEL, QUERY, ITEMS)
            async with SIEAsyncClient(served.url) as async_client:
                await async_client.score(MODEL, QUERY, ITEMS)
    wait(lambda: len(telemetry.spans()) == 7)
    requests = [span for span in telemetry.spans() if span.kind.name == "SERVER"][1:]
    parents = {span.parent.span_id for span in requests}
    assert parents == {program.get_span_context().span_id}


@pytest.mark.parametrize("sent", ["", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-x-01"])
def test_a_traceparent_that_is_none_begins_a_trace(
    sent: str, served: Server, telemetry: Any, wait: Any
) -> None:
    """Whatever a caller sends there, the call is answered and traced."""
    headers = {"traceparent": sent}
    reply = httpx.post(f"{served.url}/v1/score/{MODEL}", json=body(), headers=headers)
    assert reply.status_code == 200
    assert server_span(telemetry, wait).parent is None


# --- exporting -----------------------------------------------------------------------------------


class Collector:
    """Takes what is exported by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.has_all = threading.Event()
        bodies, has_all = self.bodies, self.has_all

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    content = gzip.decompress(content)
                bodies[self.path] = bodies.get(self.path, b"") + content
                if {"/v1/traces", "/v1/metrics"} <= set(bodies):
                    has_all.set()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take requests until the end of the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_spans_and_metrics_reach_a_collector(
    how: str, tiny_bert: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By OTLP over HTTP, to the address given or to OpenTelemetry's own variables; at the end."""
    collector = Collector()
    if how == "environment":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "named-server")
    with collector.running():
        with exporting(collector.url if how == "argument" else None) as is_exporting:
            assert is_exporting
            server = serve(models=(ModelSettings(name="m", source=str(tiny_bert)),))
            assert httpx.post(f"{server.url}/v1/score/m", json=body()).status_code == 200
        assert collector.has_all.wait(30)
    spans, metrics = collector.bodies["/v1/traces"], collector.bodies["/v1/metrics"]
    assert b"RERANKER" in spans
    assert b"/v1/score/{model}" in spans
    assert (b"named-server" if how == "environment" else b"sie-server") in spans
    assert b"secret" not in spans
    names = set(re.findall(rb"sie\.[a-z_.]+", metrics))
    assert {b"sie.rerank.duration", b"sie.engine.tokens", b"sie.engine.batch.fill"} <= names


def test_the_command_exports_and_sends_what_is_left_at_its_end(
    tiny_bert: Path, serve_command: Any
) -> None:
    """`sie serve --otlp-endpoint`, and a call; its spans come when it is told to stop."""
    collector = Collector()
    with collector.running():
        with serve_command(f"m={tiny_bert}", "--otlp-endpoint", collector.url) as (url, _):
            headers = {"traceparent": TRACEPARENT}
            reply = httpx.post(f"{url}/v1/score/m", json=body(), headers=headers)
            assert reply.status_code == 200
        assert collector.has_all.wait(30)
    assert bytes.fromhex(TRACE_ID) in collector.bodies["/v1/traces"]
    assert b"sie.rerank.duration" in collector.bodies["/v1/metrics"]


def test_a_collector_that_is_not_there_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it did not take in time is lost, and the log says so."""
    monkeypatch.setattr("sie_core.server.otlp.PATIENCE_SECONDS", 0.05)
    with exporting("http://127.0.0.1:9"):
        Reranker("m", client=Once()).rerank("q", ["a"])
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    assert "did not take what was left" in caplog.text


class Once:
    """A client that answers at once."""

    def score(self, model: str, _query: Item, items: list[Item], **_: Any) -> dict[str, Any]:
        scores = [{"item_id": item["id"], "score": 1.0} for item in items]
        return {"model": model, "query_id": None, "scores": scores}


def test_nothing_is_exported_where_nobody_says_where_to() -> None:
    """Neither a flag nor a variable: no thread, no provider."""
    with exporting() as is_exporting:
        assert not is_exporting
        assert find_tracer() is None


def test_opentelemetrys_own_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED=true."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with exporting("http://127.0.0.1:9") as is_exporting:
        assert not is_exporting


def test_what_cannot_be_exported_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is none; a protocol that is not spoken."""
    with pytest.raises(InvalidRequestError, match="http://localhost:4318"), exporting("collector"):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(InvalidRequestError, match="port 4318"), exporting():
        pass


def test_without_the_extra_a_flag_is_an_error_and_a_variable_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asks by name is told what to install; a cluster's own variable stops no server."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with (
        pytest.raises(MissingDependencyError, match=r"sie-core\[telemetry\]"),
        exporting("http://127.0.0.1:9"),
    ):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with exporting() as is_exporting:
        assert not is_exporting
    assert "nothing is exported" in caplog.text
