"""`PairEncoder`: one loaded cross-encoder, from pairs of token ids to logits.

The forward passes are this package's own (`bert`, `modernbert`), over packed rows; see
docs/decisions/0040-own-packed-forwards.md. Whoever scores opens a worker, a function from a batch
of pairs to their logits with buffers of its own; several may run at once, in a thread each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sie_core.errors import UnsupportedModelError
from sie_core.local import bert, modernbert, native
from sie_core.local.architecture import Architecture
from sie_core.local.attention import VarlenKernel
from sie_core.local.cuda import CudaRuntime, find_varlen_kernel
from sie_core.local.layers import Placement
from sie_core.local.model import Job
from sie_core.local.requests import EncodeRequest, ScoreRequest, with_instruction
from sie_core.local.tokenization import Pair, PairTokenizer
from sie_core.local.weights import Weights
from sie_core.local.worker import Classifier, GroupedWorker, VarlenWorker, Worker, choose_rounding
from sie_core.models.sources import ModelFiles
from sie_core.types import EncodeResult, ScoreSpace


class PairEncoder:
    """One loaded cross-encoder: pairs of token ids in, one float32 logit each out.

    The body runs in `dtype`; everything from the first token's last hidden state on runs in
    float32, so that half precision makes no ties.

    Attributes:
        architecture: The model's shape.
        tokenizer: Makes the pairs.
    """

    def __init__(
        self,
        classifier: Classifier | native.NativeClassifier,
        tokenizer: PairTokenizer,
        architecture: Architecture,
        placement: Placement,
    ) -> None:
        self.architecture = architecture
        self.tokenizer = tokenizer
        self._placement = placement
        self._classifier = classifier
        self._worker: Worker | None = None

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        *,
        device: torch.device,
        dtype: torch.dtype,
        allow_pickle: bool = False,
    ) -> PairEncoder:
        """Load weights and tokenizer from a model folder. No code in it is ever run.

        Raises:
            UnsupportedModelError: There is no forward pass for such a model.
            ModelLoadError: Files are missing or broken, or weights do not fit the architecture.
        """
        architecture = Architecture.read(files)
        weights = Weights.open(files, allow_pickle=allow_pickle)
        placement = Placement(device, dtype)
        classifier = load_classifier(architecture, weights, placement)
        return cls(classifier, PairTokenizer.load(files.folder), architecture, placement)

    @property
    def dtype(self) -> torch.dtype:
        """Return the number format that the model's body computes in."""
        return self._placement.dtype

    @property
    def max_length(self) -> int:
        """Return the most tokens of a pair that the model reads."""
        return self.architecture.max_length

    @property
    def score_space(self) -> ScoreSpace:
        """Return what the model's own configuration says its scores are."""
        return self.architecture.score_space

    @property
    def computed_by(self) -> str:
        """Say what runs the forward pass: compiled kernels by their name, or torch."""
        if isinstance(self._classifier, native.NativeClassifier):
            return f"{self._classifier.kernels} kernels"
        return "torch" if self._find_varlen_kernel() is None else "torch, by cumulative lengths"

    def open_worker(self) -> Worker:
        """Return a function that scores batches, with buffers of its own.

        It may be called from any thread, but from one at a time. Weights are shared between
        workers.
        """
        if isinstance(self._classifier, native.NativeClassifier):
            return native.NativeWorker(self._classifier)
        device, kernel = self._placement.device, self._find_varlen_kernel()
        if kernel is None:
            return GroupedWorker(
                self._classifier, self.architecture, device, choose_rounding(self._placement)
            )
        return VarlenWorker(self._classifier, self.architecture, kernel, CudaRuntime(device))

    def score_job(self, request: ScoreRequest) -> Job[list[float]]:
        """Tokenise the query once and every different text once, and put the pairs together.

        Raises:
            InvalidRequestError: `max_length` is out of this model's range.
        """
        tokenizer, max_length = self.tokenizer, request.max_length
        if max_length is not None:
            tokenizer.check_max_length(max_length, self.max_length)
        texts = request.texts
        position_of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        query = with_instruction(request.instruction, request.query_text)
        pairs = tokenizer.encode_pairs(query, list(position_of), max_length or self.max_length)
        pair_of = [position_of[text] for text in texts]
        return Job(
            sequences=pairs,
            finish=lambda logits: [logits[i] for i in pair_of],
            num_input_tokens=sum(len(pairs[i].token_ids) for i in pair_of),
            num_truncated=sum(pairs[i].is_truncated for i in pair_of),
        )

    def encode_job(self, request: EncodeRequest) -> Job[list[EncodeResult]]:
        """Refuse: a cross-encoder reads pairs, and gives no embeddings.

        Raises:
            UnsupportedModelError: Always.
        """
        msg = (
            f"{request.model} is a cross-encoder: it scores pairs, and gives no embeddings; "
            "encode with an embedding model, such as BAAI/bge-small-en-v1.5"
        )
        raise UnsupportedModelError(msg)

    def warm_up_sequences(self) -> list[Pair]:
        """Return one short pair."""
        return self.tokenizer.encode_pairs("warm up", ["warm up"], self.max_length)

    def resize_token_cache(self, max_bytes: int) -> None:
        """Bound the documents' ids that are kept."""
        self.tokenizer.cache.resize(max_bytes)

    def reset_after_fork(self) -> None:
        """Make locks anew, in a forked child."""
        self.tokenizer.cache.reset_lock()

    def _find_varlen_kernel(self) -> VarlenKernel | None:
        placement = self._placement
        return find_varlen_kernel(placement.device, placement.dtype, self.architecture)

    def logits(self, pairs: Sequence[Pair]) -> list[float]:
        """Score one batch with a worker that is kept for this: from one thread at a time."""
        if self._worker is None:
            self._worker = self.open_worker()
        return self._worker(pairs)


def load_classifier(
    architecture: Architecture, weights: Weights, placement: Placement
) -> Classifier | native.NativeClassifier:
    """Check a classifier's tensors and put them where it will run.

    Raises:
        ModelLoadError: A tensor is missing, or does not fit the architecture.
    """
    if architecture.model_type == "modernbert":
        weights.check(modernbert.tensor_shapes(architecture))
        return modernbert.ModernBertClassifier(architecture, weights, placement)
    weights.check(bert.tensor_shapes(architecture))
    if placement.device.type == "cpu":
        kernels = native.choose_kernels(architecture, placement.dtype)
        if kernels is not None:
            return native.NativeClassifier(architecture, weights, kernels)
    return bert.BertClassifier(architecture, weights, placement)
