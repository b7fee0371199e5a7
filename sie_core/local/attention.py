"""Attention over packed rows: the one place that knows where a sequence ends.

An `Attention` is made for one batch. `full` is the attention of a layer; `first` that of a last
layer of which only the sequences' first tokens are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from sie_core.local.layers import Linear
from sie_core.local.packing import PackedBatch

_MIN_BLOCKED_WINDOWS = 4
"""Sequences longer than this many windows are attended to in blocks."""

_MIN_BLOCK = 64
"""Queries per block, at least: smaller products waste more than they save."""


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


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring sequences of the same number of rows.

    Attributes:
        members: Which sequences.
        rows: Their rows, all of them.
        count: How many sequences.
        length: Rows of each.
        is_token: Which rows are seen, as padding and a few tokens are not; [count, length]. None if
            all are.
    """

    members: slice
    rows: slice
    count: int
    length: int
    is_token: torch.Tensor | None

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """View rows of [rows, …] as [count, length, …]."""
        return x[self.rows].view(self.count, self.length, *x.shape[1:])


class GroupedAttention:
    """Attention with one call for each group of sequences of the same number of rows.

    Args:
        batch: Whose sequences. Those of the same number of rows should be neighbours.
        device: Where it is computed.
    """

    def __init__(self, batch: PackedBatch, device: torch.device) -> None:
        self._groups = list(_find_groups(batch, device))
        self._device = device
        self._end = int(batch.cu_seqlens[-1])
        self._biases: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def full(self, qkv: torch.Tensor, *, window: int | None = None) -> torch.Tensor:
        """See `Attention.full`."""
        out = torch.empty_like(qkv[:, 0])
        out[self._end :] = 0  # rows of padding; what is computed from them has to be finite
        for index, group in enumerate(self._groups):
            q, k, v = group.view(qkv).permute(2, 0, 3, 1, 4)
            if window is not None and group.length > _MIN_BLOCKED_WINDOWS * window:
                attended = _attend_in_blocks(q, k, v, group.is_token, window)
            else:
                bias = self._bias(index, window, q.dtype)
                attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            group.view(out).copy_(attended.transpose(1, 2))
        return out

    def first(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `Attention.first`."""
        out = torch.empty_like(query)
        for index, group in enumerate(self._groups):
            q = query[group.members, :, None]
            k, v = (group.view(x).transpose(1, 2) for x in (key, value))
            bias = self._bias(index, None, q.dtype)
            attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            out[group.members] = attended[:, :, 0]
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
        for group in self._groups:
            x = group.view(hidden)
            scores = torch.bmm(projected[group.members], x.transpose(1, 2)).float()
            if group.is_token is not None:
                scores.masked_fill_(~group.is_token[:, None, :], -math.inf)
            torch.bmm(scores.softmax(-1).to(x.dtype), x, out=means[group.members])
        attended = torch.bmm(means.transpose(0, 1), value_weight.transpose(1, 2)).transpose(0, 1)
        if value.bias is not None:
            attended = attended + value.bias.to(hidden.dtype).view(num_heads, head_size)
        return attended

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Attention.mean`."""
        means = []
        for group in self._groups:
            x = group.view(rows).float()
            if group.is_token is None:
                means.append(x.mean(1))
            else:
                is_token = group.is_token[:, :, None]
                means.append((x * is_token).sum(1) / is_token.sum(1))
        return torch.cat(means)

    def _bias(self, index: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return what is added to a group's scores, the same in every layer of its kind."""
        if (index, window) not in self._biases:
            group = self._groups[index]
            self._biases[index, window] = _make_bias(group, window, dtype, self._device)
        return self._biases[index, window]


def _find_groups(batch: PackedBatch, device: torch.device) -> Iterator[_Group]:
    sizes = np.diff(batch.cu_seqlens)
    first = 0
    for length, members in itertools.groupby(sizes.tolist()):
        count = sum(1 for _ in members)
        num_seen = batch.num_seen[first : first + count]
        is_token = None
        if num_seen.min() < length:
            is_token = torch.from_numpy(np.arange(length) < num_seen[:, None]).to(device)
        begin = int(batch.cu_seqlens[first])
        yield _Group(
            members=slice(first, first + count),
            rows=slice(begin, begin + count * length),
            count=count,
            length=length,
            is_token=is_token,
        )
        first += count


def _make_bias(
    group: _Group, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """Return what is added to scores; broadcasts to [count, heads, queries, keys]."""
    is_token = None if group.is_token is None else group.is_token[:, None, None, :]
    if window is None or group.length <= window + 1:
        return None if is_token is None else _to_bias(is_token, dtype)
    rows = torch.arange(group.length, device=device)
    distances = (rows[:, None] - rows).abs()
    is_seen = distances <= window
    if is_token is not None:
        is_seen = _never_blind(is_seen & is_token, distances == 0)
    return _to_bias(is_seen, dtype)


def _never_blind(is_seen: torch.Tensor, is_self: torch.Tensor) -> torch.Tensor:
    """Let rows that would see nothing see themselves: a softmax of nothing makes NaN."""
    return is_seen | (is_self & ~is_seen.any(-1, keepdim=True))


def _to_bias(is_seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where something is seen and -inf elsewhere; no row may see nothing."""
    return torch.zeros_like(is_seen, dtype=dtype).masked_fill_(~is_seen, -math.inf)


def _attend_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_token: torch.Tensor | None,
    window: int,
) -> torch.Tensor:
    """Attend within a window in time linear in the length: each block of queries to its keys.

    Args:
        query: [count, heads, length, head size].
        key: The same.
        value: The same.
        is_token: Which rows are tokens; [count, length]. None if all are.
        window: A token sees those at most this far away.

    Returns:
        The same shape as `query`.
    """
    count, num_heads, length, head_size = query.shape
    block = max(window, _MIN_BLOCK)
    num_blocks = -(-length // block)
    behind = num_blocks * block - length
    span = block + 2 * window

    def blocks_of_keys(x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, (0, 0, window, window + behind)).unfold(2, span, block)
        return x.permute(0, 2, 1, 4, 3).flatten(0, 1)

    q = nn.functional.pad(query, (0, 0, 0, behind)).view(count, num_heads, num_blocks, block, -1)
    rows = torch.arange(block, device=query.device)[:, None]
    keys = torch.arange(-window, block + window, device=query.device)
    if is_token is None:
        is_token = query.new_ones((1, length), dtype=torch.bool)
    is_key = nn.functional.pad(is_token, (window, window + behind)).unfold(1, span, block)
    is_near = (rows - keys).abs() <= window
    is_seen = _never_blind(is_near & is_key[:, :, None, :], rows == keys)
    bias = _to_bias(is_seen, query.dtype).expand(count, -1, -1, -1).flatten(0, 1)[:, None]
    attended = nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2).flatten(0, 1), blocks_of_keys(key), blocks_of_keys(value), attn_mask=bias
    )
    attended = attended.view(count, num_blocks, num_heads, block, head_size).transpose(1, 2)
    return attended.flatten(2, 3)[:, :, :length]


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
