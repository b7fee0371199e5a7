"""`Breaker`: keeps calls away from a backend that fails, and lets one probe it after a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from sie_core.settings import BreakerSettings

CircuitState = Literal["closed", "open", "half-open"]


class Breaker:
    """Counts a backend's failures in a row; after some it is open, and nobody asks for a while.

    Then one call at a time may probe it (half-open): success closes it again, failure opens it
    for twice as long. Safe to share between threads.

    Args:
        settings: How many failures, how long.
        clock: Monotonic seconds.
    """

    def __init__(
        self, settings: BreakerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._num_failures = 0
        self._cooldown = settings.cooldown_seconds
        self._opened: float | None = None
        self._is_probing = False
        self.last_error: str | None = None

    @property
    def state(self) -> CircuitState:
        """Whether calls go through (closed), none do (open), or one may (half-open)."""
        with self._lock:
            if self._opened is None:
                return "closed"
            return "half-open" if self._is_rested() else "open"

    def admits(self) -> bool:
        """Ask for leave to make a call; the caller must report how it went."""
        with self._lock:
            if self._opened is None:
                return True
            if self._is_probing or not self._is_rested():
                return False
            self._is_probing = True
            return True

    def succeeded(self) -> None:
        """Report an answer."""
        with self._lock:
            self._num_failures, self._opened, self._is_probing = 0, None, False
            self._cooldown = self._settings.cooldown_seconds

    def failed(self, error: BaseException) -> None:
        """Report a failure."""
        with self._lock:
            self.last_error = f"{type(error).__name__}: {error}"
            self._num_failures += 1
            if self._is_probing:
                longest = self._settings.max_cooldown_seconds
                self._cooldown = min(2 * self._cooldown, longest)
                self._opened, self._is_probing = self._clock(), False
            elif self._opened is None and self._num_failures >= self._settings.num_failures:
                self._opened = self._clock()

    def abandoned(self) -> None:
        """Report a call that ended without telling: cancelled, or the caller's own mistake."""
        with self._lock:
            self._is_probing = False

    def _is_rested(self) -> bool:
        return self._opened is not None and self._clock() - self._opened >= self._cooldown
