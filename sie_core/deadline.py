"""One deadline for everything that a call may do."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from sie_core.errors import DeadlineExceededError, InvalidRequestError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, and the budget in seconds that led to it (None: never)."""

    budget_seconds: float | None
    moment: float

    never: ClassVar[Deadline]
    """The one that never ends."""

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Start the clock now; None never ends.

        Raises:
            InvalidRequestError: `seconds` is not a positive, finite number.
        """
        if seconds is None:
            return cls.never
        check_timeout_seconds(seconds)
        return cls(seconds, time.monotonic() + seconds)

    @property
    def left_seconds(self) -> float:
        """Seconds left; infinite for a deadline that never ends, negative behind it."""
        return self.moment - time.monotonic()

    def remaining_seconds(self, doing: str) -> float | None:
        """Return the seconds left, None for a deadline that never ends.

        Args:
            doing: What the time is wanted for, for the error.

        Raises:
            DeadlineExceededError: None are left.
        """
        if self.budget_seconds is None:
            return None
        left = self.left_seconds
        if left <= 0:
            raise self.exceeded(doing)
        return left

    def run(self, call: Callable[[], T], doing: str) -> T:
        """Call something that may not end by itself in time.

        It runs in a thread; one that is not done by then goes on, and nobody waits for it.

        Raises:
            DeadlineExceededError: Time was up.
            Exception: What the call raised.
        """
        left = self.remaining_seconds(doing)
        if left is None:
            return call()
        future: Future[T] = Future()
        context = contextvars.copy_context()  # so that what is traced belongs to the caller's

        def answer() -> None:
            try:
                future.set_result(context.run(call))
            except BaseException as exc:  # noqa: BLE001  it is raised where it is waited for
                future.set_exception(exc)

        threading.Thread(target=answer, name="sie-bounded", daemon=True).start()
        try:
            return future.result(left)
        except FutureTimeoutError as exc:
            if future.done():  # it is the call's own
                raise
            raise self.exceeded(doing) from exc

    def exceeded(self, doing: str) -> DeadlineExceededError:
        """Make the error to raise, naming what was being done."""
        msg = f"the call's timeout of {self.budget_seconds:g} s passed while {doing}"
        return DeadlineExceededError(msg)


Deadline.never = Deadline(None, math.inf)


def check_timeout_seconds(seconds: float | None, *, name: str = "timeout_seconds") -> None:
    """Raise InvalidRequestError unless it is None or a positive, finite number.

    Args:
        seconds: What was given; milliseconds where the name ends so.
        name: The argument's, for the error.
    """
    if seconds is None:
        return
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds < math.inf:
        unit = "milliseconds" if name.endswith("_ms") else "seconds"
        msg = f"{name} must be a positive number of {unit} or None, but got {seconds!r}"
        raise InvalidRequestError(msg)
