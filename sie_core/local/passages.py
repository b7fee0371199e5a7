"""Long documents in passages: windows of their tokens, each a sequence, the best one's score.

What fits is one sequence, the same as ever. What does not is cut, on request, into windows as long
as the model reads beside the query, which overlap; the last one ends where the document ends, so
that none is short::

    document    ------------------------------------------------
    passages    [--------------]        [--------------]
                            [--------------]        [----------]   reaching back further

A document's score is that of its best passage (MaxP: Dai and Callan 2019, arXiv:1905.09217).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sie_core.errors import InputTooLongError
from sie_core.local.model import Job
from sie_core.local.requests import ScoreRequest
from sie_core.long_documents import LongDocuments

T = TypeVar("T")

Int32s = NDArray[np.int32]
Span = tuple[int, int]
"""Where a passage begins and ends, in characters of its document."""

_MAX_NAMED_ITEMS = 5
"""How many items an error names before it only counts them."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One raw score for each item, and where it comes from.

    Attributes:
        scores: In the order of the items.
        spans: The best passage of each item, None for one that was read whole; None where nobody
            asked for passages.
    """

    scores: list[float]
    spans: list[Span | None] | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A long document's passages.

    Attributes:
        parts: The tokens of each, with what stands before every one of them.
        spans: Where each is in the text.
        is_truncated: Whether there were more than may be read.
    """

    parts: list[Int32s]
    spans: list[Span]
    is_truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutter:
    """Cuts documents of one call.

    Attributes:
        settings: How passages overlap, and how many there may be.
        num_lead_chars: Characters put before each document, which every passage begins with.
        keeps_end: Whether the last passages are kept where there are too many, not the first.
    """

    settings: LongDocuments
    num_lead_chars: int = 0
    keeps_end: bool = False

    def cut(self, text: str, ids: Int32s, offsets: Int32s, room: int) -> Cut | None:
        """Cut a document into passages of one length.

        Args:
            text: The document, without what is put before it.
            ids: Its tokens with those of what is put before it, more than `room`.
            offsets: Where each begins and ends in both; [tokens, 2].
            room: Tokens of a passage at most, with those of what is put before it.

        Returns:
            None where not one token of the document finds room.
        """
        num_lead = self._num_lead(offsets)
        lead, own, places = ids[:num_lead], ids[num_lead:], offsets[num_lead:]
        width = room - num_lead
        if width < 1:
            return None
        width = min(width, self.settings.passage_length or width)
        starts = self._starts(len(own), width)
        kept = starts[-self.settings.most :] if self.keeps_end else starts[: self.settings.most]
        return Cut(
            parts=[np.concatenate((lead, own[start : start + width])) for start in kept],
            spans=[self._span(text, places[start : start + width]) for start in kept],
            is_truncated=len(kept) < len(starts),
        )

    def _starts(self, num_tokens: int, width: int) -> list[int]:
        step = width - min(self.settings.overlap, width // 2)
        last = num_tokens - width
        return [*range(0, last, step), last]

    def _num_lead(self, offsets: Int32s) -> int:
        """Count the tokens that end within what is put before the document."""
        if not self.num_lead_chars:
            return 0
        return int(np.argmax(offsets[:, 1] > self.num_lead_chars))

    def _span(self, text: str, places: Int32s) -> Span:
        """Return a passage's place, without the blanks that its tokens may begin or end with."""
        start = max(0, int(places[0, 0]) - self.num_lead_chars)
        end = max(start, int(places[-1, 1]) - self.num_lead_chars)
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        return start, end


@dataclass(frozen=True, slots=True)
class Passages(Generic[T]):
    """The sequences of several documents, one or more each.

    Attributes:
        sequences: Of all documents, one behind the other.
        starts: Where each document's begin; where the last one's end, too.
        spans: Of each sequence; None for a document that is read whole.
        is_truncated: Whether something of each document, or of the query, is not read.
    """

    sequences: list[T]
    starts: list[int]
    spans: list[Span | None]
    is_truncated: list[bool]

    @classmethod
    def whole(cls, sequences: list[T], is_truncated: list[bool]) -> Passages[T]:
        """Return documents of one sequence each."""
        num = len(sequences)
        return cls(sequences, list(range(num + 1)), [None] * num, is_truncated)

    def map(self, change: Callable[[T], T]) -> Passages[T]:
        """Return the same with every sequence changed."""
        changed = [change(sequence) for sequence in self.sequences]
        return Passages(changed, self.starts, self.spans, self.is_truncated)

    def count(self, document: int) -> int:
        """Count a document's sequences."""
        return self.starts[document + 1] - self.starts[document]

    def best(self, scores: Sequence[float], document: int) -> int:
        """Return which sequence of a document scores best; one that is no number shows."""
        start, stop = self.starts[document], self.starts[document + 1]
        if stop - start == 1:
            return start
        own = np.asarray(scores[start:stop], np.float64)
        bad = np.flatnonzero(~np.isfinite(own))
        return start + int(bad[0] if len(bad) else own.argmax())

    def job(
        self, request: ScoreRequest, documents: Sequence[int], count_tokens: Callable[[T], int]
    ) -> Job[Scored]:
        """Make the job of a model that gives a raw score for each sequence.

        Args:
            request: What was asked.
            documents: Which document each item of the request is.
            count_tokens: Counts what the model reads of a sequence.
        """
        is_whole = len(self.sequences) == len(self.is_truncated)

        def finish(scores: list[float]) -> Scored:
            best = documents if is_whole else [self.best(scores, i) for i in documents]
            return Scored(
                [scores[i] for i in best],
                [self.spans[i] for i in best] if request.long_documents.has_passages else None,
            )

        lengths = [count_tokens(sequence) for sequence in self.sequences]
        return Job(
            sequences=self.sequences,  # type: ignore[arg-type]  # T is a family's own
            finish=finish,
            num_input_tokens=self.count_tokens(lengths, documents),
            truncated=[item for item, i in enumerate(documents) if self.is_truncated[i]],
            num_passages=self.count_passages(request, documents),
        )

    def count_tokens(self, lengths: Sequence[int], documents: Sequence[int]) -> int:
        """Add up the tokens of documents, given those of each sequence."""
        return sum(sum(lengths[self.starts[i] : self.starts[i + 1]]) for i in documents)

    def count_passages(self, request: ScoreRequest, documents: Sequence[int]) -> int | None:
        """Count the sequences of documents; None where nobody asked for passages."""
        if not request.long_documents.has_passages:
            return None
        return sum(self.count(i) for i in documents)


class PassageList(Generic[T]):
    """Collects the sequences of documents, one document after the other."""

    def __init__(self) -> None:
        self._sequences: list[T] = []
        self._starts = [0]
        self._spans: list[Span | None] = []
        self._is_truncated: list[bool] = []

    def add_whole(self, sequence: T, *, is_truncated: bool) -> None:
        """Add a document that is one sequence."""
        self.add([sequence], [None], is_truncated=is_truncated)

    def add(
        self, sequences: Sequence[T], spans: Sequence[Span | None], *, is_truncated: bool
    ) -> None:
        """Add a document's sequences."""
        self._sequences += sequences
        self._starts.append(len(self._sequences))
        self._spans += spans
        self._is_truncated.append(is_truncated)

    def passages(self) -> Passages[T]:
        """Return all that were added."""
        return Passages(self._sequences, self._starts, self._spans, self._is_truncated)


def refuse_long(request: ScoreRequest, is_truncated: Sequence[bool], max_length: int) -> None:
    """Refuse items that are too long, where the request wants to be told.

    Args:
        request: What was asked.
        is_truncated: Of each item, in their order.
        max_length: Tokens that the model reads, for the error.

    Raises:
        InputTooLongError: Some are; the message names them by their ids.
    """
    if request.long_documents.how != "error" or not any(is_truncated):
        return
    ids = [
        item_id for item_id, is_long in zip(request.item_ids, is_truncated, strict=True) if is_long
    ]
    named = ", ".join(repr(item_id) for item_id in ids[:_MAX_NAMED_ITEMS])
    more = f" and {len(ids) - _MAX_NAMED_ITEMS} more" if len(ids) > _MAX_NAMED_ITEMS else ""
    msg = (
        f"{len(ids)} of {len(is_truncated)} items are longer than the {max_length} tokens that "
        f"{request.model} reads, a query before them included, and long_documents is 'error': "
        f"{named}{more}; shorten them, or use long_documents='max_passage'"
    )
    raise InputTooLongError(msg)
