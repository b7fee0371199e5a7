"""The OpenTelemetry metrics of rerank and embedding calls, and of the engine under them."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from sie_core.telemetry import otel
from sie_core.telemetry.rerank_event import RerankEvent

_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Bounds of the histograms of times, unless a view of the program's says otherwise."""

_ENGINE_GAUGES: Final = {
    "num_queued_requests": ("sie.engine.queue.requests", "{request}", "Requests that wait"),
    "num_queued_tokens": ("sie.engine.queue.tokens", "{token}", "Tokens that wait"),
    "batch_fill": ("sie.engine.batch.fill", "1", "Tokens of batches, of what they could hold"),
}
_ENGINE_COUNTERS: Final = {
    "num_batches": ("sie.engine.batches", "{batch}", "Batches computed"),
    "num_sequences": ("sie.engine.sequences", "{sequence}", "Sequences in them"),
    "num_tokens": ("sie.engine.tokens", "{token}", "Tokens in them"),
    "busy_seconds": ("sie.engine.busy", "s", "Time of all workers in them"),
    "num_out_of_memory": ("sie.engine.out_of_memory", "{batch}", "Batches that did not fit"),
}


class Instruments:
    """The instruments of one meter."""

    def __init__(self, meter: Any) -> None:
        self._rerank_duration = _times(meter, "sie.rerank.duration", "Rerank calls")
        self._queue_duration = _times(
            meter, "sie.rerank.queue.duration", "Time that rerank calls waited for the engine"
        )
        self._num_documents = meter.create_counter(
            "sie.rerank.documents", "{document}", "Documents given to rerank calls"
        )
        self._num_tokens = meter.create_counter(
            "sie.rerank.tokens", "{token}", "Tokens that rerank calls consumed"
        )
        self._num_truncated = meter.create_counter(
            "sie.rerank.truncated", "{document}", "Documents that lost their end"
        )
        self._num_scored = meter.create_counter(
            "sie.rerank.scored", "{document}", "Documents that were given a score"
        )
        self._num_cached = meter.create_counter(
            "sie.rerank.cached", "{document}", "Those of them whose score was known already"
        )
        self._embed_duration = _times(meter, "sie.embed.duration", "Embedding calls")
        self._num_texts = meter.create_counter(
            "sie.embed.texts", "{text}", "Texts given to embedding calls"
        )
        for field, (name, unit, text) in _ENGINE_GAUGES.items():
            meter.create_observable_gauge(name, [_reading(field)], unit, text)
        for field, (name, unit, text) in _ENGINE_COUNTERS.items():
            meter.create_observable_counter(name, [_reading(field)], unit, text)

    def record_rerank(self, event: RerankEvent) -> None:
        """Count one rerank call."""
        model = {"sie.model": event.model}
        outcome = {**model, "sie.status": event.status}
        if event.served_by is not None:
            outcome["sie.served_by"] = event.served_by
        if event.error_type is not None:
            outcome["error.type"] = event.error_type
        self._rerank_duration.record(event.duration_seconds, outcome)
        self._num_documents.add(event.num_documents, model)
        self._num_tokens.add(event.num_input_tokens, model)
        if event.num_truncated:
            self._num_truncated.add(event.num_truncated, model)
        self._num_scored.add(event.num_scored, model)
        if event.num_cached:
            self._num_cached.add(event.num_cached, model)
        if "queue_ms" in event.timing:
            self._queue_duration.record(event.timing["queue_ms"] / 1e3, model)

    def record_embedding(
        self, model: str, status: str, error_type: str | None, num_texts: int, seconds: float
    ) -> None:
        """Count one embedding call."""
        outcome = {"sie.model": model, "sie.status": status}
        if error_type is not None:
            outcome["error.type"] = error_type
        self._embed_duration.record(seconds, outcome)
        self._num_texts.add(num_texts, {"sie.model": model})


_made: list[tuple[Any, Instruments]] = []
"""The instruments of the last meter, if any: the same ones are used for every call."""

_lock = threading.Lock()


def record_rerank(event: RerankEvent) -> None:
    """Count one rerank call, where anyone counts."""
    if otel.has_metrics():
        with otel.harmless():
            instruments = find_instruments()
            if instruments is not None:
                instruments.record_rerank(event)


def record_embedding(
    model: str, status: str, error_type: str | None, num_texts: int, seconds: float
) -> None:
    """Count one embedding call, where anyone counts."""
    if otel.has_metrics():
        with otel.harmless():
            instruments = find_instruments()
            if instruments is not None:
                instruments.record_embedding(model, status, error_type, num_texts, seconds)


def find_instruments() -> Instruments | None:
    """Return the instruments, made at the first time of asking; None without OpenTelemetry."""
    meter = otel.find_meter()
    if meter is None:
        return None
    made = _made[:]
    if made and made[0][0] is meter:
        return made[0][1]
    with _lock:  # the engine must not be observed twice
        if not _made or _made[0][0] is not meter:
            _made[:] = [(meter, Instruments(meter))]
        return _made[0][1]


def _times(meter: Any, name: str, text: str) -> Any:
    return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=_SECONDS)


def _reading(field: str) -> Callable[[Any], Iterable[Any]]:
    """Return what reads one counter of each model when metrics are collected."""

    def read(_: Any) -> list[Any]:
        observation = importlib.import_module("opentelemetry.metrics").Observation
        return [
            observation(counters[field], attributes)
            for attributes, counters in otel.read_engines()
            if field in counters
        ]

    return read
