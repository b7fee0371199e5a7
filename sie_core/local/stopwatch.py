"""`Stopwatch`: where the time of one call went."""

from __future__ import annotations

import time
from types import TracebackType

from sie_core.local.scheduler import Running
from sie_core.types import Timing


class Stopwatch:
    """Measures a call from its own making on; tokens are made inside `with stopwatch`."""

    def __init__(self) -> None:
        self._begun_at = time.perf_counter()
        self._entered_at = 0.0
        self._tokenization_seconds = 0.0

    def __enter__(self) -> None:
        self._entered_at = time.perf_counter()

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tokenization_seconds += time.perf_counter() - self._entered_at

    def read(self, running: Running) -> Timing:
        """Tell where the time went until now, in a call whose work was `running`."""
        return Timing(
            total_ms=(time.perf_counter() - self._begun_at) * 1e3,
            queue_ms=running.queue_seconds * 1e3,
            tokenization_ms=self._tokenization_seconds * 1e3,
            inference_ms=running.inference_seconds * 1e3,
        )
