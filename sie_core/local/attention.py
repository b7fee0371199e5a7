"""Attention over packed rows: the one place that knows where a sequence ends.

An `Attention` is made for one batch. `full` is the attention of a layer; `first` that of a last
layer of which only the sequences' first tokens are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from sie_core.local.layers import Linear


class Attention(Protocol):
    """Attention within each sequence of one packed batch."""

    def full(self, qkv: torch.Tensor, *, window: int | None = None) -> torch.Tensor:
        """Let every token see its sequence.

        Args:
            qkv: Queries, keys and values; [total, 3, heads, head size].
            window: A token sees those at most this far away; None for all.

        Returns:
            [total, heads, head size].
        """
        ...

    def first(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Let the first token of every sequence see the whole sequence.

        Args:
            query: Of the first tokens; [sequences, heads, head size].
            key: Of all tokens; [total, heads, head size].
            value: The same.

        Returns:
            [sequences, heads, head size].
        """
        ...

    def first_unprojected(
        self, query: torch.Tensor, hidden: torch.Tensor, key: Linear, value: Linear
    ) -> torch.Tensor:
        """Do what `first` does, with keys and values that need not be computed.

        Args:
            query: Of the first tokens; [sequences, heads, head size].
            hidden: What keys and values are projections of; [total, hidden].
            key: Projects to keys.
            value: Projects to values.

        Returns:
            [sequences, heads, head size].
        """
        ...

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the float32 mean of every sequence's rows; [total, n] to [sequences, n]."""
        ...


class GroupedAttention:
    """Attention with one call for each group of sequences of the same length.

    Args:
        lengths: Tokens of each sequence. Equal ones should be neighbours.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths

    def full(self, qkv: torch.Tensor, *, window: int | None = None) -> torch.Tensor:
        """See `Attention.full`."""
        total, _, num_heads, head_size = qkv.shape
        out = qkv.new_empty((total, num_heads, head_size))
        for rows, count, length in self._groups():
            q, k, v = qkv[rows].view(count, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
            mask = None if window is None else _band(length, window, q.device)
            attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            out[rows].view_as(attended.transpose(1, 2)).copy_(attended.transpose(1, 2))
        return out

    def first(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `Attention.first`."""
        out = torch.empty_like(query)
        begin = 0
        for rows, count, length in self._groups():
            q = query[begin : begin + count, :, None]
            k, v = (x[rows].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (key, value))
            attended = nn.functional.scaled_dot_product_attention(q, k, v)
            out[begin : begin + count] = attended[:, :, 0]
            begin += count
        return out

    def first_unprojected(
        self, query: torch.Tensor, hidden: torch.Tensor, key: Linear, value: Linear
    ) -> torch.Tensor:
        """See `Attention.first_unprojected`.

        Neither keys nor values are projected: query (W_k x) is (query W_k) x, and the mean of
        W_v x is W_v of the mean. The keys' bias adds the same to every score, which softmax takes
        away again.
        """
        num_heads, head_size = query.shape[1:]
        # One matrix per head: [heads, head size, hidden].
        key_weight = key.weight.to(hidden.dtype).view(num_heads, head_size, -1)
        value_weight = value.weight.to(hidden.dtype).view(num_heads, head_size, -1)
        query = query.to(hidden.dtype) / math.sqrt(head_size)
        projected = torch.bmm(query.transpose(0, 1), key_weight).transpose(0, 1)
        means = torch.empty_like(projected)
        begin = 0
        for rows, count, length in self._groups():
            x = hidden[rows].view(count, length, -1)
            scores = torch.bmm(projected[begin : begin + count], x.transpose(1, 2))
            torch.bmm(scores.float().softmax(-1).to(x.dtype), x, out=means[begin : begin + count])
            begin += count
        attended = torch.bmm(means.transpose(0, 1), value_weight.transpose(1, 2)).transpose(0, 1)
        if value.bias is not None:
            attended = attended + value.bias.to(hidden.dtype).view(num_heads, head_size)
        return attended

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Attention.mean`."""
        groups = [
            rows[group].view(count, length, -1).float().mean(1)
            for group, count, length in self._groups()
        ]
        return torch.cat(groups)

    def _groups(self) -> Iterator[tuple[slice, int, int]]:
        """Yield the rows, the number and the length of neighbouring equally long sequences."""
        begin = 0
        for length, group in itertools.groupby(self._lengths):
            count = sum(1 for _ in group)
            yield slice(begin, begin + count * length), count, length
            begin += count * length


class VarlenKernel(Protocol):
    """Attention over packed rows by a kernel that takes cumulative lengths."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        cu_seqlens: tuple[torch.Tensor, torch.Tensor],
        max_lengths: tuple[int, int],
        window: int | None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [queries, heads, head size].
            key: [total, heads, head size].
            value: The same.
            cu_seqlens: Where each sequence's queries begin, and its keys; int32.
            max_lengths: Bounds on its queries and keys.
            window: A query sees keys at most this far away; None for all.

        Returns:
            [queries, heads, head size].
        """
        ...


class VarlenAttention:
    """Attention with one call for all sequences, and no size that the host has to wait for.

    Args:
        cu_seqlens: Where each sequence begins, and the total; int32 on the device.
        max_length: A bound on the longest sequence.
        kernel: Computes it.
    """

    def __init__(self, cu_seqlens: torch.Tensor, max_length: int, kernel: VarlenKernel) -> None:
        self._cu_seqlens = cu_seqlens
        self._max_length = max_length
        self._kernel = kernel

    def full(self, qkv: torch.Tensor, *, window: int | None = None) -> torch.Tensor:
        """See `Attention.full`."""
        cu_seqlens, max_length = self._cu_seqlens, self._max_length
        query, key, value = qkv.unbind(1)
        return self._kernel(
            query,
            key,
            value,
            cu_seqlens=(cu_seqlens, cu_seqlens),
            max_lengths=(max_length, max_length),
            window=window,
        )

    def first(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `Attention.first`."""
        one_each = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        return self._kernel(
            query,
            key,
            value,
            cu_seqlens=(one_each, self._cu_seqlens),
            max_lengths=(1, self._max_length),
            window=None,
        )

    def first_unprojected(
        self, query: torch.Tensor, hidden: torch.Tensor, key: Linear, value: Linear
    ) -> torch.Tensor:
        """See `Attention.first_unprojected`.

        Keys and values are projected here: that costs a GPU less than attention without a kernel.
        """
        hidden = hidden.to(query.dtype)
        heads = (len(hidden), *query.shape[1:])
        return self.first(query, key(hidden).view(heads), value(hidden).view(heads))

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Attention.mean`."""
        return torch.segment_reduce(
            rows.float(), "mean", offsets=self._cu_seqlens, axis=0, unsafe=True
        )


def _band(length: int, window: int, device: torch.device) -> torch.Tensor | None:
    """Return the mask of what each token sees in a sliding window; None where that is all."""
    if length <= window + 1:
        return None
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[None, :]).abs() <= window
