"""Batches of texts to the last hidden states of their tokens, by whatever runs here fastest.

`load_body` chooses it, and each worker runs it with buffers of its own::

    body = load_body(files, architecture, placement, reads_all=True)
    run = body.open()
    states = run(texts)                  # HiddenStates: rows of all texts, in the order given
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sie_core.local import bert, modernbert, native
from sie_core.local.architecture import Architecture
from sie_core.local.attention import Attention, GroupedAttention, VarlenAttention, VarlenKernel
from sie_core.local.cuda import find_varlen_kernel
from sie_core.local.layers import PackedInputs, Placement
from sie_core.local.memory import count_bytes
from sie_core.local.packing import NO_ROUNDING, Int32s, PackedBatch
from sie_core.local.texts import Text
from sie_core.local.weights import Weights
from sie_core.local.worker import choose_rounding


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """What a body makes of a batch, in float32 and in the order of its texts.

    Attributes:
        rows: Of all tokens of all texts, or of each text's first; [rows, hidden].
        lengths: Rows of each text; on the device of `rows`.
    """

    rows: torch.Tensor
    lengths: torch.Tensor


HiddenRunner = Callable[[Sequence[Text]], HiddenStates]
"""Runs one batch, at least one text of any length; from one thread at a time."""


class Body(Protocol):
    """A family's forward pass."""

    def first_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden state of every sequence's first token; [sequences, hidden]."""
        ...

    def all_tokens(self, inputs: PackedInputs, attention: Attention) -> torch.Tensor:
        """Return the last hidden states of all tokens; [total, hidden]."""
        ...


class LoadedBody(Protocol):
    """A body in memory, shared by the workers that run it."""

    @property
    def computed_by(self) -> str:
        """Say what runs the forward pass."""
        ...

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its weights, mapped ones included."""
        ...

    def open(self) -> HiddenRunner:
        """Return a runner with buffers of its own."""
        ...


def load_body(
    architecture: Architecture, weights: Weights, placement: Placement, *, reads_all: bool
) -> LoadedBody:
    """Check a body's tensors and put them where it will run.

    Args:
        architecture: Its shape.
        weights: Its tensors, with those of heads or without.
        placement: Device and number format.
        reads_all: Whether hidden states of all tokens are wanted, not of the first ones.

    Raises:
        ModelLoadError: A tensor is missing, or does not fit the architecture.
    """
    if architecture.model_type == "modernbert":
        weights.check(modernbert.body_shapes(architecture))
        body: Body = modernbert.ModernBertBody(architecture, weights, placement)
        return TorchBody(body, architecture, placement, reads_all=reads_all)
    weights.check(bert.body_shapes(architecture))
    if placement.device.type == "cpu":
        kernels = native.choose_kernels(architecture, placement.dtype)
        if kernels is not None:
            return CompiledBody(
                native.NativeBody(architecture, weights, kernels, reads_all=reads_all)
            )
    body = bert.BertBody(architecture, weights, placement)
    return TorchBody(body, architecture, placement, reads_all=reads_all)


class CompiledBody:
    """A body in the C kernels.

    Args:
        body: It.
    """

    def __init__(self, body: native.NativeBody) -> None:
        self._body = body

    @property
    def computed_by(self) -> str:
        """Name the kernels."""
        return f"{self._body.kernels} kernels"

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its weights, mapped ones included."""
        return self._body.num_bytes

    def open(self) -> HiddenRunner:
        """Return a runner with a workspace of its own."""
        body, workspace = self._body, native.Workspace(self._body)

        def run(texts: Sequence[Text]) -> HiddenStates:
            batch = PackedBatch.of(texts, position_offset=body.architecture.position_offset)
            rows = body.hidden(workspace.fitting(batch), batch)
            lengths = batch.lengths if body.reads_all else np.ones_like(batch.lengths)
            return HiddenStates(torch.from_numpy(rows), torch.from_numpy(lengths).long())

        return run


class TorchBody:
    """A body in torch, on any device.

    Args:
        body: It.
        architecture: Its shape.
        placement: Where it is.
        reads_all: Whether hidden states of all tokens are wanted.
    """

    def __init__(
        self, body: Body, architecture: Architecture, placement: Placement, *, reads_all: bool
    ) -> None:
        self._body = body
        self._architecture = architecture
        self._device = placement.device
        self._reads_all = reads_all
        self._kernel = find_varlen_kernel(placement.device, placement.dtype, architecture)
        self._rounding = choose_rounding(placement)

    @property
    def computed_by(self) -> str:
        """Say which attention is used."""
        return "torch" if self._kernel is None else "torch, by cumulative lengths"

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its weights, mapped ones included."""
        return count_bytes(self._body)

    def open(self) -> HiddenRunner:
        """Return a runner; torch's own buffers serve all of them."""
        return self._run

    def _run(self, texts: Sequence[Text]) -> HiddenStates:
        # Neighbours of the same length are attended to together, where there is no kernel for that.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].token_ids))
        has_unseen = any(text.num_seen < text.num_tokens for text in texts)
        kernel = None if has_unseen else self._kernel
        batch = PackedBatch.of(
            [texts[i] for i in order],
            position_offset=self._architecture.position_offset,
            pad_token_id=self._architecture.pad_token_id,
            rounding=self._rounding if kernel is None else NO_ROUNDING,
        )
        with torch.inference_mode():
            inputs = PackedInputs.of(batch).to(self._device)
            attention = self._attention(batch, kernel)
            forward = self._body.all_tokens if self._reads_all else self._body.first_tokens
            hidden = forward(inputs, attention).float()
            back = np.argsort(order).astype(np.int32)
            lengths = batch.lengths[back] if self._reads_all else np.ones(len(texts), np.int32)
            begins = batch.cu_seqlens[:-1][back] if self._reads_all else back
            rows = _ranges(begins, lengths)
            return HiddenStates(
                hidden.index_select(0, torch.from_numpy(rows).to(self._device)),
                torch.from_numpy(lengths).long().to(self._device),
            )

    def _attention(self, batch: PackedBatch, kernel: VarlenKernel | None) -> Attention:
        if kernel is None:
            return GroupedAttention(batch, self._device)
        cu_seqlens = torch.from_numpy(batch.cu_seqlens).to(self._device)
        return VarlenAttention(cu_seqlens, batch.max_length, kernel)


def _ranges(begins: Int32s, lengths: Int32s) -> NDArray[np.int64]:
    """Return the numbers of all ranges, one after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    within = np.arange(ends[-1], dtype=np.int64) - np.repeat(ends - lengths, lengths)
    numbers: NDArray[np.int64] = within + np.repeat(begins, lengths)
    return numbers
