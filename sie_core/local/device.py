"""Where and how a model runs: devices, number format, workers. `choose` decides, and says why."""

from __future__ import annotations

import functools
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sie_core.errors import InvalidRequestError
from sie_core.local.cores import count_cores
from sie_core.local.openmp import can_limit_threads, limit_this_thread
from sie_core.settings import (
    CPU_MAX_BATCH_TOKENS,
    CPU_MIN_BATCH_TOKENS,
    CUDA_MAX_BATCH_TOKENS,
    CUDA_MIN_BATCH_TOKENS,
    MAX_QUEUED_TOKENS,
    EngineSettings,
    check_mode,
)
from sie_core.types import Mode

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PROBE_GAIN = 1.2
"""bfloat16 must be this much faster than float32 to be worth its rounding."""

_KERNELS_BELOW_AMX = ("avx512", "avx2")
"""Values of `SIE_MAX_CPU_ISA` without AMX; `none` leaves all to torch, within oneDNN's bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a model runs.

    Attributes:
        devices: One, or several GPUs.
        dtype: Number format of the model's body.
        num_workers: Threads that run batches: one for each core, or for each GPU.
        max_batch_tokens: Tokens of one forward pass.
        min_batch_tokens: What is split over idle workers is split no smaller.
        max_queued_tokens: Bound on waiting work.
        dtype_reason: Why that number format.
        workers_reason: Why that many.
    """

    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    num_workers: int
    max_batch_tokens: int
    min_batch_tokens: int
    max_queued_tokens: int
    dtype_reason: str
    workers_reason: str

    @property
    def mode(self) -> Mode:
        """Return `exact` for float32, `fast` for what rounds more."""
        return "exact" if self.dtype is torch.float32 else "fast"

    def describe(self) -> str:
        """Say in one line what was chosen, and why."""
        devices = " and ".join(map(str, self.devices))
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        return (
            f"{self.mode} on {devices}: {_name(self.dtype)} ({self.dtype_reason}), "
            f"{workers} ({self.workers_reason})"
        )


def choose(settings: EngineSettings) -> Execution:
    """Decide how models run.

    Raises:
        InvalidRequestError: A setting is wrong, or this machine cannot do what it asks for.
    """
    devices = choose_devices(settings.device)
    first = devices[0]
    dtype, dtype_reason = choose_dtype(settings.mode, settings.dtype, first)
    num_workers, workers_reason = choose_num_workers(settings.num_threads, devices)
    is_cuda = first.type == "cuda"
    return Execution(
        devices=devices,
        dtype=dtype,
        num_workers=num_workers,
        max_batch_tokens=choose_max_batch_tokens(settings.max_batch_tokens, first),
        min_batch_tokens=CUDA_MIN_BATCH_TOKENS if is_cuda else CPU_MIN_BATCH_TOKENS,
        max_queued_tokens=MAX_QUEUED_TOKENS
        if settings.max_queued_tokens is None
        else check_at_least_1(settings.max_queued_tokens, "max_queued_tokens"),
        dtype_reason=dtype_reason,
        workers_reason=workers_reason,
    )


def choose_devices(names: str | Sequence[str] | None) -> tuple[torch.device, ...]:
    """Return the devices named, one or a list of GPUs.

    Raises:
        InvalidRequestError: A name is unknown, is not there, or cannot stand in a list.
    """
    if names is None or isinstance(names, str):
        return (choose_device(names),)
    devices = tuple(choose_device(name) for name in names)
    if not devices:
        msg = "device must name at least one device, but got an empty list"
        raise InvalidRequestError(msg)
    if len(devices) > 1 and any(device.type != "cuda" for device in devices):
        msg = f"only CUDA devices can be used together, but device is {list(names)!r}"
        raise InvalidRequestError(msg)
    if len(set(devices)) < len(devices):
        msg = f"device names one of its devices twice: {list(names)!r}"
        raise InvalidRequestError(msg)
    return devices


def choose_device(name: str | None) -> torch.device:
    """Return the device to run on: the one named, else CUDA where there is one, else CPU.

    MPS is used only where it is asked for: its results have differed from the CPU's.

    Raises:
        InvalidRequestError: The name is unknown or torch sees no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as exc:
        msg = f"device must be 'cpu', 'cuda', 'cuda:N' or 'mps', but got {name!r}"
        raise InvalidRequestError(msg) from exc
    if device.type == "cuda":
        return _choose_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        msg = "device 'mps' was asked for, but torch sees no Apple GPU; use device='cpu'"
        raise InvalidRequestError(msg)
    if device.type not in {"cpu", "mps"}:
        msg = f"device must be 'cpu', 'cuda', 'cuda:N' or 'mps', but got {name!r}"
        raise InvalidRequestError(msg)
    return torch.device(device.type)


def _choose_cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        msg = f"device {str(device)!r} was asked for, but torch sees no CUDA device; use 'cpu'"
        raise InvalidRequestError(msg)
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        msg = f"device {str(device)!r} was asked for, but torch sees only {count} CUDA device(s)"
        raise InvalidRequestError(msg)
    return torch.device("cuda", index)


def choose_dtype(mode: Mode, name: str | None, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the number format, and why that one.

    `exact` is float32; `fast` is float16 on CUDA, and bfloat16 on a CPU that computes faster in
    it; `auto` is fast where that can be had. A format that is named is taken as it is.

    Raises:
        InvalidRequestError: Mode or format is unknown, both are named, or `fast` cannot be had.
    """
    check_mode(mode, name)
    if name is not None:
        if name not in _DTYPES:
            msg = f"dtype must be one of {', '.join(_DTYPES)}, or None, but got {name!r}"
            raise InvalidRequestError(msg)
        return _DTYPES[name], "as asked for"
    if mode == "exact":
        return torch.float32, "as mode='exact' asks for"
    verdict = fast_dtype(device)
    if verdict.dtype is not None:
        return verdict.dtype, verdict.reason
    if mode == "fast":
        msg = (
            f"mode='fast' was asked for, but {verdict.reason}; use mode='auto', which falls back "
            "to float32 here, or name a dtype"
        )
        raise InvalidRequestError(msg)
    return torch.float32, verdict.reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """The number format of the fast mode, None where there is none, and why."""

    dtype: torch.dtype | None
    reason: str


def fast_dtype(device: torch.device) -> Verdict:
    """Return what the fast mode is on `device`."""
    if device.type == "cuda":
        return Verdict(torch.float16, "GPUs are fastest in it")
    if device.type != "cpu":
        return Verdict(None, f"{device.type} has no fast mode here")
    kernels_isa = os.environ.get("SIE_MAX_CPU_ISA", "")
    if kernels_isa.lower() in _KERNELS_BELOW_AMX:
        return Verdict(None, f"SIE_MAX_CPU_ISA={kernels_isa} hides AMX")
    max_isa = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return _fast_dtype_on_cpu(max_isa)


@functools.cache
def _fast_dtype_on_cpu(max_isa: str | None) -> Verdict:
    """Judge by what the processor has; where that does not tell, by a measurement."""
    if is_amx_hidden(max_isa):
        return Verdict(None, f"ONEDNN_MAX_CPU_ISA={max_isa} hides AMX")
    has_amx = _ask_torch("_is_amx_tile_supported")
    if has_amx:
        return Verdict(torch.bfloat16, "the processor has AMX")
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    if is_x86 and has_amx is False and _ask_torch("_is_avx512_bf16_supported") is False:
        return Verdict(None, "the processor has neither AMX nor other bfloat16 instructions")
    gain = measure_bfloat16_gain()
    measured = f"bfloat16 was measured {gain:.1f} times as fast as float32"
    return Verdict(torch.bfloat16 if gain >= _PROBE_GAIN else None, measured)


def is_amx_hidden(max_isa: str | None) -> bool:
    """Return whether oneDNN was told not to use AMX, by one of the names that it takes."""
    name = (max_isa or "").upper()
    return name not in {"", "ALL", "DEFAULT"} and "AMX" not in name


def _ask_torch(function: str) -> bool | None:
    """Ask torch about the processor; None where this version does not have the function."""
    ask = getattr(torch.cpu, function, None)
    return None if ask is None else bool(ask())


def measure_bfloat16_gain() -> float:
    """Time one linear layer in both formats in one thread, as a worker would run it: about 50 ms.

    Returns:
        float32's time as a multiple of bfloat16's.
    """
    seconds: dict[torch.dtype, float] = {}

    def measure() -> None:
        limit_this_thread()
        with torch.inference_mode():
            for dtype in (torch.float32, torch.bfloat16):
                rows, weight = torch.ones(512, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
                times = []
                for _ in range(4):  # the first builds the kernel
                    begin = time.perf_counter()
                    torch.nn.functional.linear(rows, weight)
                    times.append(time.perf_counter() - begin)
                seconds[dtype] = min(times[1:])

    thread = threading.Thread(target=measure, name="sie-probe")
    thread.start()
    thread.join()
    return seconds[torch.float32] / seconds[torch.bfloat16]


def choose_num_workers(num_threads: int | None, devices: Sequence[torch.device]) -> tuple[int, str]:
    """Return how many threads run batches, and why that many.

    On the CPU one for each core that may be used, with one thread of computation each. A number
    asked for by argument or by `SIE_NUM_THREADS` comes first; GPUs have one each in any case.

    Raises:
        InvalidRequestError: The number is not an integer of 1 or more.
    """
    asked, reason = _read_num_threads(num_threads)
    if devices[0].type != "cpu":
        return len(devices), "one for each device"
    if not can_limit_threads():
        return 1, "with torch's own threads, which cannot be divided on this system"
    if asked is not None:
        return asked, f"of one thread each, as {reason}"
    cores = count_cores()
    return cores, f"of one thread each, {cores} core{'s' if cores > 1 else ''} may be used"


def _read_num_threads(num_threads: int | None) -> tuple[int | None, str]:
    if num_threads is not None:
        check_at_least_1(num_threads, "num_threads")
        return num_threads, f"num_threads={num_threads} asks for"
    text = os.environ.get("SIE_NUM_THREADS")
    if not text:
        return None, ""
    if not text.strip().isdecimal() or int(text) < 1:
        msg = f"SIE_NUM_THREADS must be an integer of 1 or more, but is {text!r}"
        raise InvalidRequestError(msg)
    return int(text), f"SIE_NUM_THREADS={int(text)} asks for"


def choose_max_batch_tokens(max_batch_tokens: int | None, device: torch.device) -> int:
    """Return the tokens of one forward pass: those given, else the device's default.

    Raises:
        InvalidRequestError: Less than 1.
    """
    if max_batch_tokens is None:
        return CUDA_MAX_BATCH_TOKENS if device.type == "cuda" else CPU_MAX_BATCH_TOKENS
    return check_at_least_1(max_batch_tokens, "max_batch_tokens")


def check_at_least_1(number: int, name: str) -> int:
    """Return `number`.

    Raises:
        InvalidRequestError: It is not an integer of 1 or more.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        msg = f"{name} must be an integer or None, but got {number!r}"
        raise InvalidRequestError(msg)
    if number < 1:
        msg = f"{name} must be at least 1, but got {number}"
        raise InvalidRequestError(msg)
    return number


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
