"""`ScoreFolder`: the scores of a cache on disk, as bytes by bytes.

Keys and values are plain bytes in SQLite (`diskcache`), and pickles are refused, whoever put one
there. A folder that cannot be read or written, or not soon, costs the scores in it and no call:
reading waits for nobody who writes, and a thread writes, which begins at the first write.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sie_core.errors import InvalidRequestError, MissingDependencyError, SIEError

if TYPE_CHECKING:
    import diskcache

_logger = logging.getLogger(__name__)

_MAX_WAIT_SECONDS: Final = 0.5
"""How long scores wait for others that write to the same folder; no call does."""

_MAX_WAITING: Final = 4096
"""Scores that may wait to be written; what comes while so many do is kept in memory only."""

_WARN_EVERY_SECONDS: Final = 60.0
"""A folder that stays locked, or is slower than the scoring, fails with every call."""

_writing = threading.Lock()
"""Held by whoever writes to a folder: a process that forks amid that would leave SQLite's own locks
locked in its child for ever."""


class ScoreFolder:
    """Keep values by their keys in a folder, which other processes may use too.

    Args:
        folder: Where; made if it is not there.
        max_bytes: Bound on it; what was written first leaves first.

    Raises:
        InvalidRequestError: The folder cannot be used.
        MissingDependencyError: `diskcache` is not installed.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        try:
            import diskcache
        except ImportError as exc:
            msg = "a score_cache with a folder needs diskcache: pip install 'sie-core[cache]'"
            raise MissingDependencyError(msg) from exc
        self._errors = (diskcache.Timeout, sqlite3.Error, OSError)
        try:
            self._cache: diskcache.Cache = diskcache.Cache(
                str(folder),
                timeout=_MAX_WAIT_SECONDS,
                disk=_plain_disk(diskcache),
                size_limit=max_bytes,
                eviction_policy="least-recently-stored",  # reading writes nothing
            )
        except self._errors as exc:
            msg = (
                f"score_cache's folder {str(folder)!r} cannot be used: {exc}; name one that this "
                "process may write to, or leave it out to keep scores in memory alone"
            )
            raise InvalidRequestError(msg) from exc
        self._begin()
        _folders.add(self)

    def _begin(self) -> None:
        """Begin with nothing to write, also in a forked child; diskcache opens files anew there."""
        self._lock = threading.Lock()
        self._waiting: dict[bytes, bytes] = {}
        self._warned: dict[str, float] = {}
        self._writer: ThreadPoolExecutor | None = None
        self._ending = threading.Lock()  # held by who waits for the writer

    def read(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""
        wanted = list(keys)
        try:
            return [self._cache.get(key) for key in wanted]
        except self._errors as exc:
            self._warn("read", exc)
            return [None] * len(wanted)

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Have values written, unless too many wait for that already."""
        try:
            with self._lock:
                is_full = len(self._waiting) >= _MAX_WAITING
                if not self._waiting:
                    self._thread().submit(self._write_waiting)
                if not is_full:
                    self._waiting.update(values)
        except RuntimeError as exc:  # the interpreter ends, or there are no more threads to be had
            self._warn("written", exc)
        else:
            if is_full:
                self._warn("written", f"{_MAX_WAITING} wait already")

    def clear(self) -> None:
        """Remove all values, and those that wait.

        Raises:
            SIEError: Not all could be removed.
        """
        try:
            with self._ending:
                with self._lock:
                    cleared = self._thread().submit(self._remove_all)  # after all that waits
                cleared.result()
        except (*self._errors, RuntimeError) as exc:
            msg = f"the scores in {self._cache.directory} could not be cleared: {exc!r}; try again"
            raise SIEError(msg) from exc

    def close(self) -> None:
        """Wait until all is written; close the files of this thread and of the one that writes."""
        with self._ending:
            with self._lock:
                writer, self._writer = self._writer, None
            if writer is not None:
                with suppress(RuntimeError):  # the interpreter ends, and has ended the thread
                    writer.submit(self._close_files)
                writer.shutdown()
            self._cache.close()

    def __len__(self) -> int:
        """Count the values."""
        try:
            return len(self._cache)
        except self._errors as exc:
            self._warn("counted", exc)
            return 0

    def _thread(self) -> ThreadPoolExecutor:
        """Return the thread that writes; it ends with `close`, or when nobody has this object."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="sie-score-cache")
        return self._writer

    def _write_waiting(self) -> None:
        """Write all that waits at once, so that others who hold the folder are waited for once."""
        try:
            with _writing:
                with self._lock:
                    values, self._waiting = self._waiting, {}
                with self._cache.transact():
                    for key, value in values.items():
                        self._cache.set(key, value)
        except Exception as exc:  # noqa: BLE001  no call is there to raise it
            self._warn("written", exc)

    def _remove_all(self) -> None:
        with _writing:
            self._cache.clear()

    def _close_files(self) -> None:
        with _writing:
            self._cache.close()

    def _warn(self, what: str, reason: object) -> None:
        """Log that scores could not be read, written or counted; each of it once in a while."""
        now, last = time.monotonic(), self._warned.get(what, -math.inf)
        level = logging.DEBUG
        if now - last >= _WARN_EVERY_SECONDS:
            self._warned[what], level = now, logging.WARNING
        folder = self._cache.directory
        _logger.log(level, "the scores in %s could not be %s: %r", folder, what, reason)


def _plain_disk(diskcache: Any) -> type:
    """Return a way to store bytes that reads no pickle, whoever put one into the folder."""

    class PlainDisk(diskcache.Disk):  # type: ignore[misc]
        def fetch(self, mode: int, filename: Any, value: Any, read: Any) -> bytes | None:
            is_plain = filename is None and not read and isinstance(value, bytes)
            is_raw = mode == diskcache.core.MODE_RAW
            return bytes(value) if is_plain and is_raw else None

    return PlainDisk


_folders: weakref.WeakSet[ScoreFolder] = weakref.WeakSet()


def _begin_in_child() -> None:
    _writing.release()
    for folder in list(_folders):
        folder._begin()  # noqa: SLF001  it is of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_writing.acquire,
        after_in_parent=_writing.release,
        after_in_child=_begin_in_child,
    )
