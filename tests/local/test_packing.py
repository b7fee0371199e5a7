"""A batch is one row of tokens, which says where each pair begins."""

from __future__ import annotations

import numpy as np

from sie_core.local.packing import PackedBatch, Rounding
from sie_core.local.tokenization import Pair

PAIRS = [
    Pair(np.array([5, 6, 7], np.int32), 2, is_truncated=False),
    Pair(np.array([8], np.int32), 0, is_truncated=False),
]


def test_pairs_are_laid_end_to_end() -> None:
    """Tokens follow each other without padding; positions begin anew in every pair."""
    batch = PackedBatch.of(PAIRS, position_offset=2)
    assert batch.token_ids.tolist() == [5, 6, 7, 8]
    assert batch.type_ids.tolist() == [0, 0, 1, 1]
    assert batch.position_ids.tolist() == [2, 3, 4, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 4]
    assert batch.lengths.tolist() == [3, 1]
    assert (batch.num_tokens, batch.num_pairs, batch.max_length) == (4, 2, 3)
    for row in (batch.token_ids, batch.type_ids, batch.position_ids, batch.cu_seqlens):
        assert row.dtype == np.int32


def test_rounded_sizes_have_padding_behind_pairs_and_behind_the_batch() -> None:
    """Each pair takes a multiple of two rows, the batch one of five; lengths count tokens."""
    batch = PackedBatch.of(
        PAIRS, position_offset=2, rounding=Rounding(length=2, total=5), pad_token_id=9
    )
    assert batch.token_ids.tolist() == [5, 6, 7, 9, 8, 9, 9, 9, 9, 9]
    assert batch.type_ids.tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert batch.position_ids.tolist() == [2, 3, 4, 2, 2, 2, 2, 2, 2, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.num_tokens == 4
