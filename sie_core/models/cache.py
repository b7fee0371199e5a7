"""The cache: a folder of folders, each made once, and there only when complete.

A folder is made in a hidden sibling under a file lock and then renamed, which the file system does
in one step. Whoever finds the final name therefore finds all of it, whatever was killed meanwhile.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sie_core.errors import (
    DeadlineExceededError,
    MissingDependencyError,
    ModelLoadError,
    SIEError,
)

try:
    from filelock import FileLock, Timeout
    from platformdirs import user_cache_path
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[local]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

_logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SIE_CACHE_DIR"
"""The environment variable that moves the cache."""

ErrorT = TypeVar("ErrorT", bound=SIEError)


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache's folder, which need not exist yet.

    Args:
        cache_dir: The caller's choice; None means `SIE_CACHE_DIR`, else the platform's cache
            folder, such as `~/.cache/sie`.
    """
    chosen = cache_dir if cache_dir is not None else os.environ.get(CACHE_VARIABLE, "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute()
    return user_cache_path("sie", appauthor=False)


def build_once(
    folder: Path,
    build: Callable[[Path], None],
    *,
    required: Sequence[str] = (),
    error: type[SIEError] = ModelLoadError,
    timeout_seconds: float | None = None,
) -> Path:
    """Return `folder`, having called `build` to fill it if it was not complete.

    Threads and processes that ask for the same folder at once wait for the one that builds. If
    that one fails or is killed, the next one in line builds, and sweeps away what was left.

    Args:
        folder: The final folder.
        build: Called with an empty folder to fill, beside the final one.
        required: Names of files without which an existing folder counts as damaged and is
            made again.
        error: What to raise when the file system refuses.
        timeout_seconds: How long to wait for another builder; None waits until it is done.

    Raises:
        DeadlineExceededError: Another builder still holds the folder after `timeout_seconds`.
    """
    if is_complete(folder, required):
        return folder
    with _filesystem_errors_as(error, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, timeout_seconds):
            if not is_complete(folder, required):
                _build(folder, build)
    return folder


def is_complete(folder: Path, required: Sequence[str]) -> bool:
    """Tell whether `folder` exists and has the `required` files, which may have been deleted."""
    try:
        return folder.is_dir() and all((folder / name).exists() for name in required)
    except OSError:  # not ours to read; writing will say so
        return False


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    """Fill a new sibling of `folder` and give it the final name. Call with the lock held."""
    for leftover in _leftovers(folder):
        shutil.rmtree(leftover, ignore_errors=True)
    # A new name each time: a download whose parent was killed may still write to the old one.
    staged = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:12]}")
    staged.mkdir()
    try:
        build(staged)
        if folder.exists():  # damaged: `is_complete` said so
            damaged = staged.with_name(f"{staged.name}-damaged")
            folder.replace(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        staged.replace(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    prefix = f".{folder.name}.partial-"
    return [path for path in folder.parent.iterdir() if path.name.startswith(prefix)]


@contextmanager
def _locked(folder: Path, timeout_seconds: float | None) -> Iterator[None]:
    """Hold the lock of `folder` across threads and processes."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.info("Waiting for another process or thread that is making %s", folder)
            lock.acquire(timeout=-1 if timeout_seconds is None else timeout_seconds)
    except Timeout as exc:
        msg = (
            f"{folder} is being made by another process or thread and was not ready within "
            f"{timeout_seconds:g} seconds; try again later, or allow more time"
        )
        raise DeadlineExceededError(msg) from exc
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _filesystem_errors_as(error: type[ErrorT], folder: Path) -> Iterator[None]:
    """Translate what the file system refuses into `error`."""
    try:
        yield
    except SIEError:  # some of ours are OSErrors too, such as DeadlineExceededError
        raise
    except (OSError, NotImplementedError) as exc:  # the latter: a file system without locks
        msg = (
            f"cannot write the cache folder {folder}: {exc}. Free some space or change its "
            f"permissions, or set {CACHE_VARIABLE} to a folder that can be written"
        )
        raise error(msg) from exc
