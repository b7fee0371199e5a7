"""`Projection`: float32 layers behind a body, the `Dense` of sentence-transformers and PyLate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.architecture import Activation
from sie_core.local.layers import Linear
from sie_core.local.weights import Weights

_ACTIVATION_OF: dict[str, Activation] = {
    "Identity": "linear",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
"""torch's modules, by the last part of their names."""


@dataclass(frozen=True, slots=True)
class Dense:
    """One linear layer with an activation, and perhaps what it was given added to what it gives."""

    linear: Linear
    activation: Activation = "linear"
    has_residual: bool = False
    residual: Linear | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project [rows, in] to [rows, out]."""
        out = self.linear.activated(x, self.activation)
        if not self.has_residual:
            return out
        return out + (x if self.residual is None else self.residual(x))


@dataclass(frozen=True, slots=True)
class Projection:
    """Linear layers, one after the other; none changes nothing."""

    layers: Sequence[Dense] = ()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project [rows, in] to [rows, out]."""
        for layer in self.layers:
            x = layer(x)
        return x


def read_dense(
    config: dict[str, Any],
    weights: Weights,
    *,
    num_in: int,
    where: str,
    convert: Callable[[torch.Tensor], torch.Tensor],
) -> Dense:
    """Read a `Dense` from its folder's config.json and weights.

    Args:
        config: Its config.json.
        weights: Its tensors.
        num_in: The width that comes in.
        where: How errors name it.
        convert: Puts a tensor where it will run.

    Raises:
        UnsupportedModelError: Its activation is none that is computed here.
        ModelLoadError: A tensor is missing or does not fit.
    """
    name = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh")
    if name.rpartition(".")[2] not in _ACTIVATION_OF or not name.startswith("torch.nn."):
        msg = (
            f"{where} asks for the activation {name!r}; supported are "
            f"{', '.join(_ACTIVATION_OF)} of torch.nn"
        )
        raise UnsupportedModelError(msg)
    has_bias = bool(config.get("bias", True))
    linear = Linear.read(weights, "linear", convert=convert, has_bias=has_bias)
    _check_width(linear, num_in, where)
    has_residual = bool(config.get("use_residual", False))
    residual = None
    if has_residual and len(linear.weight) != num_in:
        residual = Linear.read(weights, "residual", convert=convert, has_bias=False)
    return Dense(linear, _ACTIVATION_OF[name.rpartition(".")[2]], has_residual, residual)


def check_projection(weight: torch.Tensor, num_in: int, where: str) -> torch.Tensor:
    """Return the weight of a linear layer for rows of `num_in` numbers.

    Raises:
        ModelLoadError: It is for others.
    """
    if weight.ndim != 2 or weight.shape[1] != num_in:  # noqa: PLR2004  a matrix
        msg = (
            f"{where} holds a projection of the shape {tuple(weight.shape)}, but the model gives "
            f"{num_in} numbers for each token"
        )
        raise ModelLoadError(msg)
    return weight


def _check_width(linear: Linear, num_in: int, where: str) -> None:
    check_projection(linear.weight, num_in, where)
