"""One deadline for everything that a call may do."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from sie_core.errors import DeadlineExceededError, InvalidRequestError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, and the budget in seconds that led to it (None: never)."""

    budget_seconds: float | None
    moment: float

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Start the clock now; None never ends.

        Raises:
            InvalidRequestError: `seconds` is not a positive, finite number.
        """
        if seconds is None:
            return cls(None, math.inf)
        check_timeout_seconds(seconds)
        return cls(seconds, time.monotonic() + seconds)

    def remaining_seconds(self, doing: str) -> float | None:
        """Return the seconds left, None for a deadline that never ends.

        Args:
            doing: What the time is wanted for, for the error.

        Raises:
            DeadlineExceededError: None are left.
        """
        if self.budget_seconds is None:
            return None
        left = self.moment - time.monotonic()
        if left <= 0:
            raise self.exceeded(doing)
        return left

    def exceeded(self, doing: str) -> DeadlineExceededError:
        """Make the error to raise, naming what was being done."""
        msg = f"the call's timeout of {self.budget_seconds:g} s passed while {doing}"
        return DeadlineExceededError(msg)


def check_timeout_seconds(seconds: float | None, *, name: str = "timeout_seconds") -> None:
    """Raise InvalidRequestError unless `seconds` is None or a positive, finite number."""
    if seconds is None:
        return
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds < math.inf:
        msg = f"{name} must be a positive number of seconds or None, but got {seconds!r}"
        raise InvalidRequestError(msg)
