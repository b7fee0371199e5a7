"""ModernBERT on packed rows: bodies, and classifiers made of a body and a head.

LayerNorms stand before attention and feed-forward, positions are rotary, the feed-forward is gated,
and most layers see a window of tokens only (Warner et al. 2024, arXiv:2412.13663). Where the head
reads the first token and the last layer sees everything, that layer is computed for the first
tokens alone; where the head reads the mean of all tokens, it is computed in full.

Each step can be called and timed by itself: `embed`, `layer`, `last_layer` (the last one, for what
the head reads), `head`; a classifier's `forward` is all of them in a row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from sie_core.local.rotary import Rotations, interleaved, rotations_of
from sie_core.local.weights import Weights

_QKV = 3


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """List the tensors of such a classifier, by their names in a checkpoint."""
    a = architecture
    return (
        body_shapes(architecture)
        | _norm_shapes("head.norm", architecture)
        | linear_shapes("head.dense", a.hidden_size, a.hidden_size, has_bias=a.head_bias)
        | linear_shapes("classifier", a.num_labels, a.hidden_size)
    )


def body_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """List the tensors of such a body."""
    a = architecture
    norms = ["model.embeddings.norm", "model.final_norm"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.tok_embeddings.weight": (a.vocab_size, a.hidden_size)
    }
    for index in range(a.num_layers):
        layer = f"model.layers.{index}"
        norms += [f"{layer}.mlp_norm"] + ([f"{layer}.attn_norm"] if index else [])
        attention, mlp = a.attention_bias, a.mlp_bias
        shapes |= linear_shapes(
            f"{layer}.attn.Wqkv", _QKV * a.hidden_size, a.hidden_size, has_bias=attention
        )
        shapes |= linear_shapes(
            f"{layer}.attn.Wo", a.hidden_size, a.hidden_size, has_bias=attention
        )
        shapes |= linear_shapes(
            f"{layer}.mlp.Wi", 2 * a.intermediate_size, a.hidden_size, has_bias=mlp
        )
        shapes |= linear_shapes(f"{layer}.mlp.Wo", a.hidden_size, a.intermediate_size, has_bias=mlp)
    for norm in norms:
        shapes |= _norm_shapes(norm, architecture)
    return shapes


def _norm_shapes(name: str, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias") if architecture.norm_bias else ("weight",)
    return {f"{name}.{part}": (architecture.hidden_size,) for part in parts}


@dataclass(frozen=True, slots=True)
class ModernBertLayer:
    """One transformer layer; the first has no LayerNorm before its attention."""

    attention_norm: LayerNorm | None
    qkv: Linear
    attention_out: Linear
    mlp_norm: LayerNorm
    up: Linear
    down: Linear


class ModernBertBody:
    """A ModernBERT: hidden states of the last layer, behind the final LayerNorm.

    Args:
        architecture: Its shape.
        weights: Its tensors, checked.
        placement: Device and number format.
    """

    def __init__(self, architecture: Architecture, weights: Weights, placement: Placement) -> None:
        self._architecture = architecture
        self._activation = ACTIVATIONS[architecture.hidden_act]
        self._dtype = placement.dtype
        self._words = placement.residual(weights["model.embeddings.tok_embeddings.weight"])
        read = _Reader(architecture, weights, placement)
        self._embedding_norm = read.norm("model.embeddings.norm")
        # All but the last layer, which may run on few rows and in parts, are packed when read.
        last = architecture.num_layers - 1
        self._layers = [_packed(read.layer(index)) for index in range(last)]
        self._layers.append(read.layer(last))
        self._final_norm = read.norm("model.final_norm")

    @property
    def num_layers(self) -> int:
        """Return the number of layers, the last one included."""
        return len(self._layers)

    def first_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden state of every sequence's first token; [sequences, hidden]."""
        rotations = self.rotations(inputs)
        hidden = self._run(self.num_layers - 1, rotations, inputs, attention)
        return self.last_first(hidden, rotations, inputs, attention)

    def all_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden states of all tokens; [total, hidden]."""
        hidden = self._run(self.num_layers, self.rotations(inputs), inputs, attention)
        return self._final_norm(hidden)

    def rotations(self, inputs: PackedInputs) -> Rotations:
        """Return the rotation of a batch for each base that some layer has."""
        return rotations_of(inputs.position_ids, self._architecture)

    def embed(self, inputs: PackedInputs) -> torch.Tensor:
        """Return the embeddings of all tokens; [total, hidden]."""
        return self._embedding_norm(nn.functional.embedding(inputs.token_ids, self._words))

    def layer(
        self,
        index: int,
        hidden: torch.Tensor,
        rotations: Rotations,
        attention: Attention,
    ) -> torch.Tensor:
        """Run one layer for all tokens. The rows given are overwritten and returned."""
        layer, rotary = self._layers[index], self._architecture.rotary_layers[index]
        qkv = self._heads(layer.qkv(self._normed(layer, hidden)), _QKV)
        rotations[rotary.theta].apply(qkv[:, :2])
        return self._finish(layer, hidden, attention.full(qkv, window=rotary.window))

    def last_first(
        self,
        hidden: torch.Tensor,
        rotations: Rotations,
        inputs: PackedInputs,
        attention: Attention,
    ) -> torch.Tensor:
        """Run the last layer for the first token of every sequence; [sequences, hidden]."""
        layer, rotary = self._layers[-1], self._architecture.rotary_layers[-1]
        if rotary.window is not None:
            hidden = self.layer(self.num_layers - 1, hidden, rotations, attention)
            return self._final_norm(hidden.index_select(0, inputs.first_rows))
        normed = self._normed(layer, hidden)
        query = self._heads(layer.qkv.part(0, _QKV)(normed.index_select(0, inputs.first_rows)), 1)
        key = self._heads(layer.qkv.part(1, _QKV)(normed), 1)
        value = self._heads(layer.qkv.part(2, _QKV)(normed), 1)
        rotations[rotary.theta].apply(key)  # a first token's query stays: its position is 0
        attended = attention.first(query[:, 0], key[:, 0], value[:, 0])
        first = hidden.index_select(0, inputs.first_rows)
        return self._final_norm(self._finish(layer, first, attended))

    def _run(
        self, count: int, rotations: Rotations, inputs: PackedInputs, attention: Attention
    ) -> torch.Tensor:
        """Run the first `count` layers for all tokens."""
        hidden = self.embed(inputs)
        for index in range(count):
            hidden = self.layer(index, hidden, rotations, attention)
        return hidden

    def _normed(self, layer: ModernBertLayer, hidden: torch.Tensor) -> torch.Tensor:
        """Return what a layer's attention projects."""
        norm = layer.attention_norm
        return (hidden if norm is None else norm(hidden)).to(self._dtype)

    def _heads(self, projected: torch.Tensor, count: int) -> torch.Tensor:
        """View [total, count * hidden] as [total, count, heads, head size]."""
        return projected.view(len(projected), count, self._architecture.num_heads, -1)

    def _finish(
        self, layer: ModernBertLayer, hidden: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        """Run what follows a layer's attention; needs no sequences."""
        hidden += layer.attention_out(attended.flatten(1))
        gated, gate = layer.up(layer.mlp_norm(hidden).to(self._dtype)).chunk(2, dim=-1)
        hidden += layer.down(self._activation(gated).mul_(gate))
        return hidden


class ModernBertClassifier(ModernBertBody):
    """The same with a classification head, which reads the first tokens or the means of all."""

    def __init__(self, architecture: Architecture, weights: Weights, placement: Placement) -> None:
        super().__init__(architecture, weights, placement)
        self._head_activation = ACTIVATIONS[architecture.head_act]
        exact = placement.exact
        self._dense = Linear.read(
            weights, "head.dense", convert=exact, has_bias=architecture.head_bias
        )
        self._head_norm = LayerNorm.read(
            weights,
            "head.norm",
            architecture.layer_norm_eps,
            convert=exact,
            has_bias=architecture.norm_bias,
        )
        self._classifier = Linear.read(weights, "classifier", convert=exact)

    def forward(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the float32 logits of a batch; [sequences, labels]."""
        rotations = self.rotations(inputs)
        hidden = self._run(self.num_layers - 1, rotations, inputs, attention)
        return self.head(self.last_layer(hidden, rotations, inputs, attention))

    def last_layer(
        self,
        hidden: torch.Tensor,
        rotations: Rotations,
        inputs: PackedInputs,
        attention: Attention,
    ) -> torch.Tensor:
        """Run the last layer for what the head reads, and pool that; [sequences, hidden]."""
        if self._architecture.pooling == "cls":
            return self.last_first(hidden, rotations, inputs, attention)
        hidden = self.layer(self.num_layers - 1, hidden, rotations, attention)
        return attention.mean(self._final_norm(hidden))

    def with_linears(self, change: Callable[[Sequence[str], Linear], Linear]) -> Self:
        """Return the same classifier with other linear layers; all else is shared.

        Args:
            change: Takes the names that a layer was read from, and the layer; returns another.
        """
        twin = copy.copy(self)
        twin._layers = [  # noqa: SLF001
            replace(
                layer,
                qkv=change([f"model.layers.{i}.attn.Wqkv"], layer.qkv),
                attention_out=change([f"model.layers.{i}.attn.Wo"], layer.attention_out),
                up=change([f"model.layers.{i}.mlp.Wi"], layer.up),
                down=change([f"model.layers.{i}.mlp.Wo"], layer.down),
            )
            for i, layer in enumerate(self._layers)
        ]
        twin._dense = change(["head.dense"], self._dense)  # noqa: SLF001
        twin._classifier = change(["classifier"], self._classifier)  # noqa: SLF001
        return twin

    def head(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the logits of pooled rows, in float32."""
        dense = self._head_activation(self._dense(pooled.float()))
        return self._classifier(self._head_norm(dense))


def _packed(layer: ModernBertLayer) -> ModernBertLayer:
    return replace(
        layer,
        qkv=layer.qkv.packed(),
        attention_out=layer.attention_out.packed(),
        up=layer.up.packed(),
        down=layer.down.packed(),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a body's parts in its placement."""

    architecture: Architecture
    weights: Weights
    placement: Placement

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm.read(
            self.weights,
            name,
            self.architecture.layer_norm_eps,
            convert=self.placement.residual,
            has_bias=self.architecture.norm_bias,
        )

    def linear(self, name: str, *, has_bias: bool) -> Linear:
        return Linear.read(self.weights, name, convert=self.placement.weight, has_bias=has_bias)

    def query_key_value(self, name: str) -> Linear:
        linear = self.linear(name, has_bias=self.architecture.attention_bias)
        return interleaved(linear, self.architecture.num_heads)

    def layer(self, index: int) -> ModernBertLayer:
        name = f"model.layers.{index}"
        attention_bias, mlp_bias = self.architecture.attention_bias, self.architecture.mlp_bias
        return ModernBertLayer(
            attention_norm=self.norm(f"{name}.attn_norm") if index else None,
            qkv=self.query_key_value(f"{name}.attn.Wqkv"),
            attention_out=self.linear(f"{name}.attn.Wo", has_bias=attention_bias),
            mlp_norm=self.norm(f"{name}.mlp_norm"),
            up=self.linear(f"{name}.mlp.Wi", has_bias=mlp_bias),
            down=self.linear(f"{name}.mlp.Wo", has_bias=mlp_bias),
        )
