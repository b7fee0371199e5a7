"""How fast a model scores, as measured, and how much of the work fits into the time that is left.

The unit of work is characters: whoever plans a call has no tokens. What a character costs is
measured for each model and place, and remembered in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_PAIR_CHARS: Final = 30
"""A pair costs as much as so many characters more than it has."""

_CHARS_PER_TOKEN: Final = 5
"""Characters beyond the model's maximum length are cut, and cost nothing."""

_MAX_LENGTH: Final = 512
"""Tokens of a pair, where the model's maximum is not known."""

_NUM_REMEMBERED: Final = 8
"""Measurements of a model that are remembered."""

_PROBE_DOCUMENTS: Final = 2
"""Documents scored first where nothing has been measured yet."""

_ALL_SHARE: Final = 0.7
"""Everything is scored at once where it is expected to take at most this part of the time left."""

_NEXT_SHARE: Final = 0.5
"""Else so much is scored next as is expected to take this part: what is under way when time is up
is lost."""

_FIT_SHARE: Final = 0.9
"""Nothing is begun that alone is expected to take more than this part."""


class Pace:
    """Seconds that a model takes for a character: the median of the last measurements.

    The median, weighted by how much was measured at a time, is moved neither by one slow call nor
    by small ones, of which most is fixed costs. Threads may share it without a lock, which a forked
    child might find locked: of two measurements at the same moment one may be lost.
    """

    def __init__(self) -> None:
        self._measured: tuple[tuple[float, float], ...] = ()

    def observe(self, cost: float, seconds: float) -> None:
        """Remember how long some work took."""
        self._measured = (*self._measured[1 - _NUM_REMEMBERED :], (seconds / cost, cost))

    @property
    def seconds_per_char(self) -> float | None:
        """What is expected, None before the first measurement."""
        measured = sorted(self._measured)
        half, passed = sum(weight for _, weight in measured) / 2, 0.0
        for seconds, weight in measured:
            passed += weight
            if passed >= half:
                return seconds
        return None


_paces: dict[tuple[str, ...], Pace] = {}


def pace_of(*name: str) -> Pace:
    """Return what is remembered in this process of a model at a place."""
    return _paces.setdefault(name, Pace())


def cost_of(query: str, text: str, max_length: int | None) -> float:
    """Estimate the work of a pair, in characters."""
    longest = _CHARS_PER_TOKEN * (max_length or _MAX_LENGTH)
    return _PAIR_CHARS + min(len(query) + len(text), longest)


def num_fitting(
    costs: Sequence[float], seconds_per_char: float | None, left_seconds: float, *, is_first: bool
) -> int:
    """Return how many documents to score next; 0: none that could be finished in time.

    Args:
        costs: Of the documents left, in their order.
        seconds_per_char: What is expected; None where nothing was measured.
        left_seconds: Time until the deadline.
        is_first: Nothing was scored yet in this call: then one document is tried even against
            expectation, or a wrong one would never be set right.
    """
    if left_seconds <= 0 or not costs:
        return 0
    if seconds_per_char is None:
        return min(_PROBE_DOCUMENTS, len(costs))
    left_chars = left_seconds / seconds_per_char if seconds_per_char > 0 else float("inf")
    if sum(costs) <= _ALL_SHARE * left_chars:
        return len(costs)
    num, sum_costs = 0, 0.0
    for cost in costs:
        sum_costs += cost
        if sum_costs > _NEXT_SHARE * left_chars:
            break
        num += 1
    if num == 0 and (is_first or costs[0] <= _FIT_SHARE * left_chars):
        return 1
    return num
