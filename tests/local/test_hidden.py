"""Hidden states by every way that runs them: in the order of the texts, and without padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sie_core.local.architecture import Architecture
from sie_core.local.hidden import HiddenStates, TorchBody, load_body
from sie_core.local.layers import Placement
from sie_core.local.texts import Text
from sie_core.local.weights import Weights
from sie_core.models.sources import ModelFiles

Make = Callable[..., Path]
LENGTHS = [7, 33, 1, 7, 90, 16]


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seqlens: tuple[torch.Tensor, torch.Tensor],
    max_lengths: tuple[int, int],
    window: int | None,
) -> torch.Tensor:
    """Stand in for a GPU's attention kernel, a sequence at a time."""
    assert window is None
    assert all(
        int(cu.diff().max()) <= most for cu, most in zip(cu_seqlens, max_lengths, strict=True)
    )
    spans = [itertools.pairwise(cu.tolist()) for cu in cu_seqlens]
    parts = [
        nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        ).transpose(0, 1)
        for (q0, q1), (k0, k1) in zip(*spans, strict=True)
    ]
    return torch.cat(parts)


def texts(lengths: list[int], *, num_unseen: int = 0) -> list[Text]:
    """Make texts of random ids, the last few of each unseen."""
    rng = np.random.default_rng(3)
    return [
        Text(
            rng.integers(5, 60, length, dtype=np.int32),
            max(1, length - num_unseen),
            None,
            frozenset(),
            is_truncated=False,
        )
        for length in lengths
    ]


@pytest.fixture
def states_of(make_sentence_encoder: Make) -> Callable[..., HiddenStates]:
    """A function that runs a batch of texts in some way."""
    folder = make_sentence_encoder()

    def run(
        batch: list[Text],
        *,
        isa: str = "none",
        dtype: torch.dtype = torch.float32,
        reads_all: bool = True,
        has_kernel: bool = False,
    ) -> HiddenStates:
        files = ModelFiles(name="test", folder=folder, source="folder")
        architecture = Architecture.read(files, is_classifier=False)
        placement = Placement(torch.device("cpu"), dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SIE_MAX_CPU_ISA", isa)
            weights = Weights.open(files)
            body = load_body(architecture, weights, placement, reads_all=reads_all)
        if has_kernel:
            assert isinstance(body, TorchBody)
            body._kernel = kernel
        return body.open()(batch)

    return run


@pytest.mark.parametrize("num_unseen", [0, 3])
@pytest.mark.parametrize(
    "way",
    [
        {"isa": "amx"},
        {"isa": "avx512"},
        {"isa": "avx2"},
        {"has_kernel": True},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_every_way_gives_the_same_rows(
    states_of: Callable[..., HiddenStates], way: dict[str, object], num_unseen: int
) -> None:
    """Of all tokens, unseen ones as well, and of the first ones."""
    batch = texts(LENGTHS, num_unseen=num_unseen)
    want, got = states_of(batch), states_of(batch, **way)
    assert got.lengths.tolist() == want.lengths.tolist() == LENGTHS
    atol = 0.2 if "dtype" in way else 1e-4
    torch.testing.assert_close(got.rows, want.rows, atol=atol, rtol=0)
    if not num_unseen:
        first = states_of(batch, reads_all=False, **way)
        begins = want.lengths.cumsum(0) - want.lengths
        torch.testing.assert_close(first.rows, want.rows[begins], atol=atol, rtol=0)
        assert first.lengths.tolist() == [1] * len(batch)


@pytest.mark.parametrize("isa", ["amx", "none"])
def test_a_text_does_not_depend_on_its_company(
    states_of: Callable[..., HiddenStates], isa: str
) -> None:
    """Alone or with others, masks unseen in some."""
    batch = [*texts([20, 16], num_unseen=6), *texts([40, 3])]
    together = states_of(batch, isa=isa)
    rows = together.rows.split(together.lengths.tolist())
    for text, found in zip(batch, rows, strict=True):
        torch.testing.assert_close(states_of([text], isa=isa).rows, found, atol=1e-5, rtol=0)
