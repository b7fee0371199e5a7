"""BERT, RoBERTa and XLM-RoBERTa on packed rows, against transformers' padded forward."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.local.conftest import LoadEncoder, MakePairs, PaddedLogits

MIXED_LENGTHS = [7, 128, 9, 9, 31, 4, 128, 64, 9, 5]


@pytest.fixture
def assert_same_logits(
    load_encoder: LoadEncoder, make_pairs: MakePairs, padded_logits: PaddedLogits
) -> Callable[[Path], None]:
    """A check that a checkpoint's packed logits are those of its padded forward."""

    def check(folder: Path) -> None:
        encoder = load_encoder(folder)
        pairs = make_pairs(encoder, MIXED_LENGTHS)
        got, expected = torch.tensor(encoder.logits(pairs)), padded_logits(folder, pairs)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    return check


@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_bert_two_labels", "tiny_xlmr"])
def test_packed_logits_are_those_of_the_padded_forward(
    request: pytest.FixtureRequest, assert_same_logits: Callable[[Path], None], checkpoint: str
) -> None:
    """Mixed lengths, in no order, some equal: each within 1e-5 (of itself, if above 1)."""
    assert_same_logits(request.getfixturevalue(checkpoint))


def test_roberta_has_types_and_positions_of_its_own(
    tmp_path: Path, tiny_bert: Path, assert_same_logits: Callable[[Path], None]
) -> None:
    """A RoBERTa with two token types, and a padding id other than the usual one."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(3)
    config = RobertaConfig(
        vocab_size=90,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=140,
        type_vocab_size=2,
        pad_token_id=0,
        num_labels=1,
        initializer_range=0.5,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    shutil.copy(tiny_bert / "tokenizer.json", tmp_path)
    assert_same_logits(tmp_path)


@pytest.mark.parametrize(
    "activation",
    [
        "gelu",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
        "linear",
        "mish",
        "quick_gelu",
        "relu",
        "relu6",
        "sigmoid",
        "silu",
        "swish",
        "tanh",
    ],
)
def test_activations_are_those_of_transformers(
    tiny_bert: Path, tmp_path: Path, assert_same_logits: Callable[[Path], None], activation: str
) -> None:
    """Whatever name config.json has for it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": activation}
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_logits(folder)


def test_one_layer_is_enough(
    make_tiny_bert: Callable[..., Path], assert_same_logits: Callable[[Path], None]
) -> None:
    """A model whose first layer is its last."""
    assert_same_logits(make_tiny_bert(num_hidden_layers=1))


@pytest.mark.parametrize("checkpoint", ["tiny_xlmr", "tiny_modernbert"])
def test_a_score_does_not_depend_on_the_company(
    request: pytest.FixtureRequest,
    load_encoder: LoadEncoder,
    make_pairs: MakePairs,
    checkpoint: str,
) -> None:
    """Alone, in a large batch and in another order: the same within 1e-5."""
    encoder = load_encoder(request.getfixturevalue(checkpoint))
    pairs = make_pairs(encoder, MIXED_LENGTHS)
    together = encoder.logits(pairs)
    assert encoder.logits(pairs[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    assert [encoder.logits([pair])[0] for pair in pairs] == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("checkpoint", ["tiny_xlmr", "tiny_modernbert"])
def test_half_precision_is_near_and_makes_no_ties(
    request: pytest.FixtureRequest,
    load_encoder: LoadEncoder,
    make_pairs: MakePairs,
    checkpoint: str,
) -> None:
    """bfloat16 layers under float32 residuals and a float32 head."""
    folder = request.getfixturevalue(checkpoint)
    exact, half = load_encoder(folder), load_encoder(folder, "bfloat16")
    pairs = make_pairs(exact, MIXED_LENGTHS)
    got = half.logits(pairs)
    assert len(set(got)) == len(pairs)
    assert got == pytest.approx(exact.logits(pairs), abs=0.15)


@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_modernbert"])
def test_workers_share_weights_and_run_at_once(
    request: pytest.FixtureRequest,
    load_encoder: LoadEncoder,
    make_pairs: MakePairs,
    checkpoint: str,
) -> None:
    """Two workers in two threads give what one gives."""
    encoder = load_encoder(request.getfixturevalue(checkpoint))
    pairs = make_pairs(encoder, MIXED_LENGTHS)
    expected = encoder.logits(pairs)
    workers = [encoder.open_worker() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        rounds = [pool.submit(worker, pairs) for _ in range(20) for worker in workers]
    assert all(done.result() == expected for done in rounds)
