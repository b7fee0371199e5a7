"""One thread of computation for the calling thread, and nothing changed for any other.

`torch.set_num_threads` is not that: besides the calling thread's own number it sets one that every
thread started later takes over. The OpenMP runtime that torch is linked to keeps the number per
thread, so it is asked directly.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_LIBRARIES = {
    "linux": "libtorch_cpu.so",
    "darwin": "libtorch_cpu.dylib",
    "win32": "libiomp5md.dll",
}
"""Where a name is found: on Linux and macOS in what torch's library is linked to, too."""


def limit_this_thread() -> bool:
    """Make torch compute with one thread wherever the calling thread calls it.

    Returns:
        Whether that could be done; if not, nothing has changed.
    """
    set_num_threads = _omp_set_num_threads()
    if set_num_threads is None:
        return False
    torch.get_num_threads()  # torch sets a new thread's number at first use: before us, not after
    set_num_threads(1)
    set_mkl = _mkl_set_num_threads_local()
    if set_mkl is not None:
        set_mkl(1)
    return torch.get_num_threads() == 1


def can_limit_threads() -> bool:
    """Return whether `limit_this_thread` works with this torch on this system."""
    return _omp_set_num_threads() is not None


@functools.cache
def _omp_set_num_threads() -> Callable[[int], object] | None:
    return _function("omp_set_num_threads")


@functools.cache
def _mkl_set_num_threads_local() -> Callable[[int], object] | None:
    """Return MKL's own setting, which comes before OpenMP's where the application made one."""
    return _function("MKL_Set_Num_Threads_Local")


def _function(name: str) -> Callable[[int], object] | None:
    library = _LIBRARIES.get(sys.platform)
    if library is None:
        return None
    try:
        function = getattr(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / library)), name)
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_int], None
    found: Callable[[int], object] = function
    return found
