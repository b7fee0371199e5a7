"""Batches: every pair in exactly one, none over the budget."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sie_core.local.packing import PackedBatch, plan_batches
from sie_core.local.tokenization import Pair

lengths = st.lists(st.integers(1, 50), max_size=80)


@given(lengths, st.integers(1, 400), st.none() | st.integers(1, 9))
def test_batches_partition_the_pairs_within_the_budget(
    lengths: list[int], max_tokens: int, max_pairs: int | None
) -> None:
    """Positions are neither lost nor doubled; only a pair that is too long alone exceeds it."""
    batches = plan_batches(lengths, max_tokens=max_tokens, max_pairs=max_pairs)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[i] for i in batch) <= max_tokens or len(batch) == 1
        assert max_pairs is None or len(batch) <= max_pairs


@given(lengths)
def test_the_longest_come_first(lengths: list[int]) -> None:
    """Memory peaks at the start, where it fails early, and neighbours are of similar length."""
    batches = plan_batches(lengths, max_tokens=100)
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(lengths, reverse=True)


def test_pairs_are_laid_end_to_end() -> None:
    """Tokens follow each other without padding; positions begin anew in every pair."""
    pairs = [
        Pair(np.array([5, 6, 7], np.int32), 2, is_truncated=False),
        Pair(np.array([8], np.int32), 0, is_truncated=False),
    ]
    batch = PackedBatch.of(pairs, position_offset=2)
    assert batch.token_ids.tolist() == [5, 6, 7, 8]
    assert batch.type_ids.tolist() == [0, 0, 1, 1]
    assert batch.position_ids.tolist() == [2, 3, 4, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 4]
    assert batch.lengths.tolist() == [3, 1]
    assert (batch.num_tokens, batch.num_pairs, batch.max_length) == (4, 2, 3)
    for row in (batch.token_ids, batch.type_ids, batch.position_ids, batch.cu_seqlens):
        assert row.dtype == np.int32
