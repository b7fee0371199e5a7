"""Operations are counted as by hand, and the products measured are products."""

from __future__ import annotations

import pytest

TINY = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2}


def test_linear_operations_are_those_of_a_hand_count() -> None:
    """4x12 + 4x4 + 4x8 + 8x4 = 128 weights: 256 operations a token and layer."""
    from floor import linear_flops

    assert linear_flops(TINY, 3) == 2 * 3 * 256


def test_attention_operations_are_those_of_a_hand_count() -> None:
    """Two products of length x length x 4, two operations each: 16 a layer and square."""
    from floor import attention_flops

    assert attention_flops(TINY, [1, 2]) == 2 * (1 + 4) * 16


def test_minilm_has_the_published_work() -> None:
    """42.5 million operations a token for twelve layers."""
    from floor import linear_flops
    from workload import MODELS

    assert linear_flops(MODELS["MiniLM-L12"], 1) == 42_467_328
    assert 2 * linear_flops(MODELS["MiniLM-L6"], 1) == 42_467_328


def test_the_floor_is_operations_over_rate() -> None:
    """The best rate of each shape counts."""
    from floor import Rates, linear_flops, linears

    layers = linears(TINY)
    rates = Rates()
    rates.add("float32", layers, [512.0] * 4)
    rates.add("float32", layers, [1024.0, 512.0, 256.0, 1.0])
    faster = 2 * 3 * 2 * 4 * 12  # the first shape of both layers, at twice the rate
    expected = (linear_flops(TINY, 3) - faster) / 512 + faster / 1024
    assert rates.floor_seconds("float32", TINY, 3) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_way_of_multiplying_gives_the_same(dtype: str) -> None:
    """A rate of something else would be no floor."""
    import torch
    from floor import Linear, best_seconds, products

    with torch.inference_mode():
        ways = products(dtype, 16, Linear("a layer", 32, 64, 1))
        results = [way() for way in ways]
        assert best_seconds(ways[0]) > 0
    assert results[0].shape == (16, 64)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=2e-2, atol=2e-2)
