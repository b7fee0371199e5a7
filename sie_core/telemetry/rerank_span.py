"""`RerankSpan`: the span and the metrics of one rerank call, wherever it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from sie_core.telemetry.instruments import record_rerank
from sie_core.telemetry.openinference import (
    outcome_attributes,
    reranker_attributes,
    reranker_input,
    reranker_output,
)
from sie_core.telemetry.otel import NO_SPAN, Span, find_tracer, harmless, shows_content
from sie_core.telemetry.rerank_event import RerankEvent

Texts = Callable[[], Sequence[str | None]]
"""Returns the documents' texts; asked only where they are shown."""


class RerankSpan:
    """One call under way.

    Attributes:
        context: What is asked of others for it is asked within this; see `otel.within`.
    """

    __slots__ = ("_span", "_texts", "context")

    def __init__(self, span: Span, texts: Texts | None) -> None:
        self._span = span
        self._texts = texts
        self.context: Any = span.context

    @property
    def is_recording(self) -> bool:
        """Whether what came out is wanted."""
        return self._span.is_recording

    @classmethod
    def start(
        cls,
        model: str,
        query: str | None,
        texts: Texts,
        *,
        num_documents: int,
        top_k: int | None = None,
        trace_content: bool | None = None,
    ) -> Self:
        """Begin a span, if anyone traces.

        Args:
            model: The model that is asked for.
            query: What is looked for.
            texts: The documents.
            num_documents: How many they are.
            top_k: How many are to be kept.
            trace_content: Whether query and texts are written on it; None: SIE_TRACE_CONTENT.
        """
        if find_tracer() is None:
            return cls(NO_SPAN, None)
        attributes = reranker_attributes(model, top_k=top_k, num_documents=num_documents)
        span = Span.start(f"rerank {model}", attributes)
        if not span.is_recording or not shows_content(trace_content):
            return cls(span, None)
        with harmless():
            span.set(reranker_input(query, texts()))
        return cls(span, texts)

    def finish(self, event: RerankEvent, ranked: Sequence[tuple[int, float | None]] = ()) -> None:
        """End it, and count the call.

        Args:
            event: What became of the call.
            ranked: Places of the documents that came out, best first, and their scores.
        """
        if self._span is not NO_SPAN:
            with harmless():
                self._describe(event, ranked)
            self._span.end()
        record_rerank(event)

    def _describe(self, event: RerankEvent, ranked: Sequence[tuple[int, float | None]]) -> None:
        if not self._span.is_recording:
            return
        self._span.set(reranker_output(ranked, None if self._texts is None else self._texts()))
        self._span.set(outcome_attributes(event))
        if self._texts is not None:  # the reason may quote one
            self._span.set({"sie.reason": event.reason})
        if event.error is not None and event.error_type is not None:
            self._span.fail(event.error_type, None if self._texts is None else event.error)
