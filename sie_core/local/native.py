"""BERT, RoBERTa and XLM-RoBERTa in C, for the CPU; several times as fast as torch.

The library is compiled from `kernels/` when sie-core is built (`hatch_build.py`). Where there is
none (no compiler, another system or processor) the forward passes in torch take its place and
give the same scores. Which kernels run:

    amx          bfloat16 products; float32 sums, residuals, norms    Intel servers from 2023 on
    amx-float32  float32, each product in digits of a byte            the same
    avx512       float32                                              Intel and AMD servers
    avx2         float32                                              any x86-64 since 2013

`SIE_MAX_CPU_ISA` names the most that may be used: `amx`, `avx512`, `avx2`, or `none` for torch.
A call runs in the thread that makes it, without Python's lock, so one thread per core uses all.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sie_core.errors import InvalidRequestError
from sie_core.local import bert
from sie_core.local.architecture import Activation, Architecture
from sie_core.local.packing import Int32s, PackedBatch
from sie_core.local.tokenization import Pair
from sie_core.local.weights import Weights

LIBRARY = Path(__file__).parent / "kernels" / "libsie_kernels.so"

KERNELS = {"amx": "amx", "amx-float32": "amx", "avx512": "avx512", "avx2": "avx2"}
"""Names of kernels, the fastest first, and the instruction set that each needs."""

_INSTRUCTION_SETS = ("amx", "avx512", "avx2", "none")
"""What `SIE_MAX_CPU_ISA` may be, from the most to the least."""

_KERNELS_OF = {torch.bfloat16: ("amx",), torch.float32: ("amx-float32", "avx512", "avx2")}

# The numbers of `enum sie_epilogue` and of the formats in kernels/model.c.
_ACTIVATIONS: dict[Activation, int] = {"gelu": 1, "gelu_tanh": 2, "relu": 3}
_WORD_FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_MOST_DIGIT_PRODUCTS = (2**31 - 1) // (3 * 2**14)
"""Of rows longer than this, three products of digits per value could overflow 32 bits."""

_WORKSPACE_STEP = 512
"""Buffers grow in steps of this many tokens, so that they are seldom made anew."""


class _Config(ctypes.Structure):
    _fields_ = (
        ("hidden", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("intermediate", ctypes.c_int32),
        ("labels", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("word_format", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("reads_all", ctypes.c_int32),
    )


class _OuterWeights(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            "words",
            "positions",
            "types",
            "norm",
            "norm_bias",
            "dense",
            "dense_bias",
            "classifier",
            "classifier_bias",
        )
    )


class _LayerWeights(ctypes.Structure):
    _fields_ = tuple((f"tensor_{index}", ctypes.c_void_p) for index in range(16))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("ids", ctypes.c_void_p),
        ("types", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("cu_seqlens", ctypes.c_void_p),
        ("sees", ctypes.c_void_p),
        ("count", ctypes.c_int),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled kernels, None where there are none."""
    if not LIBRARY.exists():
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # built for another system or processor
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.sie_supports.argtypes = [ctypes.c_char_p]
    library.sie_model_new.restype = pointer
    library.sie_model_new.argtypes = [pointer, pointer, ctypes.c_char_p]
    library.sie_model_set_layer.argtypes = [pointer, integer, pointer]
    library.sie_model_num_bytes.argtypes = [pointer]
    library.sie_model_num_bytes.restype = ctypes.c_size_t
    library.sie_model_free.argtypes = [pointer]
    library.sie_model_free.restype = None
    library.sie_workspace_new.restype = pointer
    library.sie_workspace_new.argtypes = [pointer, integer, integer, integer]
    library.sie_workspace_free.argtypes = [pointer]
    library.sie_workspace_free.restype = None
    for run in (library.sie_score, library.sie_hidden):
        run.argtypes = [pointer] * 3
        run.restype = None
    return library


def available_kernels() -> tuple[str, ...]:
    """List the kernels that this build has and this processor runs, the fastest first.

    Raises:
        InvalidRequestError: `SIE_MAX_CPU_ISA` is none of the known names.
    """
    most = os.environ.get("SIE_MAX_CPU_ISA", _INSTRUCTION_SETS[0]).lower()
    if most not in _INSTRUCTION_SETS:
        msg = f"SIE_MAX_CPU_ISA must be one of {', '.join(_INSTRUCTION_SETS)}, but is {most!r}"
        raise InvalidRequestError(msg)
    library = _library()
    if library is None:
        return ()
    allowed = _INSTRUCTION_SETS[_INSTRUCTION_SETS.index(most) :]
    return tuple(
        name
        for name, needed in KERNELS.items()
        if needed in allowed and library.sie_supports(name.encode())
    )


def choose_kernels(architecture: Architecture, dtype: torch.dtype) -> str | None:
    """Return the fastest kernels for a model in a number format, None if torch must do it."""
    if architecture.rotary_layers or architecture.hidden_act not in _ACTIVATIONS:
        return None
    wanted = _KERNELS_OF.get(dtype, ())
    for name in available_kernels():
        if name in wanted and _fits(architecture, name):
            return name
    return None


def _fits(architecture: Architecture, kernels: str) -> bool:
    """Tell whether a model's sizes are whole numbers of the kernels' blocks, and not too large."""
    block = 16 if kernels == "avx2" else 32
    if kernels == "amx-float32" and architecture.intermediate_size > _MOST_DIGIT_PRODUCTS:
        return False
    return (
        architecture.hidden_size % 32 == 0
        and architecture.intermediate_size % 32 == 0
        and architecture.head_size % block == 0
    )


class NativeBody:
    """A body whose forward pass is compiled code. Shared by the workers that it opens.

    Weights are copied into the kernels' own order, a layer at a time; the token embeddings stay
    mapped from their file.

    Args:
        architecture: Its shape.
        weights: Its tensors, checked.
        kernels: What `choose_kernels` returned.
        reads_all: Whether hidden states of all tokens are wanted, not of the first ones.
    """

    def __init__(
        self, architecture: Architecture, weights: Weights, kernels: str, *, reads_all: bool = False
    ) -> None:
        library = _library()
        assert library is not None, "choose_kernels names none without a library"  # noqa: S101
        self.architecture = architecture
        self.kernels = kernels
        self.reads_all = reads_all
        self._library = library
        self._outer = self._read_outer(weights)
        words = self._outer[0]
        config = _Config(
            hidden=architecture.hidden_size,
            layers=architecture.num_layers,
            heads=architecture.num_heads,
            intermediate=architecture.intermediate_size,
            labels=architecture.num_labels,
            activation=_ACTIVATIONS[architecture.hidden_act],
            word_format=_WORD_FORMATS[words.dtype],
            epsilon=architecture.layer_norm_eps,
            reads_all=reads_all,
        )
        outer = _OuterWeights(*(tensor.data_ptr() for tensor in self._outer))
        self._model = library.sie_model_new(
            ctypes.byref(config), ctypes.byref(outer), kernels.encode()
        )
        if not self._model:
            raise MemoryError
        for index in range(architecture.num_layers):
            self._set_layer(index, weights)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.sie_model_free(self._model)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its weights, the mapped token embeddings included."""
        layers: int = self._library.sie_model_num_bytes(self._model)
        return layers + sum(tensor.numel() * tensor.element_size() for tensor in self._outer)

    def make_workspace(self, num_tokens: int, num_pairs: int, max_length: int) -> int:
        """Return the address of buffers for a batch of that size."""
        address: int | None = self._library.sie_workspace_new(
            self._model, num_tokens, num_pairs, max_length
        )
        if not address:
            raise MemoryError
        return address

    def free_workspace(self, address: int) -> None:
        """Give buffers back."""
        self._library.sie_workspace_free(address)

    def hidden(self, workspace: int, batch: PackedBatch) -> NDArray[np.float32]:
        """Return the last hidden states of a batch; [tokens, hidden], or [sequences, hidden].

        Tokens that no other sees are for bodies that read all.
        """
        rows = batch.num_tokens if self.reads_all else batch.num_pairs
        return self._run(self._library.sie_hidden, workspace, batch, rows, self._hidden_size)

    @property
    def _hidden_size(self) -> int:
        return self.architecture.hidden_size

    def _run(
        self, function: Any, workspace: int, batch: PackedBatch, rows: int, width: int
    ) -> NDArray[np.float32]:
        """Run a batch that fits the workspace; [rows, width]."""
        out = np.empty((rows, width), np.float32)
        cu_seqlens, sees = (batch.cu_seqlens, None) if not batch.has_unseen else _spans(batch)
        arguments = _Batch(
            ids=batch.token_ids.ctypes.data,
            types=batch.type_ids.ctypes.data if self.architecture.type_vocab_size > 1 else None,
            positions=batch.position_ids.ctypes.data,
            cu_seqlens=cu_seqlens.ctypes.data,
            sees=None if sees is None else sees.ctypes.data,
            count=len(cu_seqlens) - 1,
        )
        function(workspace, ctypes.byref(arguments), out.ctypes.data)
        return out

    def _read_outer(self, weights: Weights) -> list[torch.Tensor]:
        """Read what stands around the layers, in the order of `_OuterWeights`."""
        body = bert.body_name(self.architecture)
        words = weights.reopen()[f"{body}.embeddings.word_embeddings.weight"].contiguous()
        others = [
            f"{body}.embeddings.position_embeddings.weight",
            f"{body}.embeddings.token_type_embeddings.weight",
            f"{body}.embeddings.LayerNorm.weight",
            f"{body}.embeddings.LayerNorm.bias",
            *self._head_names(),
        ]
        is_readable = words.dtype in _WORD_FORMATS
        return [
            words if is_readable else words.float(),
            *(_float(weights[name]).clone() for name in others),
        ]

    def _head_names(self) -> list[str]:
        """Return the names of what stands behind the layers."""
        return []

    def _set_layer(self, index: int, weights: Weights) -> None:
        names = bert.layer_names(self.architecture, index)
        tensors = [_float(weights[f"{name}.{part}"]) for name in names for part in _PARTS]
        layer = _LayerWeights(*(tensor.data_ptr() for tensor in tensors))
        if not self._library.sie_model_set_layer(self._model, index, ctypes.byref(layer)):
            raise MemoryError


class NativeClassifier(NativeBody):
    """The same with a classification head."""

    def score(self, workspace: int, batch: PackedBatch) -> NDArray[np.float32]:
        """Return the logits of a batch that fits the workspace; [pairs, labels]."""
        score, labels = self._library.sie_score, self.architecture.num_labels
        return self._run(score, workspace, batch, batch.num_pairs, labels)

    def _head_names(self) -> list[str]:
        names = bert.head_names(self.architecture)
        return [f"{name}.{part}" for name in names for part in _PARTS]


_PARTS = ("weight", "bias")


def _spans(batch: PackedBatch) -> tuple[Int32s, Int32s]:
    """Part each sequence into the tokens that are seen and those that are not, if there are any.

    Returns:
        Where every span begins, and the last one's end; and which span's tokens each span sees.
    """
    is_parted = batch.num_seen < batch.lengths
    unseen = (batch.cu_seqlens[:-1] + batch.num_seen)[is_parted]
    cu_spans = np.sort(np.concatenate([batch.cu_seqlens, unseen])).astype(np.int32)
    index = np.arange(len(cu_spans) - 1, dtype=np.int32)
    return cu_spans, index - np.isin(cu_spans[:-1], unseen).astype(np.int32)


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().contiguous()


class Workspace:
    """Buffers that grow with the batches, for one thread.

    Args:
        body: Whose.
    """

    def __init__(self, body: NativeBody) -> None:
        self._body = body
        self._room = (0, 0, 0)
        self._address: int | None = None

    def __del__(self) -> None:
        self._free()

    def fitting(self, batch: PackedBatch) -> int:
        """Return the address of buffers in which a batch has room."""
        num_spans = batch.num_pairs * (2 if batch.has_unseen else 1)
        needed = (batch.num_tokens, num_spans, batch.max_length)
        if self._address is None or any(
            need > has for need, has in zip(needed, self._room, strict=True)
        ):
            steps = [
                max(-(-need // _WORKSPACE_STEP) * _WORKSPACE_STEP, has)
                for need, has in zip(needed, self._room, strict=True)
            ]
            self._free()
            self._address = self._body.make_workspace(*steps)
            self._room = (steps[0], steps[1], steps[2])
        return self._address

    def _free(self) -> None:
        if self._address is not None:
            self._body.free_workspace(self._address)
            self._address = None


class NativeWorker:
    """Scores batches in the thread that calls it.

    Args:
        classifier: The forward pass, shared.
    """

    def __init__(self, classifier: NativeClassifier) -> None:
        self._classifier = classifier
        self._workspace = Workspace(classifier)

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one raw score per pair."""
        architecture = self._classifier.architecture
        batch = PackedBatch.of(pairs, position_offset=architecture.position_offset)
        logits = self._classifier.score(self._workspace.fitting(batch), batch)
        # The difference of two logits is the logit of their softmax.
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return [float(score) for score in scores]
