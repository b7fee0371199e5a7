"""Several opinions on the same documents to one order: pure functions, no I/O.

Lists of retrievers whose scores cannot be compared are merged by their ranks
(`reciprocal_rank_fusion`); scores of the same documents are merged by how far each lies above its
own list's mean (`fuse_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

from sie_core.errors import InvalidRequestError

_Id = TypeVar("_Id", bound=Hashable)

RRF_K = 60
"""The constant of Cormack, Clarke and Büttcher (2009): how slowly a rank's weight falls."""


def reciprocal_rank_fusion(
    lists: Sequence[Sequence[_Id]],
    *,
    k: float = RRF_K,
    weights: Sequence[float] | None = None,
) -> list[tuple[_Id, float]]:
    """Merge ranked lists: a document's score is the sum of weight / (k + rank) over the lists.

    Ranks begin at 1. A list that lacks a document adds nothing to it. From Cormack, Clarke and
    Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual rank learning methods"
    (SIGIR 2009).

    Args:
        lists: Ids, best first; none twice in one list.
        k: At least 0; the larger, the less the first ranks stand out.
        weights: One for each list, not negative; None weighs all the same.

    Returns:
        Every id with its score, best first; equal scores keep the order of the first list that
        has them, then of the next.

    Raises:
        InvalidRequestError: `k` or a weight is negative or not finite, the number of weights is
            not that of the lists, or a list names an id twice.
    """
    if not math.isfinite(k) or k < 0:
        msg = f"k must be a finite number of at least 0, but got {k!r}"
        raise InvalidRequestError(msg)
    weights = [1.0] * len(lists) if weights is None else weights
    if len(weights) != len(lists):
        msg = f"there are {len(lists)} lists, but {len(weights)} weights: give one for each"
        raise InvalidRequestError(msg)
    if wrong := [weight for weight in weights if not math.isfinite(weight) or weight < 0]:
        msg = f"weights must be finite and not negative, but got {wrong[0]!r}"
        raise InvalidRequestError(msg)
    scores: dict[_Id, float] = {}
    for ids, weight in zip(lists, weights, strict=True):
        if len(set(ids)) != len(ids):
            twice = next(one for i, one in enumerate(ids) if one in ids[:i])
            msg = f"a list names {twice!r} twice; each document has one rank in it"
            raise InvalidRequestError(msg)
        for rank, one in enumerate(ids, 1):
            scores[one] = scores.get(one, 0.0) + weight / (k + rank)
    return sorted(scores.items(), key=lambda entry: -entry[1])


def fuse_scores(
    rerank_scores: Sequence[float], retrieval_scores: Sequence[float], *, retrieval_weight: float
) -> list[float]:
    """Mix two scores of each document: the weighted mean of their z-scores.

    A z-score says how many standard deviations a score lies above the mean of its own list, so
    that scores of any scale can be added. A list of equal scores has nothing to say: zeros.

    Args:
        rerank_scores: The reranker's, one for each document.
        retrieval_scores: The first stage's, for the same documents; higher is better.
        retrieval_weight: Between 0 (the reranker alone) and 1 (the first stage alone).

    Raises:
        InvalidRequestError: The weight is not between 0 and 1.
    """
    check_retrieval_weight(retrieval_weight)
    return [
        (1 - retrieval_weight) * reranked + retrieval_weight * retrieved
        for reranked, retrieved in zip(
            _z_scores(rerank_scores), _z_scores(retrieval_scores), strict=True
        )
    ]


def check_retrieval_weight(weight: float | None) -> None:
    """Raise InvalidRequestError unless the weight is None or a number from 0 to 1."""
    if weight is None:
        return
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight <= 1:
        msg = (
            "fuse_retrieval_score is the weight of the retrieval score, a number from 0 to 1, or "
            f"None, but got {weight!r}"
        )
        raise InvalidRequestError(msg)


def _z_scores(scores: Sequence[float]) -> list[float]:
    if not scores:
        return []
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    # Rounding alone gives equal scores a deviation, far below that of any real difference.
    if deviation <= 1e-12 * max(abs(score) for score in scores):
        return [0.0] * len(scores)
    return [(score - mean) / deviation for score in scores]
