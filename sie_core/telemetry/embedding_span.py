"""`EmbeddingSpan`: the span and the metrics of one embedding call, wherever it is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from sie_core.telemetry.instruments import record_embedding
from sie_core.telemetry.openinference import embedding_attributes, embedding_input
from sie_core.telemetry.otel import Span, harmless, shows_content, within


class EmbeddingSpan:
    """One call, from entering to leaving it; what is asked for it inside belongs under it.

    Args:
        model: The model that is asked for.
        arguments: What goes with the texts.
        texts: Returns them; asked only where they are shown.
        num_texts: How many they are.
        trace_content: Whether texts are written on it; None: SIE_TRACE_CONTENT.
        cancelled_by: What is raised where nobody waits for the answer any more; as are exceptions
            that are no `Exception`, such as asyncio's.
    """

    def __init__(
        self,
        model: str,
        arguments: Mapping[str, Any],
        texts: Callable[[], Sequence[str | None]],
        *,
        num_texts: int,
        trace_content: bool | None = None,
        cancelled_by: type[Exception] | None = None,
    ) -> None:
        self._cancelled_by = cancelled_by
        self._model = model
        self._num_texts = num_texts
        self._begun_at = time.perf_counter()
        self._span = Span.start(f"embed {model}")
        self._within: AbstractContextManager[None] = within(self._span.context)
        self._has_content = self._span.is_recording and shows_content(trace_content)
        if self._span.is_recording:
            with harmless():
                self._span.set(embedding_attributes(model, arguments, num_texts))
                self._span.set(embedding_input(texts() if self._has_content else ()))

    def __enter__(self) -> Self:
        self._within.__enter__()
        return self

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Write more attributes; those that are None are left out."""
        self._span.set(attributes)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._within.__exit__(kind, error, trace)
        is_failure = isinstance(error, Exception)
        if self._cancelled_by is not None and isinstance(error, self._cancelled_by):
            is_failure = False
        error_type = type(error).__name__ if is_failure else None
        status = "complete" if error is None else "failed" if is_failure else "cancelled"
        self._span.set({"sie.status": status})
        if error_type is not None:
            self._span.fail(error_type, error if self._has_content else None)
        self._span.end()
        seconds = time.perf_counter() - self._begun_at
        record_embedding(self._model, status, error_type, self._num_texts, seconds)
