"""Pairs, or texts, to batches, and a batch to one row of tokens with no padding.

"Pair" stands for either below.

Linear layers, LayerNorms and activations need not know where one sequence ends and the next
begins; only attention does, and gets it from the cumulative lengths::

    batch = PackedBatch.of(pairs, position_offset=architecture.position_offset)
    batch.token_ids                                  # [total] of all pairs, one after the other
    batch.cu_seqlens                                 # [pairs + 1]: pair i is cu[i]:cu[i + 1]

Where a device builds a kernel for every size that it has not seen, a `Rounding` makes sizes recur,
at the price of a few rows of padding behind each pair and behind the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]


class Packable(Protocol):
    """A sequence of tokens that an encoder reads: a `Pair` or a `Text`."""

    @property
    def token_ids(self) -> Int32s:
        """The tokens, special ones included."""
        ...

    @property
    def num_first(self) -> int:
        """How many tokens, from the start, have the type id 0; those behind them have 1."""
        ...

    @property
    def num_seen(self) -> int:
        """How many tokens, from the start, are seen by the tokens of the sequence: mostly all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """To what multiples sizes are rounded up, by rows of padding.

    Attributes:
        length: Rows of each pair.
        total: Rows of a batch.
    """

    length: int = 1
    total: int = 1


NO_ROUNDING = Rounding()
"""No row of padding."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as the model reads it, in the order of its pairs, on the CPU.

    Attributes:
        token_ids: Of all pairs, one after the other; [rows].
        type_ids: Which part of its pair each token belongs to; [rows].
        position_ids: The position of each token in its pair, from the model's first; [rows].
        cu_seqlens: Where each pair begins, and where the last one ends; [pairs + 1].
        lengths: Tokens of each pair; [pairs]. Without rounding the differences of `cu_seqlens`.
        num_seen: How many of these attention looks at; [pairs].
    """

    token_ids: Int32s
    type_ids: Int32s
    position_ids: Int32s
    cu_seqlens: Int32s
    lengths: Int32s
    num_seen: Int32s

    @classmethod
    def of(
        cls,
        pairs: Sequence[Packable],
        *,
        position_offset: int = 0,
        rounding: Rounding = NO_ROUNDING,
        pad_token_id: int = 0,
    ) -> PackedBatch:
        """Pack pairs.

        Args:
            pairs: At least one.
            position_offset: The position of each pair's first token, and of padding.
            rounding: Sizes to keep to.
            pad_token_id: The token in rows of padding.
        """
        lengths = np.fromiter((len(pair.token_ids) for pair in pairs), np.int32, len(pairs))
        cu_seqlens = np.zeros(len(pairs) + 1, np.int32)
        np.cumsum(_round_up(lengths, rounding.length), out=cu_seqlens[1:])
        num_tokens = int(lengths.sum())
        num_rows = int(_round_up(cu_seqlens[-1], rounding.total))
        ends = np.cumsum(lengths, dtype=np.int32)
        positions = np.arange(num_tokens, dtype=np.int32) - np.repeat(ends - lengths, lengths)
        token_ids = np.concatenate([pair.token_ids for pair in pairs], dtype=np.int32)
        num_first = np.fromiter((pair.num_first for pair in pairs), np.int32, len(pairs))
        num_seen = np.fromiter((pair.num_seen for pair in pairs), np.int32, len(pairs))
        type_ids = (positions >= np.repeat(num_first, lengths)).astype(np.int32)
        positions += np.int32(position_offset)
        if num_rows == num_tokens:
            return cls(token_ids, type_ids, positions, cu_seqlens, lengths, num_seen)
        rows = positions + np.repeat(cu_seqlens[:-1] - np.int32(position_offset), lengths)
        return cls(
            token_ids=_scatter(token_ids, rows, num_rows, filler=pad_token_id),
            type_ids=_scatter(type_ids, rows, num_rows, filler=0),
            position_ids=_scatter(positions, rows, num_rows, filler=position_offset),
            cu_seqlens=cu_seqlens,
            lengths=lengths,
            num_seen=num_seen,
        )

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all pairs together."""
        return int(self.lengths.sum())

    @property
    def num_pairs(self) -> int:
        """Return the number of pairs."""
        return len(self.lengths)

    @property
    def has_unseen(self) -> bool:
        """Tell whether some tokens are computed and yet seen by no other."""
        return bool((self.num_seen < self.lengths).any())

    @property
    def max_length(self) -> int:
        """Return the tokens of the longest pair."""
        return int(self.lengths.max())


def _round_up(sizes: Int32s, multiple: int) -> Int32s:
    return -(-sizes // np.int32(multiple)) * np.int32(multiple)


def _scatter(values: Int32s, rows: Int32s, num_rows: int, *, filler: int) -> Int32s:
    out = np.full(num_rows, filler, np.int32)
    out[rows] = values
    return out
