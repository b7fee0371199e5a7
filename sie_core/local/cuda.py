"""The calls that need an NVIDIA GPU: streams, pinned memory, graphs, attention kernels.

Kept apart and thin, so that all else runs in tests on the CPU with a stand-in for these.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sie_core.local.architecture import Architecture
from sie_core.local.attention import VarlenKernel
from sie_core.local.causal_attention import CausalKernel

_MIN_CAPABILITY = (8, 0)
"""Flash attention needs an Ampere or later; older GPUs take the grouped way."""

_MAX_HEAD_SIZE = 256
_HEAD_SIZE_STEP = 8
_HALF_DTYPES = (torch.float16, torch.bfloat16)


def find_varlen_kernel(
    device: torch.device, dtype: torch.dtype, architecture: Architecture
) -> VarlenKernel | None:
    """Return an attention kernel for sequences of various lengths, if there is one for this model.

    torch's own comes first, then that of the flash-attn package. Neither computes in float32.
    """
    if not _has_kernels(device, dtype, architecture.head_size):
        return None
    has_windows = any(layer.window is not None for layer in architecture.rotary_layers)
    return _torch_kernel(needs_windows=has_windows) or _flash_attn_kernel()


def _has_kernels(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Return whether flash attention runs on a device, in a format, for heads of a size."""
    return (
        device.type == "cuda"
        and dtype in _HALF_DTYPES
        and head_size <= _MAX_HEAD_SIZE
        and head_size % _HEAD_SIZE_STEP == 0
        and torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY
    )


def _torch_kernel(*, needs_windows: bool) -> VarlenKernel | None:
    module = _import("torch.nn.attention.varlen")
    if module is None:
        return None
    has_windows = "window_size" in inspect.signature(module.varlen_attn).parameters
    if needs_windows and not has_windows:  # torch below 2.11
        return None
    return _adapted(module.varlen_attn, has_windows=has_windows)


def _flash_attn_kernel() -> VarlenKernel | None:
    module = _import("flash_attn")
    return None if module is None else _adapted(module.flash_attn_varlen_func, has_windows=True)


def _adapted(function: Callable[..., torch.Tensor], *, has_windows: bool) -> VarlenKernel:
    """Return a library's function under our signature; the two libraries agree on the rest."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        cu_seqlens: tuple[torch.Tensor, torch.Tensor],
        max_lengths: tuple[int, int],
        window: int | None,
    ) -> torch.Tensor:
        options = {"window_size": _both_sides(window)} if has_windows else {}
        return function(query, key, value, *cu_seqlens, *max_lengths, **options)

    return attend


def find_causal_kernel(
    device: torch.device, dtype: torch.dtype, head_size: int
) -> CausalKernel | None:
    """Return a causal attention kernel for sequences of various lengths, if there is one.

    The same kernels, of torch from 2.11 on or of flash-attn; the last query of a sequence sees all
    its keys, of which there may be more than queries.
    """
    if not _has_kernels(device, dtype, head_size):
        return None
    module = _import("torch.nn.attention.varlen")
    known = {} if module is None else inspect.signature(module.varlen_attn).parameters
    if "window_size" in known and "enable_gqa" in known:
        return _causal(module.varlen_attn, {"window_size": _BEHIND, "enable_gqa": True})
    module = _import("flash_attn")
    return None if module is None else _causal(module.flash_attn_varlen_func, {"causal": True})


_BEHIND = (-1, 0)
"""All keys before a query, and none after it."""


def _causal(function: Callable[..., torch.Tensor], options: dict[str, Any]) -> CausalKernel:
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        cu_seqlens: tuple[torch.Tensor, torch.Tensor],
        max_lengths: tuple[int, int],
    ) -> torch.Tensor:
        return function(query, key, value, *cu_seqlens, *max_lengths, **options)

    return attend


def _both_sides(window: int | None) -> tuple[int, int]:
    return (-1, -1) if window is None else (window, window)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:  # nothing is lost but speed
        return None


class CudaRuntime:
    """One worker's stream on one GPU, and its pool of memory for graphs.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.synchronize(device)  # the weights have arrived
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Let what is inside run on this worker's stream."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def host_row(self, size: int) -> torch.Tensor:
        """Return pinned memory for `size` 32-bit integers, from which copies need no waiting."""
        return torch.empty(size, dtype=torch.int32, pin_memory=True)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what `run` launches, and return what launches it again.

        What `run` reads and writes has to outlive the graph and to stay where it is.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.synchronize()
        # Other threads may use the GPU meanwhile, such as another worker or the application.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            run()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            # torch takes no new graph into a pool whose last graph is gone.
            self._pool = torch.cuda.graph_pool_handle()
            raise
        graph.capture_end()
        return graph.replay

    def wait(self) -> None:
        """Wait for what this worker has launched. Other threads run meanwhile."""
        self._stream.synchronize()

    def release_memory(self) -> None:
        """Give back what is cached and what graphs had; to be called when all are dropped."""
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()
