"""`TextEncoder`: one loaded model that gives vectors of texts: one each, one per token, or both.

A body gives hidden states, `Head`s make vectors of them, in the threads that run the body. What a
model is made of is read by `embedding` and `late_interaction`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sie_core.errors import InferenceError, InvalidRequestError, UnsupportedModelError
from sie_core.local.architecture import Architecture
from sie_core.local.hidden import HiddenStates, LoadedBody
from sie_core.local.maxsim import Vectors, check_vectors, maxsim
from sie_core.local.memory import count_bytes
from sie_core.local.model import BatchRunner, Job
from sie_core.local.passages import Scored, refuse_long
from sie_core.local.requests import EncodeRequest, ScoreRequest, with_instruction
from sie_core.local.texts import Text, TextForm, TextTokenizer
from sie_core.types import EncodeResult, ScoreSpace

_logger = logging.getLogger(__name__)

DENSE, MULTIVECTOR = "dense", "multivector"

_OUTPUT_TYPES = (DENSE, MULTIVECTOR, "sparse")
"""The output types of the protocol."""

_DTYPES: dict[str, np.dtype[np.float32] | np.dtype[np.float16]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
}
_OTHER_DTYPES = ("int8", "uint8", "binary", "ubinary", "bfloat16")
"""Formats that servers have, and this engine has not."""


class Head(Protocol):
    """Makes vectors of hidden states."""

    @property
    def dims(self) -> int:
        """Return the numbers of a vector."""
        ...

    def __call__(self, states: HiddenStates, texts: Sequence[Text]) -> list[NDArray[np.float32]]:
        """Return an array for each text: [dims], or [tokens, dims]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model uses its body.

    Attributes:
        query: What stands around a query.
        document: What stands around a document.
        heads: What makes the vectors, by output type.
        absent: Why the model has no head for an output type that it could have.
        is_mean: Whether a score is the mean over the query's tokens, not MaxSim's own sum.
    """

    query: TextForm
    document: TextForm
    heads: Mapping[str, Head]
    absent: Mapping[str, str] = field(default_factory=dict)
    is_mean: bool = False


class TextEncoder:
    """One loaded embedding or late-interaction model.

    Args:
        name: For errors.
        architecture: The body's shape.
        body: The body.
        tokenizer: Makes sequences of texts.
        recipe: What stands around texts, and what is made of hidden states.
    """

    def __init__(
        self,
        name: str,
        architecture: Architecture,
        body: LoadedBody,
        tokenizer: TextTokenizer,
        recipe: Recipe,
    ) -> None:
        self._name = name
        self._architecture = architecture
        self._body = body
        self._recipe = recipe
        self._has_warned = False
        self.tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Return the most tokens of a text."""
        return self._recipe.document.max_length

    @property
    def score_space(self) -> ScoreSpace:
        """Return `raw`: MaxSim is a sum of products."""
        return "raw"

    @property
    def computed_by(self) -> str:
        """Say what runs the forward pass."""
        return self._body.computed_by

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its weights, mapped ones included."""
        return self._body.num_bytes + count_bytes(self._recipe.heads)

    def open_worker(self) -> BatchRunner:
        """Return a function that runs batches, with buffers of its own."""
        run = self._body.open()

        def encode(texts: Sequence[Text]) -> list[dict[str, NDArray[np.float32]]]:
            results: list[dict[str, NDArray[np.float32]]] = [{} for _ in texts]
            with torch.inference_mode():
                states = run(texts)
                for output, head in self._recipe.heads.items():
                    wanting = [i for i, text in enumerate(texts) if output in text.outputs]
                    if not wanting:
                        continue
                    for i, vectors in enumerate(head(states, texts)):
                        if output in texts[i].outputs:
                            results[i][output] = vectors
            return results

        return encode

    def encode_job(self, request: EncodeRequest) -> Job[list[EncodeResult]]:
        """Tokenise every different text once.

        Raises:
            InvalidRequestError: The model does not give what is asked for.
        """
        outputs = self._check_outputs(request.output_types)
        dtype = _check_dtype(request.output_dtype)
        form = self._form(is_query=request.is_query, max_length=request.max_length)
        texts = [with_instruction(request.instruction, text) for text in request.texts]
        sequences, position_of = self._unique(texts, form, outputs)
        places = [position_of[text] for text in texts]

        def finish(found: list[dict[str, NDArray[np.float32]]]) -> list[EncodeResult]:
            self._check_finite(found)
            # Copies: each result is the caller's own, and keeps no batch's memory.
            return [
                EncodeResult(**{name: vectors.astype(dtype) for name, vectors in found[i].items()})  # type: ignore[typeddict-item]  # the names are those of its keys
                for i in places
            ]

        return Job(
            sequences=sequences,
            finish=finish,
            num_input_tokens=sum(sequences[i].num_tokens for i in places),
            truncated=[item for item, i in enumerate(places) if sequences[i].is_truncated],
        )

    def score_job(self, request: ScoreRequest) -> Job[Scored]:
        """Prepare MaxSim; texts are encoded, vectors that the caller kept are taken as they are.

        Raises:
            UnsupportedModelError: The model gives one vector for a text.
            InvalidRequestError: A probability is asked for, or vectors do not fit the model.
            InputTooLongError: An item is too long, and the request wants to be told.
        """
        head = self._recipe.heads.get(MULTIVECTOR)
        if head is None:
            raise self._no_scores(request.model)
        if request.score_space == "probability":
            msg = (
                f"{request.model} scores by MaxSim, a sum of similarities, which is no logit and "
                "has no probability; ask for score_space='raw', or for none"
            )
            raise InvalidRequestError(msg)
        outputs = frozenset({MULTIVECTOR})
        query, sequences = self._query(request, head, outputs)
        form = self._form(is_query=False, max_length=request.max_length)
        if request.max_document_length is not None:
            form = self.tokenizer.shorten(form, request.max_document_length)
        kept = {
            i: check_vectors(item["multivector"], f"items[{i}]", head.dims)
            for i, item in enumerate(request.items)
            if item.get("multivector") is not None
        }
        texts = [item["text"] for i, item in enumerate(request.items) if i not in kept]
        position_of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        passages = self.tokenizer.passages(
            list(position_of), form, outputs=outputs, settings=request.long_documents
        )
        places = {
            i: position_of[item["text"]] for i, item in enumerate(request.items) if i not in kept
        }
        is_truncated = [
            i not in kept and passages.is_truncated[places[i]] for i in range(len(request.items))
        ]
        refuse_long(request, is_truncated, form.max_length)

        def finish(found: list[dict[str, NDArray[np.float32]]]) -> Scored:
            self._check_finite(found)
            asked = found[0][MULTIVECTOR] if query is None else query
            vectors: list[Vectors] = [result[MULTIVECTOR] for result in found[len(sequences) :]]
            scores = maxsim(asked, [*vectors, *kept.values()])
            if self._recipe.is_mean:
                scores /= np.float32(len(asked))
            all_scores = scores.tolist()
            best = {i: passages.best(all_scores, place) for i, place in places.items()}
            best |= {i: len(vectors) + position for position, i in enumerate(kept)}
            return Scored(
                [all_scores[best[i]] for i in range(len(request.items))],
                [passages.spans[best[i]] if i in places else None for i in range(len(best))]
                if request.long_documents.has_passages
                else None,
            )

        lengths = [sequence.num_tokens for sequence in passages.sequences]
        num_query_tokens = sum(sequence.num_tokens for sequence in sequences)
        documents = list(places.values())
        return Job(
            sequences=[*sequences, *passages.sequences],
            finish=finish,
            num_input_tokens=num_query_tokens + passages.count_tokens(lengths, documents),
            truncated=[item for item, is_long in enumerate(is_truncated) if is_long],
            num_passages=passages.count_passages(request, documents),
        )

    def warm_up_sequences(self) -> list[Text]:
        """Return one short text."""
        outputs = frozenset(self._recipe.heads)
        return self.tokenizer.sequences(["warm up"], self._recipe.document, outputs=outputs)

    def resize_token_cache(self, max_bytes: int) -> None:
        """Bound the texts' ids that are kept."""
        self.tokenizer.cache.resize(max_bytes)

    def reset_after_fork(self) -> None:
        """Make locks anew, in a forked child."""
        self.tokenizer.cache.reset_lock()

    def _query(
        self, request: ScoreRequest, head: Head, outputs: frozenset[str]
    ) -> tuple[Vectors | None, list[Text]]:
        """Return the query's vectors if the caller kept them, else its sequence."""
        vectors = request.query.get("multivector")
        if vectors is not None:
            return check_vectors(vectors, "query", head.dims), []
        text = with_instruction(request.instruction, request.query["text"])
        sequences = self.tokenizer.sequences([text], self._recipe.query, outputs=outputs)
        if sequences[0].is_truncated and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "a query was longer than the %d tokens that %s reads of one, and lost its end",
                self._recipe.query.max_length,
                request.model,
            )
        return None, sequences

    def _unique(
        self, texts: Sequence[str], form: TextForm, outputs: frozenset[str]
    ) -> tuple[list[Text], dict[str, int]]:
        """Return a sequence for every different text, and which is whose."""
        different = list(dict.fromkeys(texts))
        sequences = self.tokenizer.sequences(different, form, outputs=outputs)
        return sequences, {text: i for i, text in enumerate(different)}

    def _form(self, *, is_query: bool, max_length: int | None) -> TextForm:
        form = self._recipe.query if is_query else self._recipe.document
        if max_length is None:
            return form
        self.tokenizer.check_max_length(max_length, form, self._architecture.max_length)
        return replace(form, max_length=max_length)

    def _check_outputs(self, asked: Sequence[str] | None) -> frozenset[str]:
        heads = self._recipe.heads
        if asked is None:
            return frozenset({DENSE} if DENSE in heads else heads)
        given = " and ".join(heads)
        if not asked:
            msg = f"output_types must name at least one; {self._name} gives {given}"
            raise InvalidRequestError(msg)
        for output in asked:
            if output in heads:
                continue
            if output not in _OUTPUT_TYPES:
                msg = f"output_types are {', '.join(_OUTPUT_TYPES)}, but got {output!r}"
            else:
                reason = self._recipe.absent.get(output)
                msg = f"{self._name} gives {given}, not {output}" + (
                    f": {reason}" if reason else ""
                )
            raise InvalidRequestError(msg)
        return frozenset(asked)

    def _no_scores(self, model: str) -> UnsupportedModelError:
        reason = self._recipe.absent.get(MULTIVECTOR)
        if reason is not None:
            return UnsupportedModelError(f"{model} cannot score: {reason}")
        msg = (
            f"{model} is an embedding model: it gives one vector for a text (`encode`) and scores "
            "no pairs; score with a cross-encoder, such as cross-encoder/ms-marco-MiniLM-L12-v2, "
            "or with a late-interaction model, such as answerdotai/answerai-colbert-small-v1"
        )
        return UnsupportedModelError(msg)

    def _check_finite(self, found: Sequence[Mapping[str, Any]]) -> None:
        bad = sum(
            not all(np.isfinite(vectors).all() for vectors in result.values()) for result in found
        )
        if bad:
            msg = (
                f"{self._name} gave no finite vectors for {bad} of {len(found)} texts; its numbers "
                "overflow in this format: use dtype='float32' or 'bfloat16'"
            )
            raise InferenceError(msg)


def _check_dtype(name: str | None) -> np.dtype[np.float32] | np.dtype[np.float16]:
    if name is None:
        return _DTYPES["float32"]
    if name in _DTYPES:
        return _DTYPES[name]
    known = "servers have it, " if name in _OTHER_DTYPES else ""
    msg = f"output_dtype is {name!r}; {known}models in this process give {' and '.join(_DTYPES)}"
    raise InvalidRequestError(msg)
