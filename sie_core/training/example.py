"""What is learnt from: a query, and documents that answer it or do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sie_core.errors import DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A document that was judged for a query.

    Attributes:
        text: The document.
        label: From 0 (not relevant) to 1 (relevant); relevant is what is above 0.
        teacher: A teacher's raw score for it, of which differences count only; None if none did.
    """

    text: str
    label: float
    teacher: float | None = None

    @property
    def is_relevant(self) -> bool:
        """Whether it answers the query, be it in part."""
        return self.label > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A query and its judged documents, each text once.

    Attributes:
        query: The query.
        documents: In the data's order.
    """

    query: str
    documents: tuple[Judged, ...]

    @property
    def relevant(self) -> list[Judged]:
        """Return the documents that answer it."""
        return [document for document in self.documents if document.is_relevant]

    @property
    def irrelevant(self) -> list[Judged]:
        """Return the documents that do not."""
        return [document for document in self.documents if not document.is_relevant]

    @property
    def is_complete(self) -> bool:
        """Whether something can be told apart: there is a document of either kind."""
        return bool(self.relevant and self.irrelevant)

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher scored all of its documents."""
        return all(document.teacher is not None for document in self.documents)


def gather(judgements: Iterable[tuple[str, Judged]]) -> list[Example]:
    """Put judgements together by query, in the order of each query's first.

    A document judged twice for a query counts once, with its highest label.
    """
    by_query: dict[str, dict[str, Judged]] = {}
    for query, judged in judgements:
        documents = by_query.setdefault(query, {})
        known = documents.get(judged.text)
        if known is None or judged.label > known.label:
            documents[judged.text] = judged
    return [
        Example(query=query, documents=tuple(documents.values()))
        for query, documents in by_query.items()
    ]


def complete(examples: Iterable[Example]) -> list[Example]:
    """Keep the examples that something can be learnt from."""
    return [example for example in examples if example.is_complete]


def check_some(splits: Mapping[str, Sequence[Example]]) -> None:
    """Raise DatasetError if one of the splits is empty."""
    empty = [name for name, examples in splits.items() if not examples]
    if empty:
        sizes = ", ".join(f"{name} {len(examples)}" for name, examples in splits.items())
        msg = (
            f"nothing is left for {' and '.join(empty)} ({sizes} queries); every query needs a "
            "document that answers it and, unless negatives are mined, one that does not: give "
            "more queries, or smaller splits"
        )
        raise DatasetError(msg)
