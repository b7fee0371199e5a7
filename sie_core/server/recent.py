"""`RecentCalls`: how many calls there were, and how long those of the last minute took."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

WINDOW_SECONDS: Final = 60.0
MAX_TIMES: Final = 8192
"""More than this many calls in a minute are told by the last so many."""


class _Call(NamedTuple):
    """One call that was answered."""

    ended: float
    seconds: float


class RecentCalls:
    """Count calls, and keep the times of the latest.

    Args:
        clock: Tells the seconds that pass.

    Attributes:
        num_calls: Calls that are over.
        num_failed: Those of them that got an error, whosever fault it was.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered: deque[_Call] = deque(maxlen=MAX_TIMES)
        self.num_calls = 0
        self.num_failed = 0

    def begin(self) -> float:
        """Return what `end` is to be given of a call that begins now."""
        return self._clock()

    def end(self, began: float, *, has_failed: bool) -> None:
        """Count a call that is over; of those that failed, the time says nothing."""
        self.num_calls += 1
        if has_failed:
            self.num_failed += 1
            return
        now = self._clock()
        self._answered.append(_Call(now, now - began))

    def percentiles(self, *shares: float) -> list[float] | None:
        """Return the seconds within which such shares of the last minute's calls were answered.

        They are times that occurred (nearest rank). None: there was no call.
        """
        oldest = self._clock() - WINDOW_SECONDS
        while self._answered and self._answered[0].ended < oldest:
            self._answered.popleft()
        times = sorted(call.seconds for call in self._answered)
        return [_nearest_rank(times, share) for share in shares] if times else None


def _nearest_rank(ascending: Sequence[float], share: float) -> float:
    return ascending[max(math.ceil(share * len(ascending)), 1) - 1]
