"""What config.json says, with transformers' own defaults where it is silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.architecture import Architecture, RotaryLayer
from sie_core.models.sources import ModelFiles


def read(folder: Path, config: dict[str, Any]) -> Architecture:
    """Read an architecture from a config.json of this content."""
    (folder / "config.json").write_text(json.dumps(config))
    return Architecture.read(ModelFiles(name="test/model", folder=folder, source="folder"))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_silence_means_transformers_defaults(tmp_path: Path, model_type: str) -> None:
    """A configuration that names only its type is what transformers makes of it."""
    from transformers import AutoConfig

    expected = AutoConfig.for_model(model_type)
    got = read(tmp_path, {"model_type": model_type})
    assert got.vocab_size == expected.vocab_size
    assert got.hidden_size == expected.hidden_size
    assert got.num_layers == expected.num_hidden_layers
    assert got.num_heads == expected.num_attention_heads
    assert got.intermediate_size == expected.intermediate_size
    assert got.hidden_act == expected.hidden_act
    assert got.max_positions == expected.max_position_embeddings
    assert got.type_vocab_size == expected.type_vocab_size
    assert got.layer_norm_eps == expected.layer_norm_eps
    assert got.pad_token_id == expected.pad_token_id
    assert got.num_labels == expected.num_labels
    assert got.position_offset == (0 if model_type == "bert" else expected.pad_token_id + 1)


def test_modernberts_silence_means_transformers_defaults(tmp_path: Path) -> None:
    """The alternation of windows and the rotary bases too."""
    from transformers import ModernBertConfig

    expected = ModernBertConfig()
    got = read(tmp_path, {"model_type": "modernbert"})
    assert got.vocab_size == expected.vocab_size
    assert got.num_layers == expected.num_hidden_layers
    assert got.intermediate_size == expected.intermediate_size
    assert got.layer_norm_eps == expected.norm_eps
    assert got.max_positions == expected.max_position_embeddings
    assert (got.norm_bias, got.attention_bias, got.mlp_bias, got.head_bias) == (False,) * 4
    assert (got.pooling, got.head_act) == ("cls", "gelu")
    for kind, layer in zip(expected.layer_types, got.rotary_layers, strict=True):
        assert layer.theta == expected.rope_parameters[kind]["rope_theta"]
        is_sliding = kind == "sliding_attention"
        assert layer.window == (expected.sliding_window if is_sliding else None)


def test_modernbert_is_read_in_the_spelling_of_transformers_4_and_5(tmp_path: Path) -> None:
    """`global_rope_theta` and `rope_parameters`, a pattern and a list of layer types."""
    old = {
        "num_hidden_layers": 3,
        "global_attn_every_n_layers": 2,
        "local_attention": 64,
        "global_rope_theta": 80_000.0,
        "local_rope_theta": 5_000.0,
    }
    new = {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "local_attention": 64,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 80_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
        },
    }
    wide, narrow = RotaryLayer(window=None, theta=80_000.0), RotaryLayer(window=32, theta=5_000.0)
    for config in (old, new):
        got = read(tmp_path, {"model_type": "modernbert"} | config)
        assert got.rotary_layers == (wide, narrow, wide)


def test_xlmr_reads_as_many_tokens_as_its_positions_allow(tmp_path: Path) -> None:
    """Two of bge-reranker-v2-m3's 8194 positions lie before a text; the tokenizer may want less."""
    config = {"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}
    assert read(tmp_path, config).max_length == 8192
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert read(tmp_path, config).max_length == 512


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "bert", "hidden_act": "xielu"}, "hidden_act is 'xielu'.*gelu, "),
        (
            {"model_type": "modernbert", "classifier_activation": "laplace"},
            "classifier_activation is 'laplace'",
        ),
        ({"model_type": "modernbert", "classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        (
            {"model_type": "modernbert", "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rotary positions are of type 'yarn'",
        ),
        (
            {"model_type": "bert", "position_embedding_type": "relative_key"},
            "position_embedding_type of test/model is 'relative_key'.*'absolute'",
        ),
        ({"model_type": "bert", "is_decoder": True}, "test/model is a decoder"),
        ({"model_type": "t5"}, "architecture 't5'.*bert, modernbert, roberta, xlm-roberta"),
        ({"model_type": "bert", "num_labels": 3}, "3 labels"),
    ],
)
def test_what_has_no_forward_pass_here_is_named(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    """No unknown activation, pooling or kind of position is computed as if it were another."""
    with pytest.raises(UnsupportedModelError, match=complaint):
        read(tmp_path, config)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive integer, but is 0"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers must be a positive integer"),
        ({"hidden_size": 100, "num_attention_heads": 12}, "100 is no multiple of 12 heads"),
        ({"layer_norm_eps": "small"}, "could not convert string to float"),
    ],
)
def test_numbers_that_make_no_sense_are_named(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    """A broken config.json is a ModelLoadError, before any weight is read."""
    with pytest.raises(ModelLoadError, match=complaint):
        read(tmp_path, {"model_type": "bert"} | change)
