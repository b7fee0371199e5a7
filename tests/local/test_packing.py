"""Batches: every pair in exactly one, none over the budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sie_core.local.packing import pad, plan_batches
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
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= max_tokens or len(batch) == 1
        assert max_pairs is None or len(batch) <= max_pairs


@given(lengths)
def test_the_longest_come_first(lengths: list[int]) -> None:
    """Memory peaks at the start, where it fails early, and neighbours are of similar length."""
    batches = plan_batches(lengths, max_tokens=100)
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(lengths, reverse=True)


def test_padding_is_masked() -> None:
    """Shorter pairs are padded at the end with the model's padding id and a mask of zeros."""
    pairs = [Pair([5, 6, 7], [0, 0, 1], is_truncated=False), Pair([8], [0], is_truncated=False)]
    batch = pad(pairs, pad_token_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 1], [0, 0, 0]]
