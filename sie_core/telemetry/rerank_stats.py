"""`RerankStats`: what the calls of one reranker came to; `RerankCounter` counts them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sie_core.telemetry.latency import Latency, LatencyHistogram
from sie_core.telemetry.rerank_event import RerankEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankStats:
    """Counts since the reranker was made. `dataclasses.asdict` makes plain values of it.

    Calls whose arguments were refused are not counted.

    Attributes:
        num_calls: Calls that have ended.
        num_documents: Candidates given to them.
        num_input_tokens: Tokens consumed, as far as backends tell.
        num_truncated: Candidates that lost their end, as far as backends tell.
        statuses: Calls by what became of them: `complete`, `partial`, `degraded`, `failed`,
            `cancelled`.
        failures: Failed calls by the class of their error.
        latency: How long calls took that gave a ranking; None before the first.
        engine: The scheduler of the reranker's model in this process (`SchedulerStats`), which
            others may use too; None where there is none.
        cache: The score cache; None where there is none.
    """

    num_calls: int = 0
    num_documents: int = 0
    num_input_tokens: int = 0
    num_truncated: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    latency: Latency | None = None
    engine: Any = None
    cache: Any = None


class RerankCounter:
    """Counts calls; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_documents = 0
        self._num_input_tokens = 0
        self._num_truncated = 0
        self._statuses: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._latency = LatencyHistogram()

    def add(self, event: RerankEvent) -> None:
        """Count one call."""
        with self._lock:
            self._num_documents += event.num_documents
            self._num_input_tokens += event.num_input_tokens
            self._num_truncated += event.num_truncated
            self._statuses[event.status] += 1
            if event.error is not None:
                self._failures[type(event.error).__name__] += 1
            elif event.status != "cancelled":
                self._latency.add(event.duration_seconds)

    def read(self, *, engine: Any = None, cache: Any = None) -> RerankStats:
        """Return the counts so far, beside what others count."""
        with self._lock:
            return RerankStats(
                num_calls=self._statuses.total(),
                num_documents=self._num_documents,
                num_input_tokens=self._num_input_tokens,
                num_truncated=self._num_truncated,
                statuses=dict(self._statuses),
                failures=dict(self._failures),
                latency=self._latency.read(),
                engine=engine,
                cache=cache,
            )
