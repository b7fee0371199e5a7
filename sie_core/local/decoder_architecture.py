"""`DecoderArchitecture`: the shape of a causal language model, read from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.architecture import Activation
from sie_core.local.tokenization import read_tokenizer_config
from sie_core.models.checkpoint import CONFIG
from sie_core.models.sources import ModelFiles

DecoderType = Literal["gemma", "qwen2", "qwen3"]
"""The `model_type`s of causal language models that have a forward pass here."""

_DEFAULTS: dict[DecoderType, dict[str, Any]] = {
    "gemma": {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    "qwen2": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "attention_bias": False,  # and yet queries, keys and values always have one
    },
}
_DEFAULTS["qwen3"] = _DEFAULTS["qwen2"] | {"head_dim": 128}
_RMS_NORM_EPS = 1e-6
_ROPE_THETA = 10_000.0

_ACTIVATIONS: dict[DecoderType, dict[str, Activation]] = {
    # Every released Gemma means the approximation by tanh, whichever name it has for it.
    "gemma": {"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    "qwen2": {"silu": "silu"},
    "qwen3": {"silu": "silu"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderArchitecture:
    """The shape of one causal language model.

    Attributes:
        model_type: `gemma`, `qwen2` or `qwen3`.
        vocab_size: Rows of the token embedding.
        hidden_size: Numbers per token.
        num_layers: Transformer layers.
        num_heads: Query heads per layer.
        num_key_value_heads: Key and value heads; each serves as many query heads.
        head_size: Numbers per head.
        intermediate_size: Width of each half of the gated feed-forward.
        hidden_act: The activation of its gate.
        norm_eps: Added to the mean square in every RMSNorm.
        rope_theta: The base of the rotary frequencies.
        qkv_bias: Whether queries, keys and values have a bias.
        out_bias: Whether what follows attention has one.
        is_tied: Whether the vocabulary's logits are products with the token embedding.
        max_length: The most tokens of a sequence.
    """

    model_type: DecoderType
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    hidden_act: Activation
    norm_eps: float
    rope_theta: float
    qkv_bias: bool
    out_bias: bool
    is_tied: bool
    max_length: int

    @property
    def has_head_norms(self) -> bool:
        """Return whether every query head and key head is normalised."""
        return self.model_type == "qwen3"

    @property
    def norm_offset(self) -> float:
        """Return what is added to the weights of all RMSNorms: Gemma's are kept around zero."""
        return 1.0 if self.model_type == "gemma" else 0.0

    @property
    def embedding_scale(self) -> float:
        """Return what token embeddings are multiplied by."""
        return float(self.hidden_size**0.5) if self.model_type == "gemma" else 1.0

    @classmethod
    def read(cls, files: ModelFiles) -> DecoderArchitecture:
        """Read config.json.

        Raises:
            UnsupportedModelError: There is no forward pass for such a model; the message says
                which part of it is unknown.
            ModelLoadError: config.json cannot be read, or its numbers make no sense.
        """
        try:
            content = json.loads((files.folder / CONFIG).read_text(encoding="utf-8"))
            return cls._of(content, files.folder)
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as exc:
            msg = f"config.json of {files.name} in {files.folder} could not be read: {exc!r}"
            raise ModelLoadError(msg) from exc

    @classmethod
    def _of(cls, content: Mapping[str, Any], folder: Path) -> DecoderArchitecture:
        model_type: Any = content.get("model_type")
        if model_type not in get_args(DecoderType):
            msg = (
                f"{folder} has the architecture {model_type!r}; causal language models that run "
                f"here are {', '.join(get_args(DecoderType))}"
            )
            raise UnsupportedModelError(msg)
        config = _DEFAULTS[model_type] | {k: v for k, v in content.items() if v is not None}
        _refuse_windows(config)
        hidden_size, num_heads = (
            _count(config, "hidden_size"),
            _count(config, "num_attention_heads"),
        )
        if config["head_dim"] is None:
            config["head_dim"] = hidden_size // num_heads
        sizes = {
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "num_key_value_heads": _count(config, "num_key_value_heads"),
            "head_size": _count(config, "head_dim"),
        }
        if num_heads % sizes["num_key_value_heads"] or sizes["head_size"] % 2:
            msg = f"the heads do not fit together: {sizes}"
            raise ValueError(msg)
        return cls(
            model_type=model_type,
            vocab_size=_count(config, "vocab_size"),
            **sizes,
            num_layers=_count(config, "num_hidden_layers"),
            intermediate_size=_count(config, "intermediate_size"),
            hidden_act=_activation(model_type, config["hidden_act"]),
            norm_eps=float(config.get("rms_norm_eps", _RMS_NORM_EPS)),
            rope_theta=_theta(config),
            qkv_bias=model_type == "qwen2" or bool(config["attention_bias"]),
            out_bias=bool(config["attention_bias"]) and model_type != "qwen2",
            is_tied=bool(config["tie_word_embeddings"]),
            max_length=_max_length(config, folder),
        )


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{key} must be a positive integer, but is {value!r}"
        raise ValueError(msg)
    return value


def _activation(model_type: DecoderType, name: str) -> Activation:
    known = _ACTIVATIONS[model_type]
    if name not in known:
        msg = (
            f"the model's hidden_act is {name!r}; of a {model_type} this engine computes "
            f"{', '.join(known)}"
        )
        raise UnsupportedModelError(msg)
    return known[name]


def _refuse_windows(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError where a token does not see just what is before it."""
    kinds = set(config.get("layer_types") or ["full_attention"])
    if config.get("use_sliding_window") or kinds != {"full_attention"}:
        msg = "the model attends within sliding windows, which this engine does not compute"
        raise UnsupportedModelError(msg)
    if config.get("use_bidirectional_attention"):
        msg = "the model attends in both directions: it is no causal language model"
        raise UnsupportedModelError(msg)


def _theta(config: Mapping[str, Any]) -> float:
    """Return the rotary base, from the spelling of transformers 4 or 5.

    Raises:
        UnsupportedModelError: The frequencies are scaled by some other rule than none.
    """
    parameters = (config.get("rope_parameters") or {}) | (config.get("rope_scaling") or {})
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type != "default":
        msg = f"the model's rotary positions are of type {rope_type!r}; supported is 'default'"
        raise UnsupportedModelError(msg)
    return float(parameters.get("rope_theta") or config.get("rope_theta") or _ROPE_THETA)


def _max_length(config: Mapping[str, Any], folder: Path) -> int:
    positions = _count(config, "max_position_embeddings")
    named = read_tokenizer_config(folder).get("model_max_length") or positions
    return int(min(positions, named))
