"""`PairEncoder`: one loaded cross-encoder, from pairs of token ids to logits.

The forward passes are this package's own (`bert`, `modernbert`), over packed rows; see
docs/decisions/0040-own-packed-forwards.md. Whoever scores opens a worker, a function from a batch
of pairs to their logits with buffers of its own; several may run at once, in a thread each.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from sie_core.errors import UnsupportedModelError
from sie_core.local import bert, modernbert, native
from sie_core.local.adapters import AdapterStore
from sie_core.local.architecture import Architecture
from sie_core.local.attention import VarlenKernel
from sie_core.local.cuda import CudaRuntime, find_varlen_kernel
from sie_core.local.layers import Placement
from sie_core.local.lora import AdaptableClassifier, AdaptedPair, Adapter, AdapterWorker
from sie_core.local.memory import count_bytes
from sie_core.local.model import Job
from sie_core.local.passages import Scored, refuse_long
from sie_core.local.requests import EncodeRequest, ScoreRequest, with_instruction
from sie_core.local.tokenization import Pair, PairTokenizer
from sie_core.local.weights import Shapes, Weights
from sie_core.local.worker import GroupedWorker, VarlenWorker, Worker, choose_rounding
from sie_core.models.sources import ModelFiles
from sie_core.types import EncodeResult, ScoreSpace


class PairEncoder:
    """One loaded cross-encoder: pairs of token ids in, one float32 logit each out.

    The body runs in `dtype`; everything from the first token's last hidden state on runs in
    float32, so that half precision makes no ties.

    Attributes:
        architecture: The model's shape.
        tokenizer: Makes the pairs.
        adapters: The LoRA adapters that are loaded onto it.
    """

    def __init__(
        self,
        classifier: AdaptableClassifier | native.NativeClassifier,
        tokenizer: PairTokenizer,
        weights: Weights,
        placement: Placement,
        architecture: Architecture,
    ) -> None:
        self.architecture = architecture
        self.tokenizer = tokenizer
        self._placement = placement
        self._classifier = classifier
        self._twin = _TorchTwin(classifier, weights, architecture, placement)
        self.adapters = AdapterStore(self._twin.read_adapter)
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
        tokenizer = PairTokenizer.load(files.folder)
        # A mapping of which nothing has been read: it takes no memory, and outlasts its file.
        return cls(classifier, tokenizer, weights.reopen(), placement, architecture)

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

    @property
    def num_bytes(self) -> int:
        """Return the bytes of weights in memory, of adapters and what they need as well."""
        classifier = self._classifier
        if isinstance(classifier, native.NativeClassifier):
            own = classifier.num_bytes
        else:
            own = count_bytes(classifier)
        return own + self._twin.num_bytes + self.adapters.num_bytes

    def open_worker(self) -> Worker:
        """Return a function that scores batches, with buffers of its own.

        It may be called from any thread, but from one at a time. Weights are shared between
        workers.
        """
        return AdapterWorker(
            self._open_own_worker(),
            self._twin.classifier,
            self.architecture,
            self._placement,
            self._find_varlen_kernel(),
        )

    def _open_own_worker(self) -> Worker:
        if isinstance(self._classifier, native.NativeClassifier):
            return native.NativeWorker(self._classifier)
        device, kernel = self._placement.device, self._find_varlen_kernel()
        if kernel is None:
            return GroupedWorker(
                self._classifier, self.architecture, device, choose_rounding(self._placement)
            )
        return VarlenWorker(self._classifier, self.architecture, kernel, CudaRuntime(device))

    def score_job(self, request: ScoreRequest) -> Job[Scored]:
        """Tokenise the query once and every different text once, and put the pairs together.

        Raises:
            InvalidRequestError: `max_length` is out of this model's range.
            InputTooLongError: An item is too long, and the request wants to be told.
        """
        tokenizer, max_length = self.tokenizer, request.max_length
        if max_length is not None:
            tokenizer.check_max_length(max_length, self.max_length)
        max_length = max_length or self.max_length
        texts = request.texts
        position_of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        query = with_instruction(request.instruction, request.query_text)
        passages = tokenizer.encode_passages(
            query,
            list(position_of),
            max_length,
            max_document_length=request.max_document_length,
            settings=request.long_documents,
        )
        documents = [position_of[text] for text in texts]
        refuse_long(request, [passages.is_truncated[i] for i in documents], max_length)
        if request.adapter is not None:
            adapter = request.adapter
            passages = passages.map(lambda pair: AdaptedPair.of(pair, adapter))
        return passages.job(request, documents, lambda pair: pair.num_tokens)

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
        self.adapters.reset_lock()
        self._twin.reset_lock()

    def _find_varlen_kernel(self) -> VarlenKernel | None:
        placement = self._placement
        return find_varlen_kernel(placement.device, placement.dtype, self.architecture)

    def logits(self, pairs: Sequence[Pair]) -> list[float]:
        """Score one batch with a worker that is kept for this: from one thread at a time."""
        if self._worker is None:
            self._worker = self.open_worker()
        return self._worker(pairs)


class _TorchTwin:
    """What adapters are applied to: the forward pass in torch, of a model that may run in C.

    Beside compiled kernels it is made when first needed. In float32 its weights stay mapped from
    their file, but for queries, keys and values, which are read as one; in other formats they are
    converted.

    Args:
        classifier: The model's own.
        weights: Its tensors.
        architecture: Its shape.
        placement: Device and number format.
    """

    def __init__(
        self,
        classifier: AdaptableClassifier | native.NativeClassifier,
        weights: Weights,
        architecture: Architecture,
        placement: Placement,
    ) -> None:
        self._own = None if isinstance(classifier, native.NativeClassifier) else classifier
        self._made: AdaptableClassifier | None = None
        self._weights = weights
        self._architecture = architecture
        self._placement = placement
        self.reset_lock()

    def reset_lock(self) -> None:
        """Make the lock anew, in a forked child."""
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Return the bytes that it takes beside the model's own."""
        return count_bytes(self._made)

    def classifier(self) -> AdaptableClassifier:
        """Return the forward pass, shared by all who ask."""
        if self._own is not None:
            return self._own
        with self._lock:
            if self._made is None:
                weights, shape = self._weights.reopen(), self._architecture
                self._made = bert.BertClassifier(shape, weights, self._placement)
            return self._made

    def read_adapter(self, name: str, folder: Path) -> Adapter:
        """Read an adapter, and make ready what it is applied to."""
        shapes = tensor_shapes(self._architecture)
        adapter = Adapter.read(name, folder, self._architecture, shapes)
        self.classifier()  # now, and not within the first batch
        adapter.to(self._placement)
        return adapter


def load_classifier(
    architecture: Architecture, weights: Weights, placement: Placement
) -> AdaptableClassifier | native.NativeClassifier:
    """Check a classifier's tensors and put them where it will run.

    Raises:
        ModelLoadError: A tensor is missing, or does not fit the architecture.
    """
    weights.check(tensor_shapes(architecture))
    if architecture.model_type == "modernbert":
        return modernbert.ModernBertClassifier(architecture, weights, placement)
    if placement.device.type == "cpu":
        kernels = native.choose_kernels(architecture, placement.dtype)
        if kernels is not None:
            return native.NativeClassifier(architecture, weights, kernels)
    return bert.BertClassifier(architecture, weights, placement)


def tensor_shapes(architecture: Architecture) -> Shapes:
    """List the tensors of a classifier, by their names in a checkpoint."""
    if architecture.model_type == "modernbert":
        return modernbert.tensor_shapes(architecture)
    return bert.tensor_shapes(architecture)
