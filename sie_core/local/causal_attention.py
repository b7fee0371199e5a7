"""Causal attention over packed rows, of sequences that see a shared prefix as well.

Queries and keys differ in number: a sequence's last row sees all its keys, the row before all but
the last, and so on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from sie_core.local.causal_batch import CausalBatch, Span

_BLOCK = 256
"""Queries computed at once: bounds the mask, and leaves out keys that none of them sees."""


class CausalAttention(Protocol):
    """Attention of one batch. Keys and values are given for each span, one after the other."""

    def full(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Let every row see what is before it, and itself.

        Args:
            query: [rows, heads, head size].
            key: [keys, key/value heads, head size].
            value: The same.

        Returns:
            [rows, heads, head size].
        """
        ...

    def last(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Let the last row of every sequence see its whole sequence.

        Args:
            query: Of those rows; [sequences, heads, head size].
            key: Of all spans; [keys, key/value heads, head size].
            value: The same.

        Returns:
            [sequences, heads, head size].
        """
        ...


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring spans of the same number of rows and of keys.

    Attributes:
        first: Its first span.
        count: How many.
    """

    first: Span
    count: int

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """View rows of [rows, …] as [count, length, …]."""
        begin, length = self.first.row, self.first.length
        rows = x[begin : begin + self.count * length]
        return rows.view(self.count, length, *x.shape[1:])

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """View keys of [keys, heads, …] as [count, heads, num_keys, …]."""
        begin, num_keys = self.first.key, self.first.num_keys
        keys = x[begin : begin + self.count * num_keys]
        return keys.view(self.count, num_keys, *x.shape[1:]).transpose(1, 2)


class GroupedCausalAttention:
    """Attention with one call for each group of sequences of the same size, on any device.

    Args:
        batch: Whose sequences. Those of the same size should be neighbours.
    """

    def __init__(self, batch: CausalBatch) -> None:
        self._groups = _group(batch.spans)
        self._sequence_groups = _group(batch.sequence_spans)
        self._max_keys = max(span.num_keys for span in batch.spans)
        self._biases: dict[tuple[int, int], torch.Tensor] = {}

    def full(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `CausalAttention.full`."""
        out = torch.empty_like(query)
        for group in self._groups:
            queries, attended = group.rows(query), group.rows(out)
            length, behind = group.first.length, group.first.num_keys - group.first.length
            keys, values = group.keys(key), group.keys(value)
            for begin in range(0, length, _BLOCK):
                end = min(begin + _BLOCK, length)
                attended[:, begin:end] = self._attend(
                    queries[:, begin:end],
                    keys[:, :, : behind + end],
                    values[:, :, : behind + end],
                )
        return out

    def last(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `CausalAttention.last`."""
        attended, position = [], 0
        for group in self._sequence_groups:
            queries = query[position : position + group.count, None]
            attended.append(self._attend(queries, group.keys(key), group.keys(value))[:, 0])
            position += group.count
        return torch.cat(attended)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend, the last query to all keys.

        The query heads that share a key head are put one after the other, as more queries of one
        head: keys and values need not be repeated.

        Args:
            query: [count, queries, heads, head size].
            key: [count, key/value heads, keys, head size].
            value: The same.

        Returns:
            The same shape as `query`.
        """
        count, num_queries, num_heads, head_size = query.shape
        heads = (key.shape[1], num_heads // key.shape[1])
        split = query.view(count, num_queries, *heads, head_size).permute(0, 2, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(
            split.flatten(2, 3), key, value, attn_mask=self._bias(heads[1], query, key)
        )
        attended = attended.view(count, *heads, num_queries, head_size)
        return attended.permute(0, 3, 1, 2, 4).flatten(2, 3)

    def _bias(self, num_shared: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        """Return what is added to scores; [shared heads * queries, keys], None for nothing."""
        num_queries, num_keys = query.shape[1], key.shape[2]
        if num_queries == 1:
            return None
        # One of the largest size serves for the smaller: only its last columns hide anything.
        size = num_shared, num_queries
        if size not in self._biases:
            bias = query.new_zeros((num_queries, max(self._max_keys, num_queries)))
            hidden = torch.full_like(bias[:, -num_queries:], -math.inf).triu_(1)
            bias[:, -num_queries:] = hidden
            self._biases[size] = bias.repeat(num_shared, 1)
        return self._biases[size][:, -num_keys:]


def _group(spans: Sequence[Span]) -> list[_Group]:
    groups = []
    for _, same in itertools.groupby(spans, lambda span: (span.length, span.num_keys)):
        members = list(same)
        groups.append(_Group(members[0], len(members)))
    return groups


class CausalKernel(Protocol):
    """Causal attention over packed rows by a kernel that takes cumulative lengths."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        cu_seqlens: tuple[torch.Tensor, torch.Tensor],
        max_lengths: tuple[int, int],
    ) -> torch.Tensor:
        """Attend, each sequence's last query to all its keys.

        Args:
            query: [queries, heads, head size].
            key: [keys, key/value heads, head size].
            value: The same.
            cu_seqlens: Where each sequence's queries begin, and its keys; int32.
            max_lengths: Bounds on its queries and keys.

        Returns:
            [queries, heads, head size].
        """
        ...


class VarlenCausalAttention:
    """Attention with one call for all sequences.

    Args:
        batch: Whose sequences.
        device: Where it is computed.
        kernel: Computes it.
    """

    def __init__(self, batch: CausalBatch, device: torch.device, kernel: CausalKernel) -> None:
        self._kernel = kernel
        spans, sequences = batch.spans, batch.sequence_spans
        self._max_queries = max(span.length for span in spans)
        self._max_keys = max(span.num_keys for span in spans)
        self._first_key = sequences[0].key
        self._cu_queries = _cumulate([span.length for span in spans]).to(device)
        self._cu_keys = _cumulate([span.num_keys for span in spans]).to(device)
        self._cu_one_each = _cumulate([1] * len(sequences)).to(device)
        self._cu_sequence_keys = _cumulate([span.num_keys for span in sequences]).to(device)

    def full(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `CausalAttention.full`."""
        return self._kernel(
            query,
            key,
            value,
            cu_seqlens=(self._cu_queries, self._cu_keys),
            max_lengths=(self._max_queries, self._max_keys),
        )

    def last(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `CausalAttention.last`."""
        return self._kernel(
            query,
            key[self._first_key :],
            value[self._first_key :],
            cu_seqlens=(self._cu_one_each, self._cu_sequence_keys),
            max_lengths=(1, self._max_keys),
        )


def _cumulate(lengths: Sequence[int]) -> torch.Tensor:
    cumulated = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=cumulated[1:])
    return torch.from_numpy(cumulated)
