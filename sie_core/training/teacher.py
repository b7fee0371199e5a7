"""A teacher: a larger model whose scores decide which negatives are believed, or are learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sie_core.errors import InvalidResponseError
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.training.example import Example

if TYPE_CHECKING:
    from sie_core.reranker import Reranker

Teacher = Callable[[str, Sequence[str]], list[float]]
"""Takes a query and documents, and returns a logit for each, in their order."""


def as_teacher(reranker: Reranker) -> Teacher:
    """Make a teacher of a reranker, in this process or on a server."""

    def score(query: str, texts: Sequence[str]) -> list[float]:
        ranking = reranker.rerank(query, texts, score_space="raw")
        scores = {entry.index: entry.score for entry in ranking}
        found = [scores.get(place) for place in range(len(texts))]
        kept = [score for score in found if score is not None]
        if ranking.status == "degraded" or len(kept) != len(texts):
            msg = f"{ranking.model} did not score all of {len(texts)} documents as a teacher"
            raise InvalidResponseError(msg)
        return kept

    return score


def taught(
    examples: Sequence[Example], teacher: Teacher, *, watch: Watch = unwatched
) -> list[Example]:
    """Let a teacher score the documents of every example that has no such scores yet."""
    made = []
    with watch("asking the teacher", len(examples)) as advance:
        for example in examples:
            made.append(example if example.has_teacher else _taught(example, teacher))
            advance(1)
    return made


def _taught(example: Example, teacher: Teacher) -> Example:
    scores = teacher(example.query, [document.text for document in example.documents])
    documents = tuple(
        replace(document, teacher=score)
        for document, score in zip(example.documents, scores, strict=True)
    )
    return replace(example, documents=documents)


def probability(score: float) -> float:
    """Return the probability that a logit means."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))
