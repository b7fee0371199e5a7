"""Gemma, Qwen2 and Qwen3 on packed rows, up to the logits of a few answers.

RMSNorms stand before attention and feed-forward, positions are rotary, several query heads share a
key head, and the feed-forward is gated. What differs: Gemma scales its embeddings and counts norm
weights from one; Qwen2 has biases on queries, keys and values; Qwen3 normalises every query and key
head. The last layer is computed for the sequences' last tokens alone, and of the vocabulary only
the answers' rows, in float32 from the last norm on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sie_core.local.causal_attention import CausalAttention
from sie_core.local.causal_batch import CausalBatch
from sie_core.local.decoder_architecture import DecoderArchitecture
from sie_core.local.layers import Linear, Placement, linear_shapes
from sie_core.local.prefix import KeyValue
from sie_core.local.rotary import Rotation, interleaved_heads
from sie_core.local.weights import Weights

_EMBEDDING = "model.embed_tokens.weight"
_VOCABULARY = "lm_head.weight"


def tensor_shapes(architecture: DecoderArchitecture) -> dict[str, tuple[int, ...]]:
    """List the tensors of such a model, by their names in a checkpoint."""
    a = architecture
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (a.vocab_size, a.hidden_size)}
    if not a.is_tied:
        shapes[_VOCABULARY] = (a.vocab_size, a.hidden_size)
    width, kv_width = a.num_heads * a.head_size, a.num_key_value_heads * a.head_size
    norms = ["model.norm"]
    for index in range(a.num_layers):
        layer = f"model.layers.{index}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        for name, num_out in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)):
            shapes |= linear_shapes(
                f"{attention}.{name}", num_out, a.hidden_size, has_bias=a.qkv_bias
            )
        shapes |= linear_shapes(f"{attention}.o_proj", a.hidden_size, width, has_bias=a.out_bias)
        for name in ("gate_proj", "up_proj"):
            shapes |= linear_shapes(
                f"{mlp}.{name}", a.intermediate_size, a.hidden_size, has_bias=False
            )
        shapes |= linear_shapes(
            f"{mlp}.down_proj", a.hidden_size, a.intermediate_size, has_bias=False
        )
        if a.has_head_norms:
            shapes |= {f"{attention}.{name}_norm.weight": (a.head_size,) for name in "qk"}
    return shapes | {f"{norm}.weight": (a.hidden_size,) for norm in norms}


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Division by the root mean square of the last dimension; in float32 (arXiv:1910.07467)."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the float32 norm of each row."""
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class CausalLayer:
    """One transformer layer; the head norms are Qwen3's."""

    attention_norm: RMSNorm
    qkv: Linear
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    attention_out: Linear
    mlp_norm: RMSNorm
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class CausalInputs:
    """A batch as tensors on the device; see `CausalBatch`.

    Attributes:
        token_ids: [rows].
        position_ids: [rows].
        last_rows: Each sequence's last row; [sequences].
        key_rows: Where each span's keys are in the pool; [keys], or None.
        kept: For each known prefix, the keys and values of every layer.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    last_rows: torch.Tensor
    key_rows: torch.Tensor | None
    kept: Sequence[Sequence[KeyValue]]

    @classmethod
    def of(cls, batch: CausalBatch, device: torch.device) -> CausalInputs:
        """Put a batch on a device."""
        rows = batch.key_rows
        return cls(
            token_ids=torch.from_numpy(batch.token_ids).to(device),
            position_ids=torch.from_numpy(batch.position_ids).to(device),
            last_rows=torch.from_numpy(batch.last_rows).to(device),
            key_rows=None if rows is None else torch.from_numpy(rows).to(device),
            kept=batch.kept,
        )

    def pool(self, layer: int, own: KeyValue) -> KeyValue:
        """Return every span's keys and values of a layer, of the batch's and the kept ones."""
        if self.key_rows is None:
            return own
        key, value = own
        if self.kept:
            key = torch.cat([*(layers[layer][0] for layers in self.kept), key])
            value = torch.cat([*(layers[layer][1] for layers in self.kept), value])
        return key.index_select(0, self.key_rows), value.index_select(0, self.key_rows)


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of a batch through the layers.

    Attributes:
        inputs: The batch.
        attention: Its attention.
        rotation: Of its positions.
        made: The keys and values of the batch's rows, of the layers that were run.
    """

    inputs: CausalInputs
    attention: CausalAttention
    rotation: Rotation
    made: list[KeyValue] = field(default_factory=list)

    def add(self, key: torch.Tensor, value: torch.Tensor) -> KeyValue:
        """Take those of the next layer, and return what all spans see there."""
        self.made.append((key, value))
        return self.inputs.pool(len(self.made) - 1, (key, value))


class CausalLM:
    """A causal language model that answers with the logits of a few tokens.

    Args:
        architecture: Its shape.
        weights: Its tensors, checked.
        placement: Device and number format.
        answer_ids: The tokens whose logits are wanted.
    """

    def __init__(
        self,
        architecture: DecoderArchitecture,
        weights: Weights,
        placement: Placement,
        answer_ids: Sequence[int],
    ) -> None:
        self._architecture = architecture
        self._dtype = placement.dtype
        self._residual_dtype = placement.residual_dtype
        # On the CPU the embedding stays in its file: what is read are the rows of a batch.
        words = weights.reopen()[_EMBEDDING]
        on_cpu = placement.device.type == "cpu"
        self._words = words if on_cpu else placement.residual(words)
        scale = torch.tensor(architecture.embedding_scale, dtype=self._residual_dtype)
        self._scale = float(scale)
        read = _Reader(architecture, weights, placement)
        # All but the last layer, which runs on few rows and in parts, are packed when read.
        last = architecture.num_layers - 1
        self._layers = [_packed(read.layer(index)) for index in range(last)]
        self._layers.append(read.layer(last))
        self._final_norm = read.norm("model.norm")
        vocabulary = weights[_EMBEDDING if architecture.is_tied else _VOCABULARY]
        self._answers = placement.exact(vocabulary[list(answer_ids)])

    @property
    def num_layers(self) -> int:
        """Return the number of layers, the last one included."""
        return len(self._layers)

    def forward(
        self, inputs: CausalInputs, attention: CausalAttention
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """Run a batch.

        Returns:
            The float32 logits of the answers, [sequences, answers], and the keys and values that
            each layer made of the batch's rows.
        """
        rotation = Rotation.of(
            inputs.position_ids,
            head_size=self._architecture.head_size,
            theta=self._architecture.rope_theta,
        )
        run = Pass(inputs, attention, rotation)
        hidden = self.embed(inputs)
        for index in range(self.num_layers - 1):
            hidden = self.layer(index, hidden, run)
        return self.head(self.last_layer(hidden, run)), run.made

    def embed(self, inputs: CausalInputs) -> torch.Tensor:
        """Return the embeddings of all tokens; [rows, hidden]."""
        hidden = nn.functional.embedding(inputs.token_ids, self._words).to(self._residual_dtype)
        return hidden if self._scale == 1 else hidden * self._scale

    def layer(self, index: int, hidden: torch.Tensor, run: Pass) -> torch.Tensor:
        """Run one layer for all rows. The rows given are overwritten and returned."""
        layer, num_heads = self._layers[index], self._architecture.num_heads
        num_rotated = num_heads + self._architecture.num_key_value_heads
        heads = self._heads(layer.qkv(layer.attention_norm(hidden).to(self._dtype)))
        query, key, value = (
            heads[:, :num_heads],
            heads[:, num_heads:num_rotated],
            heads[:, num_rotated:],
        )
        _normalise(query, layer.query_norm)
        _normalise(key, layer.key_norm)
        run.rotation.apply(heads[:, None, :num_rotated])
        return self._finish(layer, hidden, run.attention.full(query, *run.add(key, value)))

    def last_layer(self, hidden: torch.Tensor, run: Pass) -> torch.Tensor:
        """Run the last layer for the last row of each sequence; [sequences, hidden]."""
        layer, last_rows = self._layers[-1], run.inputs.last_rows
        normed = layer.attention_norm(hidden).to(self._dtype)
        width = self._architecture.num_heads * self._architecture.head_size
        query = self._heads(_rows(layer.qkv, slice(width))(normed[last_rows]))
        key, value = self._heads(_rows(layer.qkv, slice(width, None))(normed)).chunk(2, dim=1)
        _normalise(query, layer.query_norm)
        _normalise(key, layer.key_norm)
        Rotation(run.rotation.factors[last_rows]).apply(query[:, None])
        run.rotation.apply(key[:, None])
        attended = run.attention.last(query, *run.add(key, value))
        return self._finish(layer, hidden[last_rows], attended)

    def head(self, last: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits of the answers; [sequences, answers]."""
        return nn.functional.linear(self._final_norm(last), self._answers)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """View [rows, heads * head size] as [rows, heads, head size]."""
        return projected.view(len(projected), -1, self._architecture.head_size)

    def _finish(
        self, layer: CausalLayer, hidden: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        """Run what follows a layer's attention; needs no sequences."""
        hidden += layer.attention_out(attended.flatten(1))
        normed = layer.mlp_norm(hidden).to(self._dtype)
        gated = layer.gate.activated(normed, self._architecture.hidden_act)
        hidden += layer.down(gated.mul_(layer.up(normed)))
        return hidden


def _normalise(heads: torch.Tensor, norm: RMSNorm | None) -> None:
    """Normalise each head in place, where there is a norm."""
    if norm is not None:
        heads.copy_(norm(heads))


def _rows(linear: Linear, rows: slice) -> Linear:
    """Return a part of a layer's outputs."""
    return Linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def _packed(layer: CausalLayer) -> CausalLayer:
    return replace(
        layer,
        qkv=layer.qkv.packed(),
        attention_out=layer.attention_out.packed(),
        gate=layer.gate.packed(),
        up=layer.up.packed(),
        down=layer.down.packed(),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a model's parts in its placement."""

    architecture: DecoderArchitecture
    weights: Weights
    placement: Placement

    def norm(self, name: str) -> RMSNorm:
        weight = self.placement.exact(self.weights[f"{name}.weight"])
        return RMSNorm(weight + self.architecture.norm_offset, self.architecture.norm_eps)

    def head_norm(self, name: str) -> RMSNorm | None:
        if not self.architecture.has_head_norms:
            return None
        norm = self.norm(name)
        return replace(norm, weight=interleaved_heads(norm.weight, 1))

    def linear(self, name: str, *, has_bias: bool = False) -> Linear:
        return Linear.read(self.weights, name, convert=self.placement.weight, has_bias=has_bias)

    def query_key_value(self, name: str) -> Linear:
        query, key, value = (
            self.linear(f"{name}.{part}_proj", has_bias=self.architecture.qkv_bias)
            for part in "qkv"
        )
        weight = torch.cat([self._rotated(query.weight), self._rotated(key.weight), value.weight])
        if query.bias is None or key.bias is None or value.bias is None:
            return Linear(weight, None)
        bias = [self._rotated(query.bias), self._rotated(key.bias), value.bias]
        return Linear(weight, torch.cat(bias))

    def _rotated(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring the rows of all heads of queries, or keys, into the order of `Rotation`."""
        return interleaved_heads(tensor, len(tensor) // self.architecture.head_size)

    def layer(self, index: int) -> CausalLayer:
        name = f"model.layers.{index}"
        return CausalLayer(
            attention_norm=self.norm(f"{name}.input_layernorm"),
            qkv=self.query_key_value(f"{name}.self_attn"),
            query_norm=self.head_norm(f"{name}.self_attn.q_norm"),
            key_norm=self.head_norm(f"{name}.self_attn.k_norm"),
            attention_out=self.linear(
                f"{name}.self_attn.o_proj", has_bias=self.architecture.out_bias
            ),
            mlp_norm=self.norm(f"{name}.post_attention_layernorm"),
            gate=self.linear(f"{name}.mlp.gate_proj"),
            up=self.linear(f"{name}.mlp.up_proj"),
            down=self.linear(f"{name}.mlp.down_proj"),
        )
