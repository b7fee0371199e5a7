"""Rotary positions: queries and keys turned by an angle for each position.

Su et al. 2021, arXiv:2104.09864. The product of two turned vectors depends on how far apart their
positions are, and so attention needs no table of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from sie_core.local.architecture import Architecture
from sie_core.local.layers import Linear

_QKV = 3


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotary embedding of a batch's positions, as complex numbers of length 1.

    Rotating a pair of numbers by an angle is multiplying one complex number by another (section
    3.4.2). The pairs that a checkpoint has in the two halves of a
    head are neighbours here: see `interleaved`.

    Attributes:
        factors: [rows, 1, 1, head size / 2].
    """

    factors: torch.Tensor

    @classmethod
    def of(cls, position_ids: torch.Tensor, *, head_size: int, theta: float) -> Self:
        """Compute it, in float32."""
        steps = torch.arange(0, head_size, 2, dtype=torch.float32, device=position_ids.device)
        angles = position_ids[:, None].float() * (1.0 / theta ** (steps / head_size))
        return cls(torch.complex(angles.cos(), angles.sin())[:, None, None, :])

    def apply(self, x: torch.Tensor) -> None:
        """Rotate [rows, n, heads, head size] in place; computed in float32."""
        exact = x.float()  # x itself, where it is float32
        torch.view_as_complex(exact.view(*x.shape[:-1], -1, 2)).mul_(self.factors)
        if exact is not x:
            x.copy_(exact)


def interleaved(qkv: Linear, num_heads: int) -> Linear:
    """Put the first and the second half of every query and key head alternately.

    Their products, which are all that is made of them, do not depend on the order.

    Args:
        qkv: Gives queries, keys and values; [3 * hidden, …].
        num_heads: Heads of queries, and of keys and values.
    """
    bias = None if qkv.bias is None else interleaved_rows(qkv.bias, num_heads)
    return Linear(interleaved_rows(qkv.weight, num_heads), bias)


def interleaved_rows(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Do the same to a weight or bias of queries, keys and values; [3 * hidden, …]."""
    query_key, value = qkv.tensor_split([2 * len(qkv) // _QKV])
    return torch.cat([interleaved_heads(query_key, 2 * num_heads), value])


def interleaved_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Do the same to a weight or bias of heads that are all rotated; [heads * head size, …]."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).flatten(0, 2)


Rotations = dict[float, Rotation]
"""A batch's rotation for each base that some layer has."""


def rotations_of(position_ids: torch.Tensor, architecture: Architecture) -> Rotations:
    """Return the rotation of a batch for each base that some layer has; none without any."""
    return {
        theta: Rotation.of(position_ids, head_size=architecture.head_size, theta=theta)
        for theta in {layer.theta for layer in architecture.rotary_layers}
    }
