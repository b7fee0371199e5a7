"""Which device and number format a model runs in."""

from __future__ import annotations

import torch

from sie_core.errors import InvalidRequestError
from sie_core.settings import CPU_MAX_BATCH_TOKENS, CUDA_MAX_BATCH_TOKENS

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the number format: the one named, else float16 on CUDA and float32 elsewhere.

    Raises:
        InvalidRequestError: The name is not one of float32, float16, bfloat16.
    """
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        msg = f"dtype must be one of {', '.join(_DTYPES)}, or None, but got {name!r}"
        raise InvalidRequestError(msg)
    return _DTYPES[name]


def choose_max_batch_tokens(max_batch_tokens: int | None, device: torch.device) -> int:
    """Return the tokens of one forward pass: those given, else the device's default.

    Raises:
        InvalidRequestError: Less than 1.
    """
    if max_batch_tokens is None:
        return CUDA_MAX_BATCH_TOKENS if device.type == "cuda" else CPU_MAX_BATCH_TOKENS
    if isinstance(max_batch_tokens, bool) or not isinstance(max_batch_tokens, int):
        msg = f"max_batch_tokens must be an integer or None, but got {max_batch_tokens!r}"
        raise InvalidRequestError(msg)
    if max_batch_tokens < 1:
        msg = f"max_batch_tokens must be at least 1, but got {max_batch_tokens}"
        raise InvalidRequestError(msg)
    return max_batch_tokens
