"""Ctrl-C: what is said, the exit code, and the one place where it cannot be an exception."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

MESSAGE = "interrupted\n"
_STDERR = 2


@contextmanager
def exiting_at_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process at once inside the block, which must have nothing to clean up.

    torch is imported under this: a KeyboardInterrupt inside its C++ start-up would abort the
    process with a core dump.
    """
    before = signal.signal(signal.SIGINT, _exit_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit_at_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    del signal_number, frame
    # Not through sys.stderr: the signal may have come while that was being written to.
    os.write(_STDERR, MESSAGE.encode())
    os._exit(EXIT_INTERRUPTED)
