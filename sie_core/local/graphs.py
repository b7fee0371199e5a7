"""CUDA graphs by bucket: small models and small batches cost launches more than arithmetic.

A graph replays one forward pass, over buffers that stay where they are, for sizes that were fixed
when it was captured. So sizes are rounded up to buckets, and a batch is filled up to its bucket
with dummy sequences of padding tokens, which nothing reads. A bucket is captured when it is used
for the second time; the first pass runs as it is, which also warms up what capturing needs.

Nothing here calls a GPU: what captures is given (`cuda.CudaRuntime.capture`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import numpy as np
import torch

from sie_core.local.packing import Int32s, PackedBatch

_logger = logging.getLogger(__name__)

MAX_GRAPH_FLOPS = 4e12
"""Above this work a batch keeps a large GPU busy for longer than its launches take, some 5 ms."""

MAX_GRAPHS = 48
"""Graphs kept per worker, least recently used first out; they share one pool of memory."""

_STEPS_PER_OCTAVE_BITS = 4
"""Totals are rounded up to 16 sizes per power of two: 3% of dummy tokens on average."""

_MIN_TOKEN_STEP = 64
_MIN_SEQUENCES = 16
_MIN_LENGTH = 128
_COARSE_FACTOR = 4
"""Sequences and longest lengths, which cost next to nothing, are rounded up to powers of four."""

_EAGER_TOKEN_STEP = 128
"""Without a graph totals are rounded up too: matrix products like it, and memory is reused."""

_Row = TypeVar("_Row", Int32s, torch.Tensor)
_Graph = TypeVar("_Graph")


@dataclass(frozen=True, slots=True)
class Bucket:
    """The sizes of a forward pass.

    Attributes:
        num_tokens: Tokens in all, dummies included.
        num_sequences: Sequences, dummies included.
        max_length: A bound on the longest of them.
    """

    num_tokens: int
    num_sequences: int
    max_length: int

    @classmethod
    def coarse(cls, batch: PackedBatch) -> Self:
        """Return the bucket of a batch that is to be captured: few different ones."""
        total = batch.num_tokens
        step = max(_MIN_TOKEN_STEP, (1 << total.bit_length() - 1) >> _STEPS_PER_OCTAVE_BITS)
        max_length = _round_up_to_power(batch.max_length, _MIN_LENGTH)
        return cls._holding(batch, _round_up(total, step), max_length, is_coarse=True)

    @classmethod
    def tight(cls, batch: PackedBatch) -> Self:
        """Return the bucket of a batch that runs once."""
        num_tokens = _round_up(batch.num_tokens, _EAGER_TOKEN_STEP)
        return cls._holding(batch, num_tokens, batch.max_length, is_coarse=False)

    @classmethod
    def _holding(
        cls, batch: PackedBatch, num_tokens: int, max_length: int, *, is_coarse: bool
    ) -> Self:
        num_dummies = -(-(num_tokens - batch.num_tokens) // max_length)
        num_sequences = batch.num_pairs + num_dummies
        if is_coarse:
            num_sequences = _round_up_to_power(num_sequences, _MIN_SEQUENCES)
        return cls(num_tokens, num_sequences, max_length)

    @property
    def size(self) -> int:
        """Return the numbers that a filled batch takes."""
        return 3 * self.num_tokens + 2 * self.num_sequences + 1

    def split(self, row: _Row) -> tuple[_Row, _Row, _Row, _Row, _Row]:
        """View one row of `size` numbers as what a batch consists of.

        Returns:
            Token ids, type ids, position ids, cumulative lengths and first rows.
        """
        n = self.num_tokens
        ends = 3 * n + self.num_sequences + 1
        return row[:n], row[n : 2 * n], row[2 * n : 3 * n], row[3 * n : ends], row[ends : self.size]

    def fill(self, row: Int32s, batch: PackedBatch, *, pad_token_id: int, position: int) -> None:
        """Write a batch into `row`, and dummy sequences behind it.

        Args:
            row: At least `size` numbers, overwritten.
            batch: What fits into this bucket.
            pad_token_id: The token of dummies.
            position: Of every dummy token.
        """
        token_ids, type_ids, position_ids, cu_seqlens, first_rows = self.split(row)
        total, num_pairs = batch.num_tokens, batch.num_pairs
        token_ids[:total], token_ids[total:] = batch.token_ids, pad_token_id
        type_ids[:total], type_ids[total:] = batch.type_ids, 0
        position_ids[:total], position_ids[total:] = batch.position_ids, position
        cu_seqlens[: num_pairs + 1] = batch.cu_seqlens
        num_dummies = self.num_sequences - num_pairs
        # As long as allowed, then what is left, then empty ones.
        ends = total + self.max_length * np.arange(1, num_dummies + 1, dtype=np.int64)
        cu_seqlens[num_pairs + 1 :] = np.minimum(ends, self.num_tokens)
        # An empty one begins behind the last row; it may as well read that.
        np.minimum(cu_seqlens[:-1], self.num_tokens - 1, out=first_rows)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _round_up_to_power(number: int, least: int) -> int:
    while least < number:
        least *= _COARSE_FACTOR
    return least


class GraphCache(Generic[_Graph]):
    """Captured graphs by bucket. Not for several threads at once.

    A graph that cannot be captured costs speed and nothing else: the batch runs without one. When
    memory is short all graphs are given up.

    Args:
        capture: Makes the graph of a bucket.
        release: Gives back the memory of graphs, once all of them are dropped.
        max_graphs: How many are kept.
    """

    def __init__(
        self,
        capture: Callable[[Bucket], _Graph],
        release: Callable[[], None],
        *,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self._capture = capture
        self._release = release
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Bucket, _Graph] = OrderedDict()
        self._seen: OrderedDict[Bucket, None] = OrderedDict()
        self._is_broken = False

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, bucket: Bucket) -> _Graph | None:
        """Return a bucket's graph, or None where there is none (yet)."""
        if bucket in self._graphs:
            self._graphs.move_to_end(bucket)
            return self._graphs[bucket]
        if self._is_broken or not self._is_second_use(bucket):
            return None
        try:
            graph = self._capture(bucket)
        except (torch.OutOfMemoryError, MemoryError):
            self.clear()
            return None
        except RuntimeError as exc:
            self._is_broken = True
            _logger.warning("scoring goes on without CUDA graphs, which failed here: %s", exc)
            return None
        self._graphs[bucket] = graph
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)
        return graph

    def clear(self) -> None:
        """Give all graphs up; buckets are captured anew when they are used twice again."""
        self._graphs.clear()
        self._seen.clear()
        self._release()

    def _is_second_use(self, bucket: Bucket) -> bool:
        if bucket in self._seen:
            del self._seen[bucket]
            return True
        self._seen[bucket] = None
        if len(self._seen) > self._max_graphs:
            self._seen.popitem(last=False)
        return False


def is_worth_a_graph(bucket: Bucket, *, flops_per_token: int) -> bool:
    """Tell whether a bucket's launches cost about as much as its arithmetic, or more."""
    return bucket.num_tokens * flops_per_token <= MAX_GRAPH_FLOPS
