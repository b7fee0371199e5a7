"""BERT, RoBERTa and XLM-RoBERTa on packed rows: bodies, and classifiers made of a body and a head.

Where only the first token is read, as a score is, the last layer is computed for that token alone:
its query, output and feed-forward for one row per sequence, and no keys or values at all (see
`attention`). That is exact.

Jina's XLM-RoBERTa may have rotary positions in place of a table of them; nothing else differs.

Each step can be called and timed by itself: `embed`, `layer`, `last_layer` (the last one, for first
tokens), `head`; a classifier's `forward` is all of them in a row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

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
from sie_core.local.rotary import Rotation, interleaved, rotations_of
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
        f"{body}.embeddings.token_type_embeddings.weight": (a.type_vocab_size, a.hidden_size),
        f"{body}.embeddings.LayerNorm.weight": (a.hidden_size,),
        f"{body}.embeddings.LayerNorm.bias": (a.hidden_size,),
    }
    if not a.rotary_layers:
        positions = f"{body}.embeddings.position_embeddings.weight"
        shapes[positions] = (a.max_positions, a.hidden_size)
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
        self._architecture = architecture
        self._num_heads = architecture.num_heads
        self._activation = architecture.hidden_act
        self._dtype = placement.dtype
        self._residual_dtype = placement.residual_dtype
        body = body_name(architecture)
        embeddings = f"{body}.embeddings"
        self._words, self._types = (
            placement.residual(weights[f"{embeddings}.{kind}_embeddings.weight"])
            for kind in ("word", "token_type")
        )
        self._positions = None
        if not architecture.rotary_layers:
            positions = weights[f"{embeddings}.position_embeddings.weight"]
            self._positions = placement.residual(positions)
        self._embedding_norm = LayerNorm.read(
            weights,
            f"{embeddings}.LayerNorm",
            architecture.layer_norm_eps,
            convert=placement.residual,
        )
        # All but the last layer, which runs on few rows and in parts, are packed when read.
        *others, last = (
            f"{body}.encoder.layer.{index}" for index in range(architecture.num_layers)
        )
        read = partial(_read_layer, architecture, weights, placement)
        self._layers = [_packed(read(name)) for name in others]
        self._layers.append(read(last))

    @property
    def num_layers(self) -> int:
        """Return the number of layers, the last one included."""
        return len(self._layers)

    def first_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden state of every sequence's first token; [sequences, hidden]."""
        rotation = self.rotation(inputs)
        hidden = self._run(self.num_layers - 1, rotation, inputs, attention)
        return self.last_layer(hidden, inputs, attention, rotation)

    def all_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden states of all tokens; [total, hidden]."""
        return self._run(self.num_layers, self.rotation(inputs), inputs, attention)

    def rotation(self, inputs: PackedInputs) -> Rotation | None:
        """Return the rotation of a batch's positions, the same in every layer; None without."""
        return next(iter(rotations_of(inputs.position_ids, self._architecture).values()), None)

    def embed(self, inputs: PackedInputs) -> torch.Tensor:
        """Return the embeddings of all tokens; [total, hidden]."""
        embedding = nn.functional.embedding
        hidden = embedding(inputs.token_ids, self._words)
        if self._positions is not None:
            hidden += embedding(inputs.position_ids, self._positions)
        if len(self._types) > 1:
            hidden += embedding(inputs.type_ids, self._types)
        else:
            hidden += self._types[0]
        return self._embedding_norm(hidden)

    def layer(
        self,
        index: int,
        hidden: torch.Tensor,
        attention: Attention,
        rotation: Rotation | None = None,
    ) -> torch.Tensor:
        """Run one layer for all tokens. The rows given are overwritten."""
        layer = self._layers[index]
        qkv = self._heads(layer.qkv(hidden.to(self._dtype)), _QKV)
        if rotation is not None:
            rotation.apply(qkv[:, :2])
        return self._finish(layer, hidden, attention.full(qkv))

    def last_layer(
        self,
        hidden: torch.Tensor,
        inputs: PackedInputs,
        attention: Attention,
        rotation: Rotation | None = None,
    ) -> torch.Tensor:
        """Run the last layer for the first token of every sequence; [sequences, hidden]."""
        layer = self._layers[-1]
        query, key, value = (layer.qkv.part(i, _QKV) for i in range(_QKV))
        first = hidden.index_select(0, inputs.first_rows)
        queries = self._heads(query(first.to(self._dtype)), 1)[:, 0]
        if rotation is None:
            attended = attention.first_unprojected(queries, hidden, key, value)
            return self._finish(layer, first, attended)
        projected = hidden.to(self._dtype)
        keys, values = (self._heads(linear(projected), 1) for linear in (key, value))
        rotation.apply(keys)  # a first token's query stays: its position is 0
        return self._finish(layer, first, attention.first(queries, keys[:, 0], values[:, 0]))

    def _run(
        self,
        count: int,
        rotation: Rotation | None,
        inputs: PackedInputs,
        attention: Attention,
    ) -> torch.Tensor:
        """Run the first `count` layers for all tokens."""
        hidden = self.embed(inputs)
        for index in range(count):
            hidden = self.layer(index, hidden, attention, rotation)
        return hidden

    def _heads(self, projected: torch.Tensor, count: int) -> torch.Tensor:
        """View [total, count * hidden] as [total, count, heads, head size]."""
        return projected.view(len(projected), count, self._num_heads, -1)

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

    def with_linears(self, change: Callable[[Sequence[str], Linear], Linear]) -> Self:
        """Return the same classifier with other linear layers; all else is shared.

        Args:
            change: Takes the names that a layer was read from, and the layer; returns another.
        """
        twin = copy.copy(self)
        body = f"{body_name(self._architecture)}.encoder.layer"
        twin._layers = [  # noqa: SLF001
            replace(
                layer,
                qkv=change(_attention_names(f"{body}.{i}"), layer.qkv),
                attention_out=change([f"{body}.{i}.attention.output.dense"], layer.attention_out),
                up=change([f"{body}.{i}.intermediate.dense"], layer.up),
                down=change([f"{body}.{i}.output.dense"], layer.down),
            )
            for i, layer in enumerate(self._layers)
        ]
        dense, classifier = head_names(self._architecture)
        twin._dense = change([dense], self._dense)  # noqa: SLF001
        twin._classifier = change([classifier], self._classifier)  # noqa: SLF001
        return twin

    def head(self, first: torch.Tensor) -> torch.Tensor:
        """Return the logits of first tokens, in float32."""
        return self._classifier(self._head_activation(self._dense(first.float())))


def _read_layer(
    architecture: Architecture, weights: Weights, placement: Placement, name: str
) -> BertLayer:
    weight, residual, eps = placement.weight, placement.residual, architecture.layer_norm_eps
    qkv = Linear.read(weights, *_attention_names(name), convert=weight)
    if architecture.rotary_layers:
        qkv = interleaved(qkv, architecture.num_heads)
    return BertLayer(
        qkv=qkv,
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
