"""`CausalReranker`: one loaded causal language model that scores by what it would say next.

All documents of a query share the prompt up to the document: those tokens run once per call, and
their keys and values serve every document (docs/decisions/0052-shared-prefix.md).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from sie_core.errors import UnsupportedModelError
from sie_core.local.causal_attention import (
    CausalKernel,
    GroupedCausalAttention,
    VarlenCausalAttention,
)
from sie_core.local.causal_batch import CausalBatch
from sie_core.local.causal_lm import CausalInputs, CausalLM, tensor_shapes
from sie_core.local.cuda import CudaRuntime, find_causal_kernel
from sie_core.local.decoder_architecture import DecoderArchitecture
from sie_core.local.layers import Placement
from sie_core.local.model import Job
from sie_core.local.passages import Scored, refuse_long
from sie_core.local.prefix import DecoderSequence, KeyValue
from sie_core.local.prompt_tokenization import PromptTokenizer
from sie_core.local.prompts import PROMPTS
from sie_core.local.requests import EncodeRequest, ScoreRequest
from sie_core.local.weights import Weights
from sie_core.models.sources import ModelFiles
from sie_core.types import EncodeResult, ScoreSpace

_DEFAULT_MAX_LENGTH = 8192
"""Tokens of a prompt unless more are asked for: the most in the authors' own examples."""


Scope = Callable[[], AbstractContextManager[None]]
"""Makes what a batch runs in: a GPU's stream, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStats:
    """What a model computed since it was loaded.

    Attributes:
        num_sequences: Prompts that were answered.
        num_tokens: Tokens that ran through the layers.
        num_prefix_tokens: Those of them that were of shared prefixes.
    """

    num_sequences: int = 0
    num_tokens: int = 0
    num_prefix_tokens: int = 0


class CausalReranker:
    """One loaded causal-LM reranker.

    Attributes:
        architecture: The model's shape.
        tokenizer: Makes the prompts.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: PromptTokenizer,
        architecture: DecoderArchitecture,
        placement: Placement,
    ) -> None:
        self.architecture = architecture
        self.tokenizer = tokenizer
        self._model = model
        self._placement = placement
        self._stats = DecoderStats()
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        *,
        device: torch.device,
        dtype: torch.dtype,
        allow_pickle: bool = False,
    ) -> CausalReranker:
        """Load weights and tokenizer from a model folder. No code in it is ever run.

        Raises:
            UnsupportedModelError: There is no forward pass or no prompt for such a model.
            ModelLoadError: Files are missing or broken, or weights do not fit the architecture.
        """
        architecture = DecoderArchitecture.read(files)
        tokenizer = PromptTokenizer.load(files.folder, PROMPTS[architecture.model_type])
        weights = Weights.open(files, allow_pickle=allow_pickle)
        weights.check(tensor_shapes(architecture))
        placement = Placement(device, dtype)
        model = CausalLM(architecture, weights, placement, tokenizer.answer_ids)
        return cls(model, tokenizer, architecture, placement)

    @property
    def max_length(self) -> int:
        """Return the most tokens of a prompt where a call does not name another number."""
        return min(self.architecture.max_length, _DEFAULT_MAX_LENGTH)

    @property
    def score_space(self) -> ScoreSpace:
        """Return what the authors' own code gives."""
        return self.tokenizer.prompt.score_space

    @property
    def computed_by(self) -> str:
        """Say what runs the forward pass."""
        return "torch" if self._find_kernel() is None else "torch, by cumulative lengths"

    def stats(self) -> DecoderStats:
        """Count what was computed."""
        with self._lock:
            return self._stats

    def open_worker(self) -> DecoderWorker:
        """Return a function that scores batches; from any thread, but one at a time."""
        kernel = self._find_kernel()
        device = self._placement.device
        scope: Scope = contextlib.nullcontext if kernel is None else CudaRuntime(device).scope
        return DecoderWorker(self._model, device, kernel, scope, self._count)

    def score_job(self, request: ScoreRequest) -> Job[Scored]:
        """Tokenise the query once and every different text once, and make the prompts.

        Raises:
            InvalidRequestError: `max_length` is out of this model's range.
            InputTooLongError: An item is too long, and the request wants to be told.
        """
        tokenizer, max_length = self.tokenizer, request.max_length
        if max_length is not None:
            longest = self.architecture.max_length
            tokenizer.check_max_length(max_length, longest, request.instruction)
        max_length = self.max_length if max_length is None else max_length
        texts = request.texts
        position_of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        passages = tokenizer.encode_passages(
            request.query_text,
            list(position_of),
            instruction=request.instruction,
            max_length=max_length,
            max_document_length=request.max_document_length,
            settings=request.long_documents,
        )
        documents = [position_of[text] for text in texts]
        refuse_long(request, [passages.is_truncated[i] for i in documents], max_length)
        return passages.job(request, documents, lambda sequence: sequence.length)

    def encode_job(self, request: EncodeRequest) -> Job[list[EncodeResult]]:
        """Refuse: such a model answers about pairs, and gives no embeddings.

        Raises:
            UnsupportedModelError: Always.
        """
        msg = (
            f"{request.model} is a causal-LM reranker: it scores pairs, and gives no embeddings; "
            "encode with an embedding model, such as BAAI/bge-small-en-v1.5"
        )
        raise UnsupportedModelError(msg)

    def warm_up_sequences(self) -> list[DecoderSequence]:
        """Return two short prompts with a prefix in common."""
        return self.tokenizer.encode("warm up", ["warm", "up"], max_length=self.max_length)

    def resize_token_cache(self, max_bytes: int) -> None:
        """Bound the documents' ids that are kept."""
        self.tokenizer.cache.resize(max_bytes)

    def reset_after_fork(self) -> None:
        """Make locks anew, in a forked child."""
        self._lock = threading.Lock()
        self.tokenizer.cache.reset_lock()

    def _find_kernel(self) -> CausalKernel | None:
        placement = self._placement
        return find_causal_kernel(placement.device, placement.dtype, self.architecture.head_size)

    def _count(self, batch: CausalBatch) -> None:
        with self._lock:
            done = self._stats
            self._stats = replace(
                done,
                num_sequences=done.num_sequences + len(batch.sequence_spans),
                num_tokens=done.num_tokens + batch.num_rows,
                num_prefix_tokens=done.num_prefix_tokens + batch.num_new_rows,
            )


class DecoderWorker:
    """Scores batches of prompts.

    Args:
        model: The forward pass, shared.
        device: Where the weights are.
        kernel: Attends by cumulative lengths; None for attention by groups.
        scope: What to run in.
        count: Told of every batch that was computed.
    """

    def __init__(
        self,
        model: CausalLM,
        device: torch.device,
        kernel: CausalKernel | None,
        scope: Scope,
        count: Callable[[CausalBatch], None],
    ) -> None:
        self._model = model
        self._device = device
        self._kernel = kernel
        self._scope = scope
        self._count = count

    def __call__(self, sequences: Sequence[DecoderSequence]) -> list[float]:
        """Return one raw score per prompt."""
        # Neighbours of the same size are attended to together.
        order = sorted(range(len(sequences)), key=lambda i: _size(sequences[i]))
        batch = CausalBatch.of([sequences[i] for i in order], self._device)
        with self._scope(), torch.inference_mode():
            inputs = CausalInputs.of(batch, self._device)
            logits, made = self._model.forward(inputs, self._attention(batch))
            self._keep(batch, made)
            answers = to_scores(logits).tolist()
        self._count(batch)
        scores = [0.0] * len(sequences)
        for position, score in zip(order, answers, strict=True):
            scores[position] = score
        return scores

    def _attention(self, batch: CausalBatch) -> GroupedCausalAttention | VarlenCausalAttention:
        if self._kernel is None:
            return GroupedCausalAttention(batch)
        return VarlenCausalAttention(batch, self._device, self._kernel)

    def _keep(self, batch: CausalBatch, made: Sequence[KeyValue]) -> None:
        """Leave the new prefixes' keys and values for batches to come."""
        for prefix, span in zip(batch.new, batch.spans, strict=False):
            rows = slice(span.row, span.row + span.length)
            # Copies: what is a part of a whole batch would keep all of it.
            layers = [(key[rows].clone(), value[rows].clone()) for key, value in made]
            prefix.keep(self._device, layers)


def _size(sequence: DecoderSequence) -> tuple[int, int]:
    return -sequence.length, -sequence.num_tokens


def to_scores(logits: torch.Tensor) -> torch.Tensor:
    """Return one raw score per prompt from the answers' logits; [prompts, answers].

    The difference of two logits is the logit of the first answer's share of both.
    """
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 0] - logits[:, 1]
