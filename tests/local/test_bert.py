"""BERT, RoBERTa and XLM-RoBERTa on packed rows, against transformers' padded forward."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sie_core.local.encoder import PairEncoder
from sie_core.local.tokenization import Pair
from sie_core.models.sources import ModelFiles

CPU = torch.device("cpu")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PairEncoder:
    """Load a checkpoint."""
    files = ModelFiles(name=folder.name, folder=folder, source="folder")
    return PairEncoder.load(files, device=CPU, dtype=dtype)


def random_pairs(lengths: list[int], *, vocab_size: int, num_types: int) -> list[Pair]:
    """Make pairs of random tokens, none of them padding."""
    dice = random.Random(5)
    return [
        Pair(
            np.array([dice.randrange(2, vocab_size) for _ in range(length)], np.int32),
            length // 2 + 1 if num_types > 1 else length,
            is_truncated=False,
        )
        for length in lengths
    ]


def reference_logits(folder: Path, pairs: list[Pair], pad_token_id: int) -> torch.Tensor:
    """Return what transformers gives for the pairs in one padded float32 batch."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    longest = max(len(pair.token_ids) for pair in pairs)
    gaps = [longest - len(pair.token_ids) for pair in pairs]
    inputs = {
        "input_ids": [
            np.pad(pair.token_ids, (0, gap), constant_values=pad_token_id).tolist()
            for pair, gap in zip(pairs, gaps, strict=True)
        ],
        "attention_mask": [[1] * (longest - gap) + [0] * gap for gap in gaps],
    }
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = [
            [int(i >= pair.num_first) for i in range(longest)] for pair in pairs
        ]
    with torch.no_grad():
        logits: torch.Tensor = model(**{k: torch.tensor(v) for k, v in inputs.items()}).logits
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]


MIXED_LENGTHS = [7, 128, 9, 9, 31, 4, 128, 64, 9, 5]


@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_bert_two_labels", "tiny_xlmr"])
def test_packed_logits_are_those_of_the_padded_forward(
    request: pytest.FixtureRequest, checkpoint: str
) -> None:
    """Mixed lengths, in no order, some of them equal: each within 1e-5."""
    folder = request.getfixturevalue(checkpoint)
    encoder = load(folder)
    shape = encoder.architecture
    pairs = random_pairs(
        MIXED_LENGTHS, vocab_size=shape.vocab_size, num_types=shape.type_vocab_size
    )
    expected = reference_logits(folder, pairs, shape.pad_token_id)
    torch.testing.assert_close(torch.tensor(encoder.logits(pairs)), expected, atol=1e-5, rtol=0)


def test_roberta_has_types_and_positions_of_its_own(tmp_path: Path) -> None:
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
    make_tokenizer(tmp_path)
    encoder = load(tmp_path)
    pairs = random_pairs(MIXED_LENGTHS, vocab_size=90, num_types=2)
    expected = reference_logits(tmp_path, pairs, 0)
    torch.testing.assert_close(torch.tensor(encoder.logits(pairs)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "activation",
    [
        "gelu",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "gelu_python",
        "gelu_python_tanh",
        "quick_gelu",
        "relu",
        "relu6",
        "silu",
        "swish",
        "tanh",
        "sigmoid",
        "mish",
        "linear",
    ],
)
def test_activations_are_those_of_transformers(
    tiny_bert: Path, tmp_path: Path, activation: str
) -> None:
    """Whatever name config.json has for it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": activation}
    (folder / "config.json").write_text(json.dumps(config))
    pairs = random_pairs([12, 30], vocab_size=60, num_types=2)
    expected = reference_logits(folder, pairs, 0)
    torch.testing.assert_close(
        torch.tensor(load(folder).logits(pairs)), expected, atol=2e-5, rtol=0
    )


def test_one_layer_is_enough(make_tiny_bert: Callable[..., Path]) -> None:
    """A model whose first layer is its last."""
    folder = make_tiny_bert(num_hidden_layers=1)
    pairs = random_pairs([12, 30], vocab_size=60, num_types=2)
    torch.testing.assert_close(
        torch.tensor(load(folder).logits(pairs)),
        reference_logits(folder, pairs, 0),
        atol=1e-5,
        rtol=0,
    )


def test_a_score_does_not_depend_on_the_company(tiny_xlmr: Path) -> None:
    """Alone, in a large batch and in another order: the same within 1e-5."""
    encoder = load(tiny_xlmr)
    pairs = random_pairs(MIXED_LENGTHS, vocab_size=90, num_types=1)
    together = encoder.logits(pairs)
    assert encoder.logits(pairs[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    assert [encoder.logits([pair])[0] for pair in pairs] == pytest.approx(together, abs=1e-5)


def test_half_precision_is_near_and_makes_no_ties(tiny_xlmr: Path) -> None:
    """bfloat16 layers under float32 residuals and a float32 head."""
    pairs = random_pairs(MIXED_LENGTHS, vocab_size=90, num_types=1)
    exact, half = load(tiny_xlmr).logits(pairs), load(tiny_xlmr, torch.bfloat16).logits(pairs)
    assert len(set(half)) == len(pairs)
    assert half == pytest.approx(exact, abs=0.15)


def test_workers_share_weights_and_run_at_once(tiny_bert: Path) -> None:
    """Two workers in two threads give what one gives."""
    from concurrent.futures import ThreadPoolExecutor

    encoder = load(tiny_bert)
    pairs = random_pairs(MIXED_LENGTHS, vocab_size=60, num_types=2)
    expected = encoder.logits(pairs)
    workers = [encoder.open_worker() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        rounds = [pool.submit(worker, pairs) for _ in range(20) for worker in workers]
    assert all(done.result() == expected for done in rounds)


def make_tokenizer(folder: Path) -> None:
    """Write a tokenizer for checkpoints whose pairs are made by hand."""
    from transformers import BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    vocab = {token: i for i, token in enumerate(tokens)}
    BertTokenizer(vocab=vocab, model_max_length=128).save_pretrained(folder)
