"""Linear layers with reordered weights compute what linear layers compute."""

from __future__ import annotations

import pytest
import torch

from sie_core.local.architecture import Activation
from sie_core.local.layers import ACTIVATIONS, Linear, PackedLinear

needs_packing = pytest.mark.skipif(
    not isinstance(Linear(torch.ones(16, 32).bfloat16(), None).packed(), PackedLinear),
    reason="this torch or processor has no bfloat16 products with reordered weights",
)


@needs_packing
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("has_bias", [True, False])
def test_packed_layers_compute_the_same(activation: Activation, *, has_bias: bool) -> None:
    """For a few rows and for many, with the activation built in or applied afterwards."""
    torch.manual_seed(1)
    weight, bias = torch.randn(48, 64), torch.randn(48) if has_bias else None
    plain = Linear(weight.bfloat16(), None if bias is None else bias.bfloat16())
    packed = plain.packed()
    assert isinstance(packed, PackedLinear)
    for num_rows in (1, 7, 300):
        x = torch.randn(num_rows, 64)
        exact = ACTIVATIONS[activation](torch.nn.functional.linear(x, weight, bias))
        torch.testing.assert_close(
            packed.activated(x.bfloat16(), activation).float(), exact, atol=0.15, rtol=0.02
        )
        torch.testing.assert_close(packed(x.bfloat16()), plain(x.bfloat16()))


def test_float32_layers_stay_where_they_are_mapped() -> None:
    """Reordering them would copy what the file holds, for nothing."""
    linear = Linear(torch.ones(16, 32), torch.ones(16))
    assert linear.packed() is linear
