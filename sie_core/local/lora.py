"""LoRA adapters: small corrections to a model's linear layers, chosen by each call.

An adapter (Hu et al. 2021, arXiv:2106.09685) adds `x A^T B^T * scale` to `x W^T`. Weights are never
merged: all adapters of a batch are computed in one pass over the weights that they share, each on
the rows of its own pairs. Files are those that PEFT writes. The names of tensors in them say what
is adapted, and the configuration how strongly; what it asks for beyond that is refused by its name.
Pairs without an adapter never come here: see docs/decisions/0053-adapters-swap-memory.md.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.architecture import Activation, Architecture
from sie_core.local.attention import GroupedAttention, VarlenAttention, VarlenKernel
from sie_core.local.layers import ACTIVATIONS, Linear, PackedInputs, Placement
from sie_core.local.memory import count_bytes, identify
from sie_core.local.packing import NO_ROUNDING, PackedBatch
from sie_core.local.rotary import interleaved_heads, interleaved_rows
from sie_core.local.tokenization import Pair
from sie_core.local.weights import Shapes
from sie_core.local.worker import Classifier, Worker, choose_rounding, to_scores
from sie_core.models.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_PREFIX = "base_model.model."
"""What PEFT puts before every name."""

_BODY = re.compile(r"\.layers?\.\d+\.")
"""Names of a body's layers; others are the head's, which computes in float32."""

_SHARES = re.compile(r"lora_[AB](\.default)?\.weight$")

_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "biases in LoRA layers (lora_bias)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
    "trainable_token_indices": "trainable_token_indices",
    "megatron_config": "Megatron's layers",
}
"""Settings that change what an adapter computes, in ways that are not computed here."""

_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga", "loreft")
"""Ways of initialising that change the weights adapted, so that the adapter fits no others."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """x A^T B^T, with the scale in B.

    Attributes:
        down: A; [rank, in].
        up: B times the scale; [out, rank].
    """

    down: torch.Tensor
    up: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project [total, in] to [total, out]."""
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)

    def columns(self, begin: int, end: int) -> LowRank:
        """Return what makes some of the columns."""
        return LowRank(self.down, self.up[begin:end])

    def to(self, placement: Placement, *, is_body: bool) -> LowRank:
        """Return it where the layer that it adapts computes."""
        convert = placement.weight if is_body else placement.exact
        return LowRank(convert(self.down), convert(self.up))


class Adapter:
    """One adapter, read for one model.

    Attributes:
        name: What it is called, for errors.
        identity: Names what it computes; see `memory.identify`.
    """

    def __init__(
        self,
        name: str,
        low_ranks: Mapping[str, LowRank],
        layers: Mapping[str, Linear],
        *,
        identity: str = "",
    ) -> None:
        self.name = name
        self.identity = identity
        self._low_ranks = dict(low_ranks)
        self._layers = dict(layers)
        self._placed: dict[Placement, Adapter] = {}

    @classmethod
    def read(cls, name: str, folder: Path, architecture: Architecture, shapes: Shapes) -> Self:
        """Read an adapter of PEFT's for a model of these tensors.

        Raises:
            UnsupportedModelError: It asks for something that is not computed here.
            ModelLoadError: Its files cannot be read, or do not fit the model.
        """
        identity = identify(folder)  # before reading: what is changed later shows
        config = _read_config(folder)
        _check_config(config, folder)
        try:
            stored = load_file(folder / ADAPTER_WEIGHTS)
        except (OSError, ValueError, SafetensorError) as exc:
            msg = f"{folder / ADAPTER_WEIGHTS} could not be read: {exc}"
            raise ModelLoadError(msg) from exc
        tensors = {key.removeprefix(_PREFIX): tensor for key, tensor in stored.items()}
        reader = _Reader(folder, config, tensors, architecture, shapes)
        return cls(name, reader.low_ranks(), reader.layers(), identity=identity)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its tensors, wherever they are."""
        placed = [it for it in self._placed.values() if it is not self]
        return count_bytes([self._low_ranks, self._layers]) + sum(it.num_bytes for it in placed)

    def to(self, placement: Placement) -> Adapter:
        """Return the same on a device, in the format that the model has there."""
        placed = self._placed.get(placement)
        if placed is None:
            low_ranks = {
                name: it.to(placement, is_body=_is_body(name))
                for name, it in self._low_ranks.items()
            }
            layers = {name: _place(name, it, placement) for name, it in self._layers.items()}
            # Two workers may both make one at first; either will do.
            fresh = Adapter(self.name, low_ranks, layers, identity=self.identity)
            placed = self._placed.setdefault(placement, fresh)
        return placed

    def low_rank(self, name: str) -> LowRank | None:
        """Return what it adds to a layer, None if nothing."""
        return self._low_ranks.get(name)

    def layer(self, name: str) -> Linear | None:
        """Return what it puts in a layer's place, None if nothing."""
        return self._layers.get(name)

    def __repr__(self) -> str:
        return f"Adapter({self.name!r}, {len(self._low_ranks)} layers)"


@dataclass(frozen=True, slots=True)
class AdaptedPair(Pair):
    """A pair that is to be scored with an adapter."""

    adapter: Adapter

    @classmethod
    def of(cls, pair: Pair, adapter: Adapter) -> Self:
        """Give a pair its adapter."""
        return cls(pair.token_ids, pair.num_first, pair.is_truncated, adapter)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes an adapter's tensors apart, and checks them against the model's."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    architecture: Architecture
    shapes: Shapes

    def low_ranks(self) -> dict[str, LowRank]:
        names = {key[: match.start() - 1] for key in self.tensors if (match := _SHARES.search(key))}
        self._check_targets(names)
        return {name: self._low_rank(name) for name in sorted(names)}

    def layers(self) -> dict[str, Linear]:
        """Read the layers that were trained whole (`modules_to_save`)."""
        whole = [key for key in self.tensors if not _SHARES.search(key)]
        names = {key.rpartition(".")[0] for key in whole}
        return {name: self._layer(name) for name in sorted(names)}

    def _low_rank(self, name: str) -> LowRank:
        num_out, num_in = self._shape_of(name)
        down, up = (self._share(name, letter) for letter in "AB")
        rank = len(down)
        self._check_shape(f"{name}.lora_A", down, (rank, num_in))
        self._check_shape(f"{name}.lora_B", up, (num_out, rank))
        told = _of_pattern(self.config.get("rank_pattern"), name, self.config.get("r"))
        if told != rank:
            self._refuse(f"{name} has rank {rank}, but {ADAPTER_CONFIG} says {told}")
        alpha = _of_pattern(self.config.get("alpha_pattern"), name, self.config.get("lora_alpha"))
        root = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return LowRank(down.float(), self._reordered(name, up.float() * (alpha / root)))

    def _share(self, name: str, letter: str) -> torch.Tensor:
        keys = [f"{name}.lora_{letter}.weight", f"{name}.lora_{letter}.default.weight"]
        found = [self.tensors[key] for key in keys if key in self.tensors]
        if not found:
            self._refuse(f"{keys[0]} is missing")
        return found[0]

    def _layer(self, name: str) -> Linear:
        shape = self._shape_of(name)
        if f"{name}.weight" not in self.tensors:
            self._refuse(f"{name}.weight is missing")
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        self._check_shape(f"{name}.weight", weight, shape)
        has_bias = f"{name}.bias" in self.shapes
        if has_bias != (bias is not None):
            self._refuse(f"{name} has {'no' if bias is None else 'a'} bias")
        if bias is None:
            return Linear(self._reordered(name, weight.float()), None)
        self._check_shape(f"{name}.bias", bias, shape[:1])
        return Linear(self._reordered(name, weight.float()), self._reordered(name, bias.float()))

    def _shape_of(self, name: str) -> tuple[int, int]:
        """Return the shape of a linear layer's weight."""
        shape = self.shapes.get(f"{name}.weight", ())
        if len(shape) != 2 or "embedding" in name:  # noqa: PLR2004  a matrix
            layers = "embeddings and LayerNorms are not" if shape else "there is no such layer"
            self._refuse(f"{name!r} cannot be adapted here: {layers}")
        return shape[0], shape[1]

    def _reordered(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Bring a layer's rows into the order that the model keeps them in."""
        if self.architecture.rotary_layers:
            if name.endswith(".Wqkv"):
                return interleaved_rows(rows, self.architecture.num_heads)
            if name.endswith((".query", ".key")):
                return interleaved_heads(rows, self.architecture.num_heads)
        return rows

    def _check_targets(self, names: set[str]) -> None:
        """Raise if there is nothing of what the configuration says was adapted."""
        targets = self.config.get("target_modules")
        for target in targets if isinstance(targets, list) else ():
            if not any(name == target or name.endswith(f".{target}") for name in names):
                self._refuse(f"target_modules names {target!r}, of which there are no weights")
        if not names:
            self._refuse("it adapts no layer")

    def _check_shape(self, name: str, tensor: torch.Tensor, wanted: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != wanted:
            self._refuse(f"{name} has the shape {tuple(tensor.shape)}, not {wanted}")

    def _refuse(self, what: str) -> NoReturn:
        base = self.config.get("base_model_name_or_path")
        made_for = f"; it was made for {base}" if base else ""
        msg = f"the adapter in {self.folder} does not fit: {what}{made_for}"
        raise ModelLoadError(msg)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config.get("")
    except (OSError, ValueError, AttributeError) as exc:
        msg = f"{path} could not be read: {exc}"
        raise ModelLoadError(msg) from exc
    return config


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UnsupportedModelError for what would not be computed as it was trained."""
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    found = [what for setting, what in _REFUSED.items() if config.get(setting)]
    if kind != "LORA":
        found.append(f"peft_type {kind!r}")
    if bias != "none":
        found.append(f"bias={bias!r}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        found.append(f"init_lora_weights={start!r}, which changes the base model's weights")
    if found:
        msg = (
            f"the adapter in {folder} uses {' and '.join(found)}, which is not supported; what is: "
            "LoRA with bias='none' on linear layers, and whole linear layers in modules_to_save"
        )
        raise UnsupportedModelError(msg)
    numbers = [config.get("r"), config.get("lora_alpha")]
    for pattern in ("rank_pattern", "alpha_pattern"):
        numbers += (config.get(pattern) or {}).values()
    if not all(isinstance(number, int | float) and number > 0 for number in numbers):
        msg = f"{folder / ADAPTER_CONFIG} must have numbers above 0 for r and lora_alpha"
        raise ModelLoadError(msg)


def _of_pattern(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Return a layer's own setting: keys are regular expressions for the end of its name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def _is_body(name: str) -> bool:
    return _BODY.search(name) is not None


def _place(name: str, layer: Linear, placement: Placement) -> Linear:
    convert = placement.weight if _is_body(name) else placement.exact
    return Linear(convert(layer.weight), None if layer.bias is None else convert(layer.bias))


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring sequences of a batch that have the same adapter.

    Attributes:
        adapter: On the device.
        rows: Their tokens.
        sequences: Which they are.
    """

    adapter: Adapter
    rows: slice
    sequences: slice


@dataclass(frozen=True, slots=True)
class _Change:
    """What one segment's adapter does to one layer.

    Attributes:
        segment: Whose rows.
        begin: The first of the layer's columns.
        low_rank: Added to the columns from there on; None if the layer is replaced.
        layer: Computed instead of the layer's own columns; None if something is added.
    """

    segment: Segment
    begin: int
    low_rank: LowRank | None
    layer: Linear | None

    @property
    def end(self) -> int:
        """Return the end of the columns."""
        up = self.low_rank.up if self.low_rank is not None else None
        weight = up if up is not None else self.layer.weight if self.layer is not None else ()
        return self.begin + len(weight)

    def part(self, begin: int, end: int) -> _Change | None:
        """Return what it does to some of the columns, counted from the first of those."""
        first, last = max(begin, self.begin), min(end, self.end)
        if first >= last:
            return None
        low_rank, layer = self.low_rank, self.layer
        if low_rank is not None:
            low_rank = low_rank.columns(first - self.begin, last - self.begin)
        if layer is not None:
            rows = slice(first - self.begin, last - self.begin)
            layer = Linear(layer.weight[rows], None if layer.bias is None else layer.bias[rows])
        return _Change(self.segment, first - begin, low_rank, layer)


@dataclass(frozen=True, slots=True)
class AdaptedLinear(Linear):
    """A linear layer of one batch, with what the adapters of its sequences change.

    Attributes:
        shared: The layer itself.
        changes: Of each segment that has one.
        num_rows: Tokens of the batch; an input of so many rows is of tokens, else of sequences.
    """

    shared: Linear
    changes: tuple[_Change, ...]
    num_rows: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project [total, in] to [total, out]."""
        out = self.shared(x)
        is_tokens = len(x) == self.num_rows
        for change in self.changes:
            rows = change.segment.rows if is_tokens else change.segment.sequences
            columns = slice(change.begin, change.end)
            if change.low_rank is not None:
                out[rows, columns] += change.low_rank(x[rows])
            elif change.layer is not None:
                out[rows, columns] = change.layer(x[rows])
        return out

    def activated(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Project, and apply an activation function."""
        return ACTIVATIONS[activation](self(x))

    def packed(self) -> Linear:
        """Return itself: it lives for one batch."""
        return self

    def part(self, index: int, count: int) -> Linear:
        """Return one of the `count` equal layers that were read as one."""
        width = len(self.weight) // count
        parts = [change.part(index * width, (index + 1) * width) for change in self.changes]
        changes = tuple(part for part in parts if part is not None)
        return _adapted(self.shared.part(index, count), changes, self.num_rows)


def _adapted(layer: Linear, changes: tuple[_Change, ...], num_rows: int) -> Linear:
    if not changes:
        return layer
    return AdaptedLinear(layer.weight, layer.bias, layer, changes, num_rows)


def adapt(
    segments: Sequence[Segment], num_rows: int, names: Sequence[str], layer: Linear
) -> Linear:
    """Return a layer as a batch computes it.

    Args:
        segments: Of the batch.
        num_rows: Tokens of the batch, padding included.
        names: The layers, of equal size, that `layer` was read from as one.
        layer: The shared one.
    """
    width = len(layer.weight) // len(names)
    changes: list[_Change] = []
    for segment, (index, name) in itertools.product(segments, enumerate(names)):
        low_rank, whole = segment.adapter.low_rank(name), segment.adapter.layer(name)
        if whole is not None:
            changes.append(_Change(segment, index * width, None, whole))
        if low_rank is not None:
            changes.append(_Change(segment, index * width, low_rank, None))
    return _adapted(layer, tuple(changes), num_rows)


ChangeLinear = Callable[[Sequence[str], Linear], Linear]
"""Takes the names that a linear layer was read from, and the layer, and returns another."""


class AdaptableClassifier(Classifier, Protocol):
    """A forward pass whose linear layers can be changed for one batch."""

    def with_linears(self, change: ChangeLinear) -> Classifier:
        """Return the same classifier with other linear layers; all else is shared."""
        ...


class _ProjectingAttention(GroupedAttention):
    """Projects the last layer's keys and values: adapters make them differ by sequence."""

    def first_unprojected(
        self, query: torch.Tensor, hidden: torch.Tensor, key: Linear, value: Linear
    ) -> torch.Tensor:
        """See `Attention.first_unprojected`."""
        hidden = hidden.to(query.dtype)
        heads = (len(hidden), *query.shape[1:])
        return self.first(query, key(hidden).view(heads), value(hidden).view(heads))


class AdapterWorker:
    """Scores batches that may have pairs with adapters.

    Pairs without one are scored by the model's own worker, as if the others were not there. Those
    with adapters share one pass of torch's.

    Args:
        own: The model's own worker.
        classifier: Returns the forward pass in torch, shared.
        architecture: The model's shape.
        placement: Where it is.
        kernel: On a GPU, the attention by cumulative lengths where there is one.
    """

    def __init__(
        self,
        own: Worker,
        classifier: Callable[[], AdaptableClassifier],
        architecture: Architecture,
        placement: Placement,
        kernel: VarlenKernel | None = None,
    ) -> None:
        self._own = own
        self._classifier = classifier
        self._architecture = architecture
        self._placement = placement
        self._kernel = kernel

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one raw score per pair."""
        adapted = {i: pair for i, pair in enumerate(pairs) if isinstance(pair, AdaptedPair)}
        if not adapted:
            return self._own(pairs)
        scores = dict(zip(adapted, self._score(list(adapted.values())), strict=True))
        plain = [i for i in range(len(pairs)) if i not in adapted]
        if plain:
            scores |= zip(plain, self._own([pairs[i] for i in plain]), strict=True)
        return [scores[i] for i in range(len(pairs))]

    def _score(self, pairs: Sequence[AdaptedPair]) -> list[float]:
        """Score pairs with adapters in one pass; those of one adapter stand together."""
        place = {id(pair.adapter): i for i, pair in enumerate(pairs)}
        order = sorted(
            range(len(pairs)),
            # Neighbours of the same length are attended to together.
            key=lambda i: (place[id(pairs[i].adapter)], -len(pairs[i].token_ids)),
        )
        batch = PackedBatch.of(
            [pairs[i] for i in order],
            position_offset=self._architecture.position_offset,
            # Cumulative lengths say where tokens are: there must be no padding between them.
            rounding=choose_rounding(self._placement) if self._kernel is None else NO_ROUNDING,
            pad_token_id=self._architecture.pad_token_id,
        )
        device = self._placement.device
        scope = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with scope, torch.inference_mode():
            segments = self._segments([pairs[i] for i in order], batch)
            change = partial(adapt, segments, len(batch.token_ids))
            classifier = self._classifier().with_linears(change)
            inputs = PackedInputs.of(batch).to(device)
            logits = classifier.forward(inputs, self._attention(batch))
            found = to_scores(logits).tolist()
        scores = [0.0] * len(pairs)
        for position, score in zip(order, found, strict=True):
            scores[position] = score
        return scores

    def _segments(self, pairs: Sequence[AdaptedPair], batch: PackedBatch) -> list[Segment]:
        segments, first = [], 0
        for _, members in itertools.groupby(pairs, key=lambda pair: id(pair.adapter)):
            same = list(members)
            end = first + len(same)
            rows = slice(int(batch.cu_seqlens[first]), int(batch.cu_seqlens[end]))
            adapter = same[0].adapter.to(self._placement)
            segments.append(Segment(adapter, rows, slice(first, end)))
            first = end
        return segments

    def _attention(self, batch: PackedBatch) -> GroupedAttention | VarlenAttention:
        device = self._placement.device
        if self._kernel is None:
            return _ProjectingAttention(batch, device)
        cu_seqlens = torch.from_numpy(batch.cu_seqlens).to(device)
        return VarlenAttention(cu_seqlens, batch.max_length, self._kernel)
