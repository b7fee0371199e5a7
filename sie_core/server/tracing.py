"""OpenTelemetry in the server: a span for each request, and under it one for what is computed.

Spans belong to the caller's trace where the request says which (W3C `traceparent`). They hold no
query and no text, unless SIE_TRACE_CONTENT says so (`sie_core.telemetry`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sie_core.server.failures import CLIENT_CLOSED_REQUEST, CallerGoneError
from sie_core.server.record import CallRecord, record_of
from sie_core.telemetry import RerankEvent
from sie_core.telemetry.embedding_span import EmbeddingSpan
from sie_core.telemetry.openinference import timing_attributes
from sie_core.telemetry.otel import Span, extract, find_tracer, within
from sie_core.telemetry.rerank_span import RerankSpan
from sie_core.types import Item, ScoreResult

UNTRACED_PATHS: Final = frozenset({"/healthz", "/livez", "/readyz", "/metrics"})
"""Asked every few seconds by those who watch the server, who do not want to see themselves."""


class TraceRequests:
    """ASGI middleware, the outermost: a SERVER span around each request, if anyone traces.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; HTTP alone is traced."""
        is_traced = scope["type"] == "http" and scope["path"] not in UNTRACED_PATHS
        if not is_traced or find_tracer() is None:
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        span = Span.start(
            scope["method"],
            _request_attributes(scope, headers),
            kind="server",
            parent=extract(headers),
        )
        record = record_of(scope)
        status: int | None = None

        async def note_and_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with within(span.context):
                await self._app(scope, receive, note_and_send)
        except Exception as exc:
            status = status or HTTPStatus.INTERNAL_SERVER_ERROR
            span.fail(type(exc).__name__)
            raise
        finally:
            _describe(span, scope["method"], status or CLIENT_CLOSED_REQUEST, record)
            span.end()


class ScoringSpan:
    """A RERANKER span, from entering to leaving it, around what the engine does for a request.

    In the caller's process a `Reranker` has one too, around the whole call; this one tells what the
    server did of it.

    Args:
        model: By the name that the server has for it.
        query: What is looked for.
        items: What is scored.
    """

    def __init__(self, model: str, query: Item, items: Sequence[Item]) -> None:
        self._model = model
        self._items = items
        self._begun_at = time.perf_counter()
        self._span = RerankSpan.start(
            model,
            query.get("text"),
            lambda: [item.get("text") for item in items],
            num_documents=len(items),
        )
        self._within = within(self._span.context)
        self._result: ScoreResult | None = None

    def __enter__(self) -> Self:
        self._within.__enter__()
        return self

    def scored(self, result: ScoreResult) -> None:
        """Take the answer."""
        self._result = result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._within.__exit__(kind, error, trace)
        seconds, result = time.perf_counter() - self._begun_at, self._result
        if result is not None:
            usage = result.get("usage", {})
            event = RerankEvent(
                model=self._model,
                status="complete",
                duration_seconds=seconds,
                num_documents=len(self._items),
                num_ranked=len(result["scores"]),
                num_scored=len(result["scores"]),
                num_input_tokens=usage.get("input_tokens", 0),
                num_truncated=usage.get("truncated_items", 0),
                served_by="local",
                timing=result.get("timing", {}),
            )
            self._span.finish(event, self._ranked(result))
            return
        is_failure = isinstance(error, Exception) and not isinstance(error, CallerGoneError)
        self._span.finish(
            RerankEvent(
                model=self._model,
                status="failed" if is_failure else "cancelled",
                duration_seconds=seconds,
                num_documents=len(self._items),
                error=error if is_failure else None,
            )
        )

    def _ranked(self, result: ScoreResult) -> list[tuple[int, float | None]]:
        """Return the places of the items and their scores, best first."""
        if not self._span.is_recording:
            return []
        ids = [item.get("id") or f"item-{i}" for i, item in enumerate(self._items)]
        places = {item_id: place for place, item_id in reversed(list(enumerate(ids)))}
        return [(places[entry["item_id"]], entry["score"]) for entry in result["scores"]]


def encoding_span(
    model: str,
    items: Sequence[Item],
    output_types: Sequence[str] | None,
    options: Mapping[str, Any],
) -> EmbeddingSpan:
    """Return an EMBEDDING span, to be entered around what the engine does for a request."""
    return EmbeddingSpan(
        model,
        {"output_types": output_types, **options},
        lambda: [item.get("text") for item in items],
        num_texts=len(items),
        cancelled_by=CallerGoneError,
    )


def _request_attributes(scope: Scope, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what OpenTelemetry's conventions for HTTP servers ask for, without the query."""
    host, port = scope.get("server") or (None, None)
    attributes = {
        "http.request.method": scope["method"],
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version"),
        "server.address": host,
        "server.port": port,
        "user_agent.original": headers.get("user-agent"),
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _describe(span: Span, method: str, status: int, record: CallRecord) -> None:
    """Write what was found out on the way."""
    if record.route is not None:
        span.rename(f"{method} {record.route}")
    span.set(
        {
            "http.response.status_code": status,
            "http.route": record.route,
            "sie.request_id": record.request_id,
            "sie.model": record.model,
            "sie.num_items": record.num_items or None,
            "sie.error_code": record.code,
            **timing_attributes(record.timing),
        }
    )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(record.code or str(status))
