"""Buckets hold their batches, few buckets serve all sizes, and graphs are kept within bounds."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sie_core.local.graphs import Bucket, GraphCache, is_worth_a_graph
from sie_core.local.packing import PackedBatch
from sie_core.local.tokenization import Pair


def pack(lengths: list[int]) -> PackedBatch:
    """Pack pairs of these lengths, with tokens 7 of type 1."""
    pairs = [Pair(np.full(length, 7, np.int32), 0, is_truncated=False) for length in lengths]
    return PackedBatch.of(pairs, position_offset=2)


@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=150),
    is_coarse=st.booleans(),
)
def test_a_filled_bucket_is_a_batch_with_dummies_behind_it(
    *, lengths: list[int], is_coarse: bool
) -> None:
    """The real sequences stand as they are; dummies are padding, none longer than the bound."""
    batch = pack(lengths)
    bucket = Bucket.coarse(batch) if is_coarse else Bucket.tight(batch)
    row = np.full(bucket.size + 3, -99, np.int32)
    bucket.fill(row, batch, pad_token_id=1, position=2)
    token_ids, type_ids, position_ids, cu_seqlens, first_rows = bucket.split(row)
    total, num_pairs = batch.num_tokens, batch.num_pairs
    assert token_ids.tolist() == [7] * total + [1] * (bucket.num_tokens - total)
    assert type_ids.tolist() == [1] * total + [0] * (bucket.num_tokens - total)
    assert position_ids[:total].tolist() == batch.position_ids.tolist()
    assert set(position_ids[total:].tolist()) <= {2}
    assert len(cu_seqlens) == bucket.num_sequences + 1
    assert cu_seqlens[: num_pairs + 1].tolist() == batch.cu_seqlens.tolist()
    assert cu_seqlens[-1] == bucket.num_tokens
    dummies = np.diff(cu_seqlens)[num_pairs:]
    assert ((dummies >= 0) & (dummies <= bucket.max_length)).all()
    assert bucket.max_length >= batch.max_length
    assert first_rows[:num_pairs].tolist() == batch.cu_seqlens[:-1].tolist()
    assert ((first_rows >= 0) & (first_rows < bucket.num_tokens)).all()
    assert row[bucket.size :].tolist() == [-99] * 3


def test_few_buckets_serve_all_sizes() -> None:
    """Totals up to 32,768 need less than 200 sizes, and above 1,024 at most 1/16 is dummies."""
    buckets = {
        total: Bucket.coarse(pack([100] * (total // 100) + [total % 100 or 1]))
        for total in range(1, 32_769, 37)
    }
    assert len({bucket.num_tokens for bucket in buckets.values()}) < 200
    for total, bucket in buckets.items():
        assert bucket.num_tokens - total <= max(64, total / 16 + 1)
    sizes = {(bucket.num_sequences, bucket.max_length) for bucket in buckets.values()}
    assert len(sizes) < 10


def nothing() -> None:
    """Release nothing."""


def test_a_graph_is_captured_at_the_second_use_and_used_from_then_on() -> None:
    """What is used once is not captured."""
    captured: list[Bucket] = []
    cache = GraphCache(lambda bucket: captured.append(bucket) or len(captured), nothing)
    small, large = Bucket(64, 16, 128), Bucket(128, 16, 128)
    assert [cache.get(small), cache.get(large)] == [None, None]
    assert [cache.get(small), cache.get(small)] == [1, 1]
    assert captured == [small]


def test_the_least_recently_used_graph_goes_first() -> None:
    """No more graphs are kept than allowed, and neither are names of buckets."""
    cache = GraphCache(lambda bucket: bucket.num_tokens, nothing, max_graphs=2)
    buckets = [Bucket(64 * i, 16, 128) for i in range(1, 6)]
    for bucket in buckets[:2]:
        cache.get(bucket)
        cache.get(bucket)
    cache.get(buckets[0])
    cache.get(buckets[2])
    cache.get(buckets[2])
    assert len(cache) == 2
    assert cache.get(buckets[0]) == 64
    assert cache.get(buckets[1]) is None
    for bucket in buckets:
        cache.get(bucket)
    assert len(cache._seen) <= 2


def test_without_memory_graphs_are_given_up_and_scoring_goes_on() -> None:
    """All are dropped, nothing is raised, and capturing is tried again later."""
    is_full = False

    def capture(bucket: Bucket) -> int:
        if is_full:
            raise torch.OutOfMemoryError
        return bucket.num_tokens

    releases: list[int] = []
    cache = GraphCache(capture, lambda: releases.append(len(cache)))
    small, large = Bucket(64, 16, 128), Bucket(128, 16, 128)
    assert [cache.get(small), cache.get(small)] == [None, 64]
    is_full = True
    assert [cache.get(large), cache.get(large)] == [None, None]
    assert releases == [0]
    is_full = False
    assert [cache.get(large), cache.get(large)] == [None, 128]


def test_a_device_that_cannot_capture_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    """Graphs save time and no more: without them the scores are the same, and it is said once."""
    attempts: list[Bucket] = []

    def capture(bucket: Bucket) -> int:
        attempts.append(bucket)
        msg = "operation not permitted when stream is capturing"
        raise RuntimeError(msg)

    cache = GraphCache(capture, nothing)
    with caplog.at_level(logging.WARNING, logger="sie_core"):
        for _ in range(3):
            assert cache.get(Bucket(64, 16, 128)) is None
            assert cache.get(Bucket(128, 16, 128)) is None
    assert len(attempts) == 1
    [record] = caplog.records
    assert record.getMessage().startswith("scoring goes on without CUDA graphs, which failed here")


def test_graphs_are_for_small_work() -> None:
    """MiniLM-L6 with 100 candidates, but not XLM-R large with them."""
    candidates = Bucket(14_336, 128, 512)
    assert is_worth_a_graph(candidates, flops_per_token=21_000_000)
    assert not is_worth_a_graph(candidates, flops_per_token=604_000_000)
