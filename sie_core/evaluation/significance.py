"""Whether a difference between two systems is more than chance, from the same queries' values.

Intervals are percentiles of the bootstrap over queries (Efron and Tibshirani, 1993); the test is
the paired randomisation test on the mean (Smucker, Allan and Carterette, 2007), two-sided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sie_core.errors import InvalidRequestError

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95

_MAX_EXACT_QUERIES = 13
"""Up to here all 2^n sign flips are fewer than the resamples, and are counted out."""

_CHUNK_CELLS = 2**21
"""Values drawn at a time: some 16 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mean difference between two systems over the same queries.

    Attributes:
        mean: Mean of `after - before`.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        p_value: How often chance alone makes a mean difference at least as large.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `unclear` where the interval holds zero."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "unclear"


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Difference:
    """Compare two systems query by query.

    Args:
        before: One value per query.
        after: The same queries' values, in the same order.
        seed: Decides the resamples.
        num_resamples: How many, of each kind.

    Raises:
        InvalidRequestError: There are no queries, or not the same number.
    """
    if len(before) != len(after) or not before:
        msg = f"a paired comparison needs the same queries, but got {len(before)} and {len(after)}"
        raise InvalidRequestError(msg)
    gains = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    random = np.random.default_rng(seed)
    low, high = _interval(gains, random, num_resamples)
    return Difference(
        mean=float(gains.mean()),
        low=low,
        high=high,
        p_value=_p_value(gains, random, num_resamples),
    )


def _interval(
    gains: NDArray[np.float64], random: np.random.Generator, num_resamples: int
) -> tuple[float, float]:
    means = np.concatenate(
        [
            gains[random.integers(0, len(gains), (size, len(gains)))].mean(axis=1)
            for size in _chunks(num_resamples, len(gains))
        ]
    )
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _p_value(gains: NDArray[np.float64], random: np.random.Generator, num_resamples: int) -> float:
    """Flip signs: if the two systems were the same, each query's gain were as likely a loss."""
    # Sums that are equal but for rounding must count as equal.
    threshold = abs(gains.sum()) - 1e-9 * np.abs(gains).sum()
    if len(gains) <= _MAX_EXACT_QUERIES:
        flips = (np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains))) & 1
        sums = (1.0 - 2.0 * flips) @ gains
        return float((np.abs(sums) >= threshold).mean())
    num_larger = sum(
        int((np.abs(random.choice((-1.0, 1.0), (size, len(gains))) @ gains) >= threshold).sum())
        for size in _chunks(num_resamples, len(gains))
    )
    return (num_larger + 1) / (num_resamples + 1)


def _chunks(num_resamples: int, num_queries: int) -> list[int]:
    size = max(1, _CHUNK_CELLS // num_queries)
    whole, rest = divmod(num_resamples, size)
    return [size] * whole + [rest] * (rest > 0)
