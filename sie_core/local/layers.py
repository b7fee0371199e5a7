"""What the forward passes are made of: linear layers, LayerNorms, activations, and their inputs.

All of it runs on packed rows: [total, width], whatever the number of sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import nn

from sie_core.local.architecture import Activation
from sie_core.local.packing import PackedBatch
from sie_core.local.weights import Weights


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(torch.sigmoid(1.702 * x))


def _linear(x: torch.Tensor) -> torch.Tensor:
    return x


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": torch.relu_,
    "silu": partial(nn.functional.silu, inplace=True),
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "mish": partial(nn.functional.mish, inplace=True),
    "relu6": partial(nn.functional.relu6, inplace=True),
    "linear": _linear,
}
"""Functions that overwrite the tensor they are given: what they apply to is large and temporary.

Those that transformers computes in several ways have one way here.
"""


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """A packed batch as tensors on the device; see `PackedBatch`.

    Attributes:
        token_ids: [total].
        type_ids: [total].
        position_ids: [total].
        first_rows: Where each sequence begins; [sequences].
    """

    token_ids: torch.Tensor
    type_ids: torch.Tensor
    position_ids: torch.Tensor
    first_rows: torch.Tensor

    @classmethod
    def of(cls, batch: PackedBatch) -> PackedInputs:
        """Share a batch's memory; on the CPU."""
        return cls(
            token_ids=torch.from_numpy(batch.token_ids),
            type_ids=torch.from_numpy(batch.type_ids),
            position_ids=torch.from_numpy(batch.position_ids),
            first_rows=torch.from_numpy(batch.cu_seqlens[:-1]),
        )

    def to(self, device: torch.device) -> PackedInputs:
        """Return the same on a device, which may be this one."""
        return PackedInputs(
            self.token_ids.to(device),
            self.type_ids.to(device),
            self.position_ids.to(device),
            self.first_rows.to(device),
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's parts live and in which number format.

    Attributes:
        device: The device.
        dtype: What linear layers and attention compute in.
        residual_dtype: What embeddings, residual sums and LayerNorms keep. On the CPU float32,
            which halves the error of bfloat16; elsewhere the same as `dtype`.
    """

    device: torch.device
    dtype: torch.dtype

    @property
    def residual_dtype(self) -> torch.dtype:
        """Return the number format of what runs through all layers."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def weight(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a linear layer's tensor, shared with the file where nothing has to change."""
        return tensor.to(device=self.device, dtype=self.dtype)

    def residual(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return an embedding's or a LayerNorm's tensor."""
        return tensor.to(device=self.device, dtype=self.residual_dtype)

    def exact(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the head."""
        return tensor.to(device=self.device, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Linear:
    """x W^T + b."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def read(
        cls,
        weights: Weights,
        *names: str,
        convert: Callable[[torch.Tensor], torch.Tensor],
        has_bias: bool = True,
    ) -> Self:
        """Read one layer, or several of the same input as one.

        Args:
            weights: Where it stands.
            names: Of the layers, without `.weight` and `.bias`.
            convert: Gives the tensors their device and number format.
            has_bias: Whether there is a bias.
        """
        weight = [convert(weights[f"{name}.weight"]) for name in names]
        bias = [convert(weights[f"{name}.bias"]) for name in names] if has_bias else []
        return cls(_joined(weight), _joined(bias) if bias else None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project [total, in] to [total, out]."""
        return nn.functional.linear(x, self.weight, self.bias)

    def activated(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Project, and apply an activation function."""
        return ACTIVATIONS[activation](self(x))

    def packed(self) -> Linear:
        """Return the same layer with its weights in the order that the CPU's products read them.

        Without effect where torch has no such products. For layers that run on many rows.
        """
        if not (self.weight.device.type == "cpu" and _can_pack(self.weight.dtype)):
            return self
        return PackedLinear(_reorder(self.weight.contiguous()), self.bias)

    def part(self, index: int, count: int) -> Linear:
        """Return one of the `count` equal layers that were read as one."""
        bias = None if self.bias is None else self.bias.chunk(count)[index]
        return Linear(self.weight.chunk(count)[index], bias)


class PackedLinear(Linear):
    """A linear layer of oneDNN's, with its weights reordered once and the activation built in.

    `nn.functional.linear` reorders half-precision weights in every call.
    """

    __slots__ = ()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project [total, in] to [total, out]."""
        return _pointwise(x, self, "none", "")

    def activated(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Project, and apply an activation function."""
        if activation not in _BUILT_IN:
            return ACTIVATIONS[activation](self(x))
        return _pointwise(x, self, *_BUILT_IN[activation])


_BUILT_IN: dict[Activation, tuple[str, str]] = {
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
"""The activations that oneDNN applies to a product before it is written: name and algorithm."""


def _pointwise(x: torch.Tensor, layer: PackedLinear, name: str, algorithm: str) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
        x, layer.weight, layer.bias, name, [], algorithm
    )
    return out


@functools.cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Tell whether products with reordered weights work here, by trying one.

    They are what torch.compile emits, and not part of torch's interface: a later torch may do
    without them. Float32 gains nothing by them, and would lose its mapped weights.
    """
    if dtype == torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight = torch.ones(2, 32, dtype=dtype), torch.ones(16, 32, dtype=dtype)
    try:
        out = _pointwise(x, PackedLinear(_reorder(weight), None), "relu", "")
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.equal(out, nn.functional.linear(x, weight)))


def _reorder(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001
        weight, _PACKED_FOR_ROWS
    )
    return packed


_PACKED_FOR_ROWS = 1024
"""The number of rows that weights are reordered for; others work as well."""


def linear_shapes(
    name: str, num_out: int, num_in: int, *, has_bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a linear layer's tensors."""
    bias: dict[str, tuple[int, ...]] = {f"{name}.bias": (num_out,)} if has_bias else {}
    return {f"{name}.weight": (num_out, num_in)} | bias


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """LayerNorm over the last dimension; its statistics are taken in float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float

    @classmethod
    def read(
        cls,
        weights: Weights,
        name: str,
        eps: float,
        *,
        convert: Callable[[torch.Tensor], torch.Tensor],
        has_bias: bool = True,
    ) -> Self:
        """Read one by its name, without `.weight` and `.bias`."""
        bias = convert(weights[f"{name}.bias"]) if has_bias else None
        return cls(convert(weights[f"{name}.weight"]), bias, eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each row."""
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
