"""ModernBERT on packed rows, against transformers' padded forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sie_core.errors import ModelLoadError

if TYPE_CHECKING:
    from tests.local.conftest import LoadEncoder, MakePairs, PaddedLogits

WINDOW = 8
BEYOND_THE_WINDOW = [9, 10, 40, 40, 5, 200, 256, 17, 24, 25, 26, 64, 65]


@pytest.fixture
def assert_same_logits(
    load_encoder: LoadEncoder, make_pairs: MakePairs, padded_logits: PaddedLogits
) -> Callable[[Path], None]:
    """A check that a checkpoint's packed logits are those of its padded forward."""

    def check(folder: Path) -> None:
        encoder = load_encoder(folder)
        pairs = make_pairs(encoder, BEYOND_THE_WINDOW)
        got, expected = torch.tensor(encoder.logits(pairs)), padded_logits(folder, pairs)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    return check


@pytest.mark.parametrize(
    "settings",
    [
        {"classifier_pooling": "cls"},
        {"classifier_pooling": "mean"},
        {"classifier_pooling": "cls", "num_hidden_layers": 3},  # its last layer has a window
        {"num_hidden_layers": 1},
        {"num_labels": 2},
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        {"hidden_activation": "silu", "classifier_activation": "relu"},
        {"global_attn_every_n_layers": 2, "local_attention": 3},
    ],
)
def test_packed_logits_are_those_of_the_padded_forward(
    make_tiny_modernbert: Callable[..., Path],
    assert_same_logits: Callable[[Path], None],
    settings: dict[str, Any],
) -> None:
    """Lengths within, at and beyond the window, by each pooling and with and without biases."""
    assert_same_logits(make_tiny_modernbert(**settings))


def test_the_window_matters(
    make_tiny_modernbert: Callable[..., Path], load_encoder: LoadEncoder, make_pairs: MakePairs
) -> None:
    """With no window the scores of long pairs differ: the tests above would notice its absence."""
    narrow = load_encoder(make_tiny_modernbert())
    wide = load_encoder(make_tiny_modernbert(local_attention=1024))
    pairs = make_pairs(narrow, [WINDOW, 200])
    near, far = zip(narrow.logits(pairs), wide.logits(pairs), strict=True)
    assert near[0] == pytest.approx(near[1], abs=1e-5)
    assert abs(far[0] - far[1]) > 1e-3


def test_a_checkpoint_without_its_head_is_refused(
    make_tiny_modernbert: Callable[..., Path], load_encoder: LoadEncoder
) -> None:
    """An embedding model of the same family has no trained classifier."""
    from transformers import AutoModel

    folder = make_tiny_modernbert()
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(ModelLoadError, match=r"lack 4 tensors.*'classifier\.bias'"):
        load_encoder(folder)
