"""`Architecture`: what a model folder says about the model, read once and checked.

Everything that computes takes an `Architecture` and a `Weights`, and reads no file of its own::

    architecture = Architecture.read(files)
    weights = Weights.open(files, allow_pickle=False)
    weights.check(bert.tensor_shapes(architecture))

Keys that a config.json does not have count as transformers' own defaults for that model type, since
that is what the model was trained and saved with. No code of the model is ever run, whatever its
configuration names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.tokenization import read_tokenizer_config
from sie_core.models.checkpoint import CONFIG
from sie_core.models.recognition import count_labels
from sie_core.models.sources import ModelFiles
from sie_core.types import ScoreSpace

ModelType = Literal["bert", "modernbert", "roberta", "xlm-roberta"]
"""The `model_type`s that have a forward pass here."""

Activation = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh", "sigmoid", "mish", "relu6", "linear"
]
"""The activation functions, each under one name."""

Pooling = Literal["cls", "mean"]

_ACTIVATION_NAMES: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "linear": "linear",
    "mish": "mish",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""transformers' names; it has several for the same function, computed in other ways."""

_SCORE_SPACES: dict[str, ScoreSpace] = {
    "torch.nn.modules.linear.Identity": "raw",
    "torch.nn.Identity": "raw",
    "torch.nn.modules.activation.Sigmoid": "probability",
    "torch.nn.Sigmoid": "probability",
}

_ROTARY_BASE = 10_000.0
"""The base of rotary frequencies where a configuration names none."""

_UNSET_MODEL_MAX_LENGTH = 10**9
"""transformers writes a huge number where a tokenizer names no maximum."""

_BERT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_MODERNBERT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "pad_token_id": 50283,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "classifier_pooling": "cls",
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}
_DEFAULTS: dict[ModelType, dict[str, Any]] = {
    "bert": _BERT_DEFAULTS,
    "modernbert": _MODERNBERT_DEFAULTS,
    "roberta": _BERT_DEFAULTS | {"vocab_size": 50265, "pad_token_id": 1},
    "xlm-roberta": _BERT_DEFAULTS | {"pad_token_id": 1},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryLayer:
    """How one layer with rotary positions attends.

    Attributes:
        window: A token sees those at most this far away on either side; None for all.
        theta: The base of the rotary frequencies.
    """

    window: int | None
    theta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The shape of one encoder or sequence classifier, and how a classifier's scores are meant.

    Attributes:
        model_type: `bert`, `roberta`, `xlm-roberta` or `modernbert`.
        vocab_size: Rows of the token embedding.
        hidden_size: Numbers per token.
        num_layers: Transformer layers.
        num_heads: Attention heads per layer; each has `head_size` numbers.
        intermediate_size: Width of the feed-forward part (of each half of it, for ModernBERT).
        hidden_act: The feed-forward activation.
        layer_norm_eps: Added to the variance in every LayerNorm.
        max_positions: Rows of the position embedding; where positions are rotary, those that the
            model was trained for.
        position_offset: The position of the first token: 0, or behind the padding's where RoBERTa
            has a table of them.
        type_vocab_size: Rows of the token type embedding; 0 where there is none.
        pad_token_id: The padding token.
        num_labels: 1, or 2 of which the second means relevant; 0 for an encoder.
        max_length: The most tokens of a pair: what the tokenizer names and the positions allow.
        score_space: What the model's own configuration says its scores are.
        rotary_layers: One for each layer, where positions are rotary (ModernBERT's and those of
            some of Jina's); empty where a table gives them.
        norm_bias: Whether LayerNorms have a bias; always so but for ModernBERT.
        attention_bias: The same for the attention's linear layers.
        mlp_bias: The same for the feed-forward's.
        head_bias: The same for the classification head's dense layer.
        head_act: The activation of that dense layer.
        pooling: What the head reads: the first token, or the mean of all.
    """

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    hidden_act: Activation
    layer_norm_eps: float
    max_positions: int
    position_offset: int
    type_vocab_size: int
    pad_token_id: int
    num_labels: int
    max_length: int
    score_space: ScoreSpace
    rotary_layers: tuple[RotaryLayer, ...] = ()
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    head_bias: bool = True
    head_act: Activation = "tanh"
    pooling: Pooling = "cls"

    @property
    def head_size(self) -> int:
        """Return the numbers per attention head."""
        return self.hidden_size // self.num_heads

    @property
    def flops_per_token(self) -> int:
        """Return the floating-point operations of all linear layers for one token."""
        num_mlp = 3 if self.model_type == "modernbert" else 2  # the gated one has a third matrix
        weights = 4 * self.hidden_size + num_mlp * self.intermediate_size
        return 2 * self.num_layers * self.hidden_size * weights

    @classmethod
    def read(cls, files: ModelFiles, *, is_classifier: bool = True) -> Architecture:
        """Read config.json, and beside it what bounds the length and what the scores are.

        Args:
            files: The model's folder.
            is_classifier: Whether a head is read too; an encoder has no labels to speak of.

        Raises:
            UnsupportedModelError: There is no forward pass for such a model; the message says
                which part of it is unknown.
            ModelLoadError: config.json cannot be read, or its numbers make no sense.
        """
        config = _read_config(files)
        num_labels = count_labels(config.content) if is_classifier else 0
        try:
            sizes = _read_sizes(config)
            fields = _read_modernbert(config) if config.model_type == "modernbert" else {}
            if _is_rotary_xlmr(config):
                fields = _read_rotary_xlmr(config, sizes)
        except (KeyError, TypeError, ValueError) as exc:
            msg = f"config.json of {files.name} in {files.folder} could not be read: {exc!r}"
            raise ModelLoadError(msg) from exc
        return cls(
            **(sizes | fields),
            model_type=config.model_type,
            num_labels=num_labels,
            max_length=_read_max_length(sizes | fields, files.folder),
            score_space=_read_score_space(config, files.folder) if is_classifier else "raw",
        )


@dataclass(frozen=True, slots=True)
class _Config:
    """config.json, with transformers' defaults where it says nothing."""

    model_type: ModelType
    content: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        value = self.content.get(key)
        return _DEFAULTS[self.model_type][key] if value is None else value

    def get(self, key: str) -> Any:
        """Return what the file itself says, else None."""
        return self.content.get(key)

    def count(self, key: str) -> int:
        """Return an integer of at least 1."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            msg = f"{key} must be a positive integer, but is {value!r}"
            raise ValueError(msg)
        return value

    def activation(self, key: str) -> Activation:
        """Return the one name of an activation function.

        Raises:
            UnsupportedModelError: It is not one of those this engine computes.
        """
        name = self[key]
        if name not in _ACTIVATION_NAMES:
            msg = (
                f"the model's {key} is {name!r}; this engine computes "
                f"{', '.join(sorted(_ACTIVATION_NAMES))}"
            )
            raise UnsupportedModelError(msg)
        return _ACTIVATION_NAMES[name]


def _read_config(files: ModelFiles) -> _Config:
    try:
        content = json.loads((files.folder / CONFIG).read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (OSError, ValueError, AttributeError) as exc:
        msg = f"config.json of {files.name} in {files.folder} could not be read: {exc}"
        raise ModelLoadError(msg) from exc
    if model_type not in get_args(ModelType):
        msg = (
            f"{files.name} has the architecture {model_type!r}; this engine computes "
            f"encoders and sequence classifiers of the types {', '.join(get_args(ModelType))}"
        )
        raise UnsupportedModelError(msg)
    if content.get("is_decoder"):
        msg = f"{files.name} is a decoder (is_decoder in its config.json), not an encoder"
        raise UnsupportedModelError(msg)
    positions = content.get("position_embedding_type") or "absolute"
    known = {"absolute", "rotary"} if model_type == "xlm-roberta" else {"absolute"}
    if model_type != "modernbert" and positions not in known:
        msg = (
            f"the position_embedding_type of {files.name} is {positions!r}; this engine computes "
            f"{', '.join(map(repr, sorted(known)))}"
        )
        raise UnsupportedModelError(msg)
    return _Config(model_type, content)


def _read_sizes(config: _Config) -> dict[str, Any]:
    """Return what all the families have."""
    is_modern = config.model_type == "modernbert"
    pad_token_id = int(config["pad_token_id"])
    sizes: dict[str, Any] = {
        "vocab_size": config.count("vocab_size"),
        "hidden_size": config.count("hidden_size"),
        "num_layers": config.count("num_hidden_layers"),
        "num_heads": config.count("num_attention_heads"),
        "intermediate_size": config.count("intermediate_size"),
        "hidden_act": config.activation("hidden_activation" if is_modern else "hidden_act"),
        "layer_norm_eps": float(config["norm_eps" if is_modern else "layer_norm_eps"]),
        "max_positions": config.count("max_position_embeddings"),
        # RoBERTa's positions start behind the padding's.
        "position_offset": pad_token_id + 1 if config.model_type.endswith("roberta") else 0,
        "type_vocab_size": 0 if is_modern else config.count("type_vocab_size"),
        "pad_token_id": pad_token_id,
    }
    if sizes["hidden_size"] % sizes["num_heads"]:
        msg = "hidden_size {hidden_size} is no multiple of {num_heads} heads".format_map(sizes)
        raise ValueError(msg)
    return sizes


def _is_rotary_xlmr(config: _Config) -> bool:
    is_rotary = config.get("position_embedding_type") == "rotary"
    return is_rotary and config.model_type == "xlm-roberta"


def _read_rotary_xlmr(config: _Config, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Jina's XLM-RoBERTa has in place of a table of positions.

    Its max_position_embeddings still counts those that a table has before a text's first token.
    """
    base = config.get("rotary_emb_base")
    layer = RotaryLayer(window=None, theta=_ROTARY_BASE if base is None else float(base))
    return {
        "rotary_layers": (layer,) * sizes["num_layers"],
        "max_positions": sizes["max_positions"] - sizes["position_offset"],
        "position_offset": 0,
    }


def _read_modernbert(config: _Config) -> dict[str, Any]:
    """Return what only ModernBERT has, from the spelling of transformers 4 or 5."""
    pooling = config["classifier_pooling"]
    if pooling not in get_args(Pooling):
        msg = f"the model's classifier_pooling is {pooling!r}; this engine computes cls and mean"
        raise UnsupportedModelError(msg)
    return {
        "rotary_layers": _read_rotary_layers(config),
        "norm_bias": bool(config["norm_bias"]),
        "attention_bias": bool(config["attention_bias"]),
        "mlp_bias": bool(config["mlp_bias"]),
        "head_bias": bool(config["classifier_bias"]),
        "head_act": config.activation("classifier_activation"),
        "pooling": pooling,
    }


def _read_rotary_layers(config: _Config) -> tuple[RotaryLayer, ...]:
    num_layers, every = (
        config.count("num_hidden_layers"),
        config.count("global_attn_every_n_layers"),
    )
    kinds = config.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(num_layers)
    ]
    layers = {
        "full_attention": RotaryLayer(window=None, theta=_read_theta(config, "full_attention")),
        "sliding_attention": RotaryLayer(
            window=config.count("local_attention") // 2,
            theta=_read_theta(config, "sliding_attention"),
        ),
    }
    if len(kinds) != num_layers:
        msg = f"layer_types names {len(kinds)} layers of {num_layers}"
        raise ValueError(msg)
    return tuple(layers[kind] for kind in kinds)


def _read_theta(config: _Config, kind: str) -> float:
    """Return the rotary base of one kind of layer.

    Raises:
        UnsupportedModelError: The frequencies are scaled by some other rule than none.
    """
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    scaling = parameters | (config.get("rope_scaling") or {})
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type != "default":
        msg = f"the model's rotary positions are of type {rope_type!r}; supported is 'default'"
        raise UnsupportedModelError(msg)
    name = "global_rope_theta" if kind == "full_attention" else "local_rope_theta"
    return float(parameters.get("rope_theta") or config[name])


def _read_max_length(sizes: Mapping[str, Any], folder: Path) -> int:
    """Return the most tokens of a pair: what the tokenizer says and the positions allow."""
    positions: int = sizes["max_positions"] - sizes["position_offset"]
    named = read_tokenizer_config(folder).get("model_max_length", _UNSET_MODEL_MAX_LENGTH)
    return int(min(positions, named))


def _read_score_space(config: _Config, folder: Path) -> ScoreSpace:
    """Resolve what a model's scores are, in the order that sentence-transformers does.

    First `config_sentence_transformers.json`, then `config.json` (`sentence_transformers`, then
    the older `sbert_ce_default_activation_function`); where none says, a sigmoid. Two labels are
    always a probability unless the configuration says otherwise.

    Raises:
        UnsupportedModelError: The configuration names an activation other than these two.
    """
    path = folder / "config_sentence_transformers.json"
    named = (
        json.loads(path.read_text(encoding="utf-8")).get("activation_fn") if path.exists() else None
    )
    named = (
        named
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    if named is None:
        return "probability"
    if named not in _SCORE_SPACES:
        msg = (
            f"the model's configuration asks for the activation {named!r}; supported are "
            f"{', '.join(_SCORE_SPACES)}"
        )
        raise UnsupportedModelError(msg)
    return _SCORE_SPACES[named]
