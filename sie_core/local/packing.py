"""Pairs to batches, and a batch to one row of tokens with no padding.

Linear layers, LayerNorms and activations need not know where one sequence ends and the next
begins; only attention does, and gets it from the cumulative lengths::

    batch = PackedBatch.of(pairs, position_offset=architecture.position_offset)
    batch.token_ids                                  # [total] of all pairs, one after the other
    batch.cu_seqlens                                 # [pairs + 1]: pair i is cu[i]:cu[i + 1]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sie_core.local.tokenization import Pair

Int32s = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as the model reads it, in the order of its pairs, on the CPU.

    Attributes:
        token_ids: Of all pairs, one after the other; [total].
        type_ids: Which part of its pair each token belongs to; [total].
        position_ids: The position of each token in its pair, from the model's first; [total].
        cu_seqlens: Where each pair begins, and at last the total; [pairs + 1].
        lengths: Tokens of each pair; [pairs].
    """

    token_ids: Int32s
    type_ids: Int32s
    position_ids: Int32s
    cu_seqlens: Int32s
    lengths: Int32s

    @classmethod
    def of(cls, pairs: Sequence[Pair], *, position_offset: int = 0) -> PackedBatch:
        """Pack pairs.

        Args:
            pairs: At least one.
            position_offset: The position of each pair's first token.
        """
        lengths = np.fromiter((len(pair.token_ids) for pair in pairs), np.int32, len(pairs))
        cu_seqlens = np.zeros(len(pairs) + 1, np.int32)
        np.cumsum(lengths, out=cu_seqlens[1:])
        total = int(cu_seqlens[-1])
        positions = np.arange(total, dtype=np.int32) - np.repeat(cu_seqlens[:-1], lengths)
        num_first = np.fromiter((pair.num_first for pair in pairs), np.int32, len(pairs))
        return cls(
            token_ids=np.concatenate([pair.token_ids for pair in pairs], dtype=np.int32),
            type_ids=(positions >= np.repeat(num_first, lengths)).astype(np.int32),
            position_ids=positions + np.int32(position_offset),
            cu_seqlens=cu_seqlens,
            lengths=lengths,
        )

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all pairs together."""
        return int(self.cu_seqlens[-1])

    @property
    def num_pairs(self) -> int:
        """Return the number of pairs."""
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        """Return the tokens of the longest pair."""
        return int(self.lengths.max())
