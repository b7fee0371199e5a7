"""`LatencyHistogram`: how long calls took, in a space that does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

_GROWTH: Final = 1.05
_LOG_GROWTH: Final = math.log(_GROWTH)
_SHORTEST_SECONDS: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long calls took, in milliseconds; percentiles to within 2.5%, the longest exactly."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class LatencyHistogram:
    """Counts times in buckets of which each is 5% longer than the one before."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._num_times = 0
        self._total_seconds = 0.0
        self._longest_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        bucket = math.ceil(math.log(max(seconds, _SHORTEST_SECONDS)) / _LOG_GROWTH)
        self._buckets[bucket] += 1
        self._num_times += 1
        self._total_seconds += seconds
        self._longest_seconds = max(self._longest_seconds, seconds)

    def read(self) -> Latency | None:
        """Return the times so far; None where there are none."""
        if not self._num_times:
            return None
        return Latency(
            mean_ms=1e3 * self._total_seconds / self._num_times,
            p50_ms=self._percentile_ms(50),
            p90_ms=self._percentile_ms(90),
            p99_ms=self._percentile_ms(99),
            max_ms=1e3 * self._longest_seconds,
        )

    def _percentile_ms(self, percent: int) -> float:
        """Return the middle of the bucket of the nearest-rank percentile, or the longest time."""
        wanted = math.ceil(self._num_times * percent / 100)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                middle = math.pow(_GROWTH, bucket - 0.5)
                return 1e3 * min(middle, self._longest_seconds)
        return 1e3 * self._longest_seconds
