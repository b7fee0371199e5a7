"""`Model`: what every family of models has in common, and `Job`: what one call asks of it.

A family turns a checked request into a `Job`: sequences of tokens for the scheduler, and a function
that makes the answer of what the model gave for each. Between the two the scheduler runs the
sequences of all callers in shared batches and knows nothing of families::

    job = model.score_job(request)
    outputs = scheduler.submit(job.sequences, …).result()
    scored = job.finish(outputs)                           # one raw score per item of the request
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from sie_core.local.requests import EncodeRequest, ScoreRequest
from sie_core.types import EncodeResult, ScoreSpace

if TYPE_CHECKING:
    from sie_core.local.adapters import AdapterStore
    from sie_core.local.passages import Scored

T_co = TypeVar("T_co", covariant=True)

BatchRunner = Callable[[Sequence[Any]], list[Any]]
"""Runs one batch of a family's sequences, at least one of any lengths: an output for each."""


class TokenSequence(Protocol):
    """What a model reads at once; the scheduler asks for no more than its cost."""

    @property
    def num_tokens(self) -> int:
        """How many tokens the model computes for it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[T_co]):
    """What a call asks of a model.

    Attributes:
        sequences: What the scheduler runs; equal texts share one.
        finish: Makes the answer of the outputs, given in the order of the sequences.
        num_input_tokens: Tokens of all items, of equal ones as well.
        truncated: Positions of the items that lost their end.
        num_passages: Passages of all items, where long ones were cut into some; else None.
    """

    sequences: Sequence[TokenSequence]
    finish: Callable[[list[Any]], T_co]
    num_input_tokens: int
    truncated: Sequence[int]
    num_passages: int | None = None

    @property
    def num_truncated(self) -> int:
        """How many items lost their end."""
        return len(self.truncated)


class Model(Protocol):
    """A loaded model of some family."""

    @property
    def max_length(self) -> int:
        """The most tokens of one sequence."""
        ...

    @property
    def score_space(self) -> ScoreSpace:
        """What the model's own configuration says its scores are."""
        ...

    @property
    def computed_by(self) -> str:
        """What runs the forward pass."""
        ...

    def open_worker(self) -> BatchRunner:
        """Return a function that runs batches, with buffers of its own."""
        ...

    def score_job(self, request: ScoreRequest) -> Job[Scored]:
        """Prepare scoring; the answer has one raw score per item.

        Raises:
            InvalidRequestError: The model cannot do what the request asks.
            InputTooLongError: An item is too long, and the request wants to be told.
        """
        ...

    def encode_job(self, request: EncodeRequest) -> Job[list[EncodeResult]]:
        """Prepare encoding; the answer has one result per item, without its id.

        Raises:
            InvalidRequestError: The model cannot do what the request asks.
        """
        ...

    def warm_up_sequences(self) -> Sequence[TokenSequence]:
        """Return something short to run once in every worker."""
        ...

    def resize_token_cache(self, max_bytes: int) -> None:
        """Bound the token ids that are kept."""
        ...

    def reset_after_fork(self) -> None:
        """Make locks anew, in a forked child."""
        ...


@runtime_checkable
class CountsBytes(Protocol):
    """A model that says what it holds. Of others, the size of their files is taken for it."""

    @property
    def num_bytes(self) -> int:
        """Bytes of weights in memory, mapped ones included."""
        ...


@runtime_checkable
class TakesAdapters(Protocol):
    """A model that scores with LoRA adapters, where a request has one."""

    @property
    def adapters(self) -> AdapterStore:
        """The adapters that are loaded onto it."""
        ...
