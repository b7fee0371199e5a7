"""Workers: each scores batches of pairs with buffers of its own, sharing the model's weights.

A worker is called from one thread at a time; several run at once, in a thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from sie_core.local.architecture import Architecture
from sie_core.local.attention import Attention, GroupedAttention, VarlenAttention, VarlenKernel
from sie_core.local.graphs import Bucket, GraphCache, is_worth_a_graph
from sie_core.local.layers import PackedInputs, Placement
from sie_core.local.packing import NO_ROUNDING, PackedBatch, Rounding
from sie_core.local.tokenization import Pair

Worker = Callable[[Sequence[Pair]], list[float]]
"""Scores one batch: one raw float32 score per pair. At least one pair, of any lengths."""

_NUM_TWO_LABEL = 2


class Classifier(Protocol):
    """A family's forward pass."""

    def forward(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the float32 logits of a batch; [sequences, labels]."""
        ...


class GroupedWorker:
    """Scores batches by groups of sequences of similar length, on any device.

    Args:
        classifier: The forward pass, shared.
        architecture: The model's shape.
        device: Where the weights are.
        rounding: The sizes that batches are kept to.
    """

    def __init__(
        self,
        classifier: Classifier,
        architecture: Architecture,
        device: torch.device,
        rounding: Rounding = NO_ROUNDING,
    ) -> None:
        self._classifier = classifier
        self._position_offset = architecture.position_offset
        self._pad_token_id = architecture.pad_token_id
        self._device = device
        self._rounding = rounding

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one raw score per pair."""
        # Neighbours of the same length are attended to together.
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i].token_ids))
        batch = PackedBatch.of(
            [pairs[i] for i in order],
            position_offset=self._position_offset,
            rounding=self._rounding,
            pad_token_id=self._pad_token_id,
        )
        with torch.inference_mode():
            attention = GroupedAttention(batch, self._device)
            inputs = PackedInputs.of(batch).to(self._device)
            logits = to_scores(self._classifier.forward(inputs, attention)).tolist()
        scores = [0.0] * len(pairs)
        for position, logit in zip(order, logits, strict=True):
            scores[position] = logit
        return scores


def choose_rounding(placement: Placement) -> Rounding:
    """Return the sizes that a device likes.

    oneDNN, which computes on the CPU, builds a kernel for every new size: 3.6 ms for a linear
    layer's, 0.3 ms for a product inside attention, of which it keeps 1,024. In float32 they are
    quick to build, but their memory grows with every size that was not there before. Other devices
    want few groups, each of which is several launches.
    """
    if placement.device.type != "cpu":
        return Rounding(length=32, total=128)
    return Rounding(length=16, total=128)


class Runtime(Protocol):
    """What a `VarlenWorker` needs of its GPU; see `cuda.CudaRuntime`."""

    device: torch.device

    def scope(self) -> AbstractContextManager[None]:
        """Let what is inside run on this worker's stream."""
        ...

    def host_row(self, size: int) -> torch.Tensor:
        """Return host memory from which copies need no waiting; int32."""
        ...

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what `run` launches, and return what launches it again."""
        ...

    def wait(self) -> None:
        """Wait for what has been launched."""
        ...

    def release_memory(self) -> None:
        """Give back what is cached and what dropped graphs had."""
        ...


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass over buffers of its own.

    Attributes:
        row: A bucket's batch on the device, where `launch` reads it.
        scores: Where `launch` writes one float32 score per sequence.
        launch: Runs the forward pass; returns before it is done.
    """

    row: torch.Tensor
    scores: torch.Tensor
    launch: Callable[[], None]


class VarlenWorker:
    """Scores batches on a GPU, with a kernel that knows sequences by their cumulative lengths.

    The host never waits but once, for the scores. Small work is replayed from CUDA graphs.

    Args:
        classifier: The forward pass, shared.
        architecture: The model's shape.
        kernel: The attention.
        runtime: The GPU.
    """

    def __init__(
        self,
        classifier: Classifier,
        architecture: Architecture,
        kernel: VarlenKernel,
        runtime: Runtime,
    ) -> None:
        self._classifier = classifier
        self._architecture = architecture
        self._kernel = kernel
        self._runtime = runtime
        self._graphs = GraphCache(self._capture, runtime.release_memory)
        self._row = runtime.host_row(0)
        self._scores = runtime.host_row(0)

    @property
    def num_graphs(self) -> int:
        """Return how many graphs are kept."""
        return len(self._graphs)

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one raw score per pair."""
        batch = PackedBatch.of(pairs, position_offset=self._architecture.position_offset)
        try:
            with self._runtime.scope(), torch.inference_mode():
                return self._score(batch)
        except torch.OutOfMemoryError:
            self._graphs.clear()
            raise

    def _score(self, batch: PackedBatch) -> list[float]:
        bucket = Bucket.coarse(batch)
        if is_worth_a_graph(bucket, flops_per_token=self._architecture.flops_per_token):
            forward = self._graphs.get(bucket) or self._prepare(bucket)
        else:
            bucket = Bucket.tight(batch)
            forward = self._prepare(bucket)
        self._stage(batch, bucket)
        forward.row.copy_(self._row[: bucket.size], non_blocking=True)
        forward.launch()
        scores = self._scores[: batch.num_pairs]
        scores.copy_(forward.scores[: batch.num_pairs].view(torch.int32), non_blocking=True)
        self._runtime.wait()
        return scores.view(torch.float32).tolist()

    def _stage(self, batch: PackedBatch, bucket: Bucket) -> None:
        """Write a batch to memory from which the device copies; nothing reads it at this time."""
        if len(self._row) < bucket.size:
            self._row = self._runtime.host_row(2 * bucket.size)
        if len(self._scores) < bucket.num_sequences:
            self._scores = self._runtime.host_row(2 * bucket.num_sequences)
        bucket.fill(
            self._row.numpy(),
            batch,
            pad_token_id=self._architecture.pad_token_id,
            position=self._architecture.position_offset,
        )

    def _prepare(self, bucket: Bucket) -> Pass:
        """Return a forward pass of a bucket's sizes."""
        device = self._runtime.device
        # Zeros are tokens and lengths too: no pass over what is not yet filled does harm.
        row = torch.zeros(bucket.size, dtype=torch.int32, device=device)
        scores = torch.empty(bucket.num_sequences, dtype=torch.float32, device=device)

        def launch() -> None:
            token_ids, type_ids, position_ids, cu_seqlens, first_rows = bucket.split(row)
            inputs = PackedInputs(token_ids, type_ids, position_ids, first_rows)
            attention = VarlenAttention(cu_seqlens, bucket.max_length, self._kernel)
            scores.copy_(to_scores(self._classifier.forward(inputs, attention)))

        return Pass(row, scores, launch)

    def _capture(self, bucket: Bucket) -> Pass:
        forward = self._prepare(bucket)
        return Pass(forward.row, forward.scores, self._runtime.capture(forward.launch))


def to_scores(logits: torch.Tensor) -> torch.Tensor:
    """Return one raw score per pair from logits of shape [pairs, labels]."""
    if logits.shape[1] == _NUM_TWO_LABEL:
        # The difference of two logits is the logit of their softmax.
        return logits[:, 1] - logits[:, 0]
    return logits[:, 0]
