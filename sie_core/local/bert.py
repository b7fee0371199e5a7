"""BERT, RoBERTa and XLM-RoBERTa on packed rows: bodies, and classifiers made of a body and a head.

Where only the first token is read, as a score is, the last layer is computed for that token alone:
its query, output and feed-forward for one row per sequence, and no keys or values at all (see
`attention`). That is exact.

Each step can be called and timed by itself: `embed`, `layer`, `last_layer` (the last one, for first
tokens), `head`; a classifier's `forward` is all of them in a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from sie_core.local.architecture import Architecture
from sie_core.local.attention import Attention
from sie_core.local.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    PackedInputs,
    Placement,
    linear_shapes,
)
from sie_core.local.weights import Weights

_QKV = 3


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """List the tensors of such a classifier, by their names in a checkpoint."""
    a = architecture
    dense, classifier = head_names(architecture)
    return (
        body_shapes(architecture)
        | linear_shapes(dense, a.hidden_size, a.hidden_size)
        | linear_shapes(classifier, a.num_labels, a.hidden_size)
    )


def body_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """List the tensors of such a body; a pooler is none of them."""
    a, body = architecture, body_name(architecture)
    shapes: dict[str, tuple[int, ...]] = {
        f"{body}.embeddings.word_embeddings.weight": (a.vocab_size, a.hidden_size),
        f"{body}.embeddings.position_embeddings.weight": (a.max_positions, a.hidden_size),
        f"{body}.embeddings.token_type_embeddings.weight": (a.type_vocab_size, a.hidden_size),
        f"{body}.embeddings.LayerNorm.weight": (a.hidden_size,),
        f"{body}.embeddings.LayerNorm.bias": (a.hidden_size,),
    }
    for index in range(a.num_layers):
        layer = f"{body}.encoder.layer.{index}"
        for name in (*_attention_names(layer), f"{layer}.attention.output.dense"):
            shapes |= linear_shapes(name, a.hidden_size, a.hidden_size)
        shapes |= linear_shapes(f"{layer}.intermediate.dense", a.intermediate_size, a.hidden_size)
        shapes |= linear_shapes(f"{layer}.output.dense", a.hidden_size, a.intermediate_size)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.{part}": (a.hidden_size,) for part in ("weight", "bias")}
    return shapes


@dataclass(frozen=True, slots=True)
class BertLayer:
    """One transformer layer: attention and feed-forward, each with a LayerNorm after it."""

    qkv: Linear
    attention_out: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    norm: LayerNorm


class BertBody:
    """A BERT, RoBERTa or XLM-RoBERTa: hidden states of the last layer.

    Args:
        architecture: Its shape.
        weights: Its tensors, checked.
        placement: Device and number format.
    """

    def __init__(self, architecture: Architecture, weights: Weights, placement: Placement) -> None:
        self._num_heads = architecture.num_heads
        self._activation = architecture.hidden_act
        self._dtype = placement.dtype
        self._residual_dtype = placement.residual_dtype
        body, eps = body_name(architecture), architecture.layer_norm_eps
        embeddings = f"{body}.embeddings"
        self._words, self._positions, self._types = (
            placement.residual(weights[f"{embeddings}.{kind}_embeddings.weight"])
            for kind in ("word", "position", "token_type")
        )
        self._embedding_norm = LayerNorm.read(
            weights, f"{embeddings}.LayerNorm", eps, convert=placement.residual
        )
        # All but the last layer, which runs on few rows and in parts, are packed when read.
        *others, last = (
            f"{body}.encoder.layer.{index}" for index in range(architecture.num_layers)
        )
        self._layers = [_packed(_read_layer(name, eps, weights, placement)) for name in others]
        self._layers.append(_read_layer(last, eps, weights, placement))

    @property
    def num_layers(self) -> int:
        """Return the number of layers, the last one included."""
        return len(self._layers)

    def first_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden state of every sequence's first token; [sequences, hidden]."""
        return self.last_layer(self._run(self.num_layers - 1, inputs, attention), inputs, attention)

    def all_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden states of all tokens; [total, hidden]."""
        return self._run(self.num_layers, inputs, attention)

    def embed(self, inputs: PackedInputs) -> torch.Tensor:
        """Return the embeddings of all tokens; [total, hidden]."""
        embedding = nn.functional.embedding
        hidden = embedding(inputs.token_ids, self._words)
        hidden += embedding(inputs.position_ids, self._positions)
        if len(self._types) > 1:
            hidden += embedding(inputs.type_ids, self._types)
        else:
            hidden += self._types[0]
        return self._embedding_norm(hidden)

    def layer(self, index: int, hidden: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Run one layer for all tokens. The rows given are overwritten."""
        layer = self._layers[index]
        qkv = layer.qkv(hidden.to(self._dtype))
        attended = attention.full(qkv.view(len(qkv), _QKV, self._num_heads, -1))
        return self._finish(layer, hidden, attended)

    def last_layer(
        self, hidden: torch.Tensor, inputs: PackedInputs, attention: Attention
    ) -> torch.Tensor:
        """Run the last layer for the first token of every sequence; [sequences, hidden]."""
        layer = self._layers[-1]
        query, key, value = (layer.qkv.part(i, _QKV) for i in range(_QKV))
        first = hidden.index_select(0, inputs.first_rows)
        queries = query(first.to(self._dtype)).view(len(first), self._num_heads, -1)
        return self._finish(layer, first, attention.first_unprojected(queries, hidden, key, value))

    def _run(self, count: int, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Run the first `count` layers for all tokens."""
        hidden = self.embed(inputs)
        for index in range(count):
            hidden = self.layer(index, hidden, attention)
        return hidden

    def _finish(
        self, layer: BertLayer, hidden: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        """Run what follows a layer's attention; needs no sequences. Overwrites `hidden`."""
        out = layer.attention_out(attended.flatten(1).to(self._dtype))
        hidden = layer.attention_norm(hidden.add_(out))
        out = layer.down(layer.up.activated(hidden.to(self._dtype), self._activation))
        return layer.norm(hidden.add_(out))


class BertClassifier(BertBody):
    """The same with a classification head."""

    def __init__(self, architecture: Architecture, weights: Weights, placement: Placement) -> None:
        super().__init__(architecture, weights, placement)
        self._head_activation = ACTIVATIONS[architecture.head_act]
        dense, classifier = head_names(architecture)
        self._dense = Linear.read(weights, dense, convert=placement.exact)
        self._classifier = Linear.read(weights, classifier, convert=placement.exact)

    def forward(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the float32 logits of a batch; [sequences, labels]."""
        return self.head(self.first_tokens(inputs, attention))

    def head(self, first: torch.Tensor) -> torch.Tensor:
        """Return the logits of first tokens, in float32."""
        return self._classifier(self._head_activation(self._dense(first.float())))


def _read_layer(name: str, eps: float, weights: Weights, placement: Placement) -> BertLayer:
    weight, residual = placement.weight, placement.residual
    return BertLayer(
        qkv=Linear.read(weights, *_attention_names(name), convert=weight),
        attention_out=Linear.read(weights, f"{name}.attention.output.dense", convert=weight),
        attention_norm=LayerNorm.read(
            weights, f"{name}.attention.output.LayerNorm", eps, convert=residual
        ),
        up=Linear.read(weights, f"{name}.intermediate.dense", convert=weight),
        down=Linear.read(weights, f"{name}.output.dense", convert=weight),
        norm=LayerNorm.read(weights, f"{name}.output.LayerNorm", eps, convert=residual),
    )


def _packed(layer: BertLayer) -> BertLayer:
    return replace(
        layer,
        qkv=layer.qkv.packed(),
        attention_out=layer.attention_out.packed(),
        up=layer.up.packed(),
        down=layer.down.packed(),
    )


def body_name(architecture: Architecture) -> str:
    """Return what stands before the names of a body's tensors."""
    return "bert" if architecture.model_type == "bert" else "roberta"


def head_names(architecture: Architecture) -> tuple[str, str]:
    """Return the names of the head's dense layer and of its last layer."""
    if architecture.model_type == "bert":
        return "bert.pooler.dense", "classifier"
    return "classifier.dense", "classifier.out_proj"


def layer_names(architecture: Architecture, index: int) -> list[str]:
    """Return the names of a layer's linear layers and LayerNorms, in the order of computing."""
    layer = f"{body_name(architecture)}.encoder.layer.{index}"
    return [
        *_attention_names(layer),
        f"{layer}.attention.output.dense",
        f"{layer}.attention.output.LayerNorm",
        f"{layer}.intermediate.dense",
        f"{layer}.output.dense",
        f"{layer}.output.LayerNorm",
    ]


def _attention_names(layer: str) -> list[str]:
    return [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
