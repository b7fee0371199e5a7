"""From scores to an order: pure functions, no I/O.

The order is stable: equal scores keep retrieval order. Candidates without a score (blank text)
come last in retrieval order; they are cut by `top_k` as any last candidate is, and never by a
threshold, because nothing was measured that could fall below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, get_args

from sie_core.errors import InvalidRequestError, InvalidResponseError
from sie_core.types import RerankSpace, ScoreSpace, Usage

MARK_KEYS = frozenset({"rerank_status", "rerank_served_by", "rerank_reason"})
"""Where an answer that is not complete marks a document. An earlier stage's speak of that alone."""

MODEL_SCORE_KEY = "model_score"
"""Where a document's metadata has what the model gave, if its score is calibrated or fused."""

BEST_PASSAGE_KEY = "best_passage"
"""Where it has `[start, end]`, in characters, of the passage by which a long document is scored."""

STAGE_SCORES_KEY = "stage_scores"
"""Where a document's metadata has what the stages of a cascade gave, in their order."""

STALE_KEYS = MARK_KEYS | {MODEL_SCORE_KEY, BEST_PASSAGE_KEY, STAGE_SCORES_KEY}
"""What an earlier stage may have written into metadata, and speaks of that stage only."""

_MAX_NAMED_IDS = 3
"""How many ids an error message names before it only counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedEntry:
    """One candidate's place.

    Attributes:
        index: Its place in the list given.
        score: What it is ordered by; None: unscored.
        rank: 0 is the best.
        model_score: Where `score` is calibrated or fused: what the model gave; else None.
        span: Where a long document is scored by passages: where the best one begins and ends, in
            characters of the text given; else None.
        stage_scores: Of a cascade: what each of its stages gave, None where it was not asked.
    """

    index: int
    score: float | None
    rank: int
    model_score: float | None = None
    span: tuple[int, int] | None = None
    stage_scores: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The answer to one rerank call: entries best first, and how they came about.

    Attributes:
        entries: The candidates that remain after `score_threshold` and `top_k`, best first.
        model: The model that was asked for.
        status: `complete`; `partial` when time was up, or the call stopped early, before all were
            scored; `degraded` when the order is not the requested model's.
        served_by: Who answered: `local`, or a server's address.
        reason: Why backends before the one that answered did not, or why it is partial; else None.
        score_space: `raw`, `probability` or `calibrated`; None where the backend does not say.
        usage: Tokens consumed and items truncated, as far as the backend tells, of all models
            asked together. A server is sent equal texts once; what comes from a score cache
            consumes nothing.
        num_scored: Candidates that the model scored, those cut by now included.
        num_unscored: Candidates with text that it did not score. In a cascade those are not counted
            that were never to reach it.
        num_cached: Candidates whose score came from the score cache.
        num_duplicates: Candidates left out because their text stood before (`drop_duplicates`).
    """

    entries: tuple[RankedEntry, ...]
    model: str
    status: Literal["complete", "partial", "degraded"] = "complete"
    served_by: str = "local"
    reason: str | None = None
    score_space: RerankSpace | None = None
    usage: Usage = field(default_factory=Usage)
    num_scored: int = 0
    num_unscored: int = 0
    num_cached: int = 0
    num_duplicates: int = 0

    @property
    def marks(self) -> dict[str, str]:
        """What an answer that is not complete says of itself in a document's metadata."""
        if self.status == "complete":
            return {}
        return {
            "rerank_status": self.status,
            "rerank_served_by": self.served_by,
            "rerank_reason": self.reason or "",
        }

    def __iter__(self) -> Iterator[RankedEntry]:
        """Iterate over the entries, best first."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.entries)


def rank(
    scores: Sequence[float | None],
    *,
    top_k: int | None = None,
    score_threshold: float | None = None,
    order_by: Sequence[float | None] | None = None,
    unscored: Sequence[int] | None = None,
) -> tuple[RankedEntry, ...]:
    """Order candidates by score, best first.

    Args:
        scores: One score per candidate in retrieval order; None where a candidate has none.
        top_k: Keep at most this many; None keeps all.
        score_threshold: Keep scored candidates with `score >= score_threshold`; None keeps all.
        order_by: Finer numbers to order by, for scores that make ties of what differs.
        unscored: The candidates without a score that are to stay, in their order; None means all,
            in retrieval order.

    Raises:
        InvalidRequestError: `top_k` below 1, or a threshold that is not a finite number.
        InvalidResponseError: A score is NaN or infinite.
    """
    check_top_k(top_k)
    check_score_threshold(score_threshold)
    scored: list[tuple[float, int]] = []
    without: list[int] = []
    for index, score in enumerate(scores):
        if score is None:
            without.append(index)
        elif not math.isfinite(score):
            msg = f"candidate {index} has the score {score}, which cannot be ordered"
            raise InvalidResponseError(msg)
        elif score_threshold is None or score >= score_threshold:
            key = score if order_by is None else order_by[index]
            scored.append((-key if key is not None else -score, index))
    scored.sort()
    order: list[tuple[int, float | None]] = [(index, scores[index]) for _, index in scored]
    order += [(index, None) for index in (without if unscored is None else unscored)]
    return tuple(
        RankedEntry(index=index, score=score, rank=position)
        for position, (index, score) in enumerate(order[:top_k])
    )


def match_scores(entries: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[float]:
    """Do what `match_entries` does, and return the scores alone."""
    return [float(entry["score"]) for entry in match_entries(entries, ids)]


def match_entries(
    entries: Sequence[Mapping[str, Any]], ids: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Put a reply's scores in the order of the ids sent, trusting nothing about the reply.

    Args:
        entries: `{"item_id", "score", …}` in any order.
        ids: The ids sent, unique.

    Returns:
        One entry per id, with a finite score, in the order of `ids`.

    Raises:
        InvalidResponseError: An id is missing, doubled or unknown, or a score is not finite.
    """
    expected = set(ids)
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        item_id = entry.get("item_id")
        if item_id not in expected:
            msg = f"the reply scores an item that was not sent: {item_id!r}"
            raise InvalidResponseError(msg)
        if item_id in found:
            msg = f"the reply scores item {item_id!r} twice"
            raise InvalidResponseError(msg)
        score = entry.get("score")
        if (
            isinstance(score, bool)
            or not isinstance(score, int | float)
            or not math.isfinite(score)
        ):
            msg = f"the reply's score for item {item_id!r} is not a finite number: {score!r}"
            raise InvalidResponseError(msg)
        found[item_id] = entry
    missing = [item_id for item_id in ids if item_id not in found]
    if missing:
        named = ", ".join(repr(item_id) for item_id in missing[:_MAX_NAMED_IDS])
        msg = f"the reply has no score for {len(missing)} of {len(ids)} items: {named}"
        raise InvalidResponseError(msg)
    return [found[item_id] for item_id in ids]


def check_top_k(top_k: int | None, *, name: str = "top_k") -> None:
    """Raise InvalidRequestError unless `top_k` is None or an integer of at least 1."""
    if top_k is None:
        return
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        msg = f"{name} must be an integer or None, but got {top_k!r}"
        raise InvalidRequestError(msg)
    if top_k < 1:
        msg = f"{name} must be at least 1, but got {top_k}; leave it None to keep every document"
        raise InvalidRequestError(msg)


def check_score_threshold(score_threshold: float | None) -> None:
    """Raise InvalidRequestError unless the threshold is None or a finite number."""
    if score_threshold is None:
        return
    if not _is_finite_number(score_threshold):
        msg = f"score_threshold must be a finite number or None, but got {score_threshold!r}"
        raise InvalidRequestError(msg)


def _is_finite_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_score_space(score_space: str | None, *, spaces: object = ScoreSpace) -> None:
    """Raise InvalidRequestError unless it is None or one of the score spaces."""
    if score_space is not None and score_space not in get_args(spaces):
        allowed = " or ".join(repr(name) for name in get_args(spaces))
        msg = f"score_space must be {allowed}, or None, but got {score_space!r}"
        raise InvalidRequestError(msg)
