"""Which device and number format are chosen, and what is refused."""

from __future__ import annotations

import pytest
import torch

from sie_core.errors import InvalidRequestError
from sie_core.local.device import choose_device, choose_dtype, choose_max_batch_tokens


def test_the_default_device_is_cuda_where_there_is_one_and_never_mps() -> None:
    """Nothing named: CUDA if torch sees it, else the CPU."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device(None).type == expected


def test_half_precision_is_the_default_on_cuda_only() -> None:
    """float16 on CUDA, float32 on the CPU."""
    assert choose_dtype(None, torch.device("cuda", 0)) is torch.float16
    assert choose_dtype(None, torch.device("cpu")) is torch.float32


def test_spellings_of_the_cpu_are_one_device() -> None:
    """`cpu` and `cpu:0` share a loaded model."""
    assert choose_device("cpu") == choose_device("cpu:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_gpu_is_refused() -> None:
    """The error says what torch sees and what to use."""
    with pytest.raises(InvalidRequestError, match="torch sees no CUDA device; use 'cpu'"):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "tpu:0", "meta", ""])
def test_an_unknown_device_is_named(name: str) -> None:
    """The error lists the devices there are."""
    with pytest.raises(InvalidRequestError, match=f"'cpu', 'cuda'.*got {name!r}"):
        choose_device(name)


def test_an_unknown_dtype_is_named() -> None:
    """The error lists the formats there are."""
    with pytest.raises(InvalidRequestError, match=r"float32, float16, bfloat16.*got 'fp8'"):
        choose_dtype("fp8", torch.device("cpu"))


@pytest.mark.parametrize("tokens", [0, -5, 1.5, True])
def test_a_bad_batch_budget_is_named(tokens: object) -> None:
    """A budget below one token, or not an integer, is refused."""
    with pytest.raises(InvalidRequestError, match="max_batch_tokens must be"):
        choose_max_batch_tokens(tokens, torch.device("cpu"))  # type: ignore[arg-type]
