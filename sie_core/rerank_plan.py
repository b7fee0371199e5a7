"""What one rerank call does, as a generator that asks nobody itself.

`rerank_plan` yields the steps to send, is sent what came of them, and returns the `Ranking`. How
they are sent, blocking or awaited, is in `sie_core.steps`; what is sent to one model, and when it
is enough, in `sie_core.stage_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, TypedDict

from sie_core.calibration import Calibration
from sie_core.cascade import Stage
from sie_core.client_holder import check_text
from sie_core.deadline import check_timeout_seconds
from sie_core.errors import InvalidRequestError
from sie_core.fusion import check_retrieval_weight, fuse_scores
from sie_core.long_documents import Handling, LongDocuments
from sie_core.models import catalog
from sie_core.ranking import (
    RankedEntry,
    Ranking,
    check_score_space,
    check_score_threshold,
    check_top_k,
    rank,
)
from sie_core.stage_plan import Keeping, Patience, StagePlan, StageScores, sum_usage
from sie_core.steps import Plan
from sie_core.types import RerankSpace


class CallOverrides(TypedDict, total=False):
    """What a call may say otherwise than the constructor; None, as leaving it out, means that."""

    top_k: int | None
    score_threshold: float | None
    instruction: str | None
    score_space: RerankSpace | None
    fuse_retrieval_score: float | None
    max_latency_ms: float | None
    long_documents: Handling | None
    drop_duplicates: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """The same, checked; see `Reranker.rerank`.

    Raises:
        InvalidRequestError: One is wrong.
    """

    top_k: int | None = None
    score_threshold: float | None = None
    instruction: str | None = None
    score_space: RerankSpace | None = None
    fuse_retrieval_score: float | None = None
    max_latency_ms: float | None = None
    long_documents: Handling | None = None
    drop_duplicates: bool | None = None

    def __post_init__(self) -> None:
        check_top_k(self.top_k)
        check_score_threshold(self.score_threshold)
        check_score_space(self.score_space, spaces=RerankSpace)
        check_text(instruction=self.instruction)
        check_retrieval_weight(self.fuse_retrieval_score)
        check_timeout_seconds(self.max_latency_ms, name="max_latency_ms")
        LongDocuments(how=self.long_documents)
        check_drop_duplicates(self.drop_duplicates)

    @classmethod
    def of(cls, overrides: CallOverrides) -> Self:
        """Check what a call says."""
        return cls(**overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankCall:
    """One checked call.

    Attributes:
        model: Who is to score.
        backend: Who that is asked of, where a reply does not say.
        engine: How that is to run, as far as the call says: its pace is another.
        query: What is looked for.
        documents: All candidates, in retrieval order.
        arguments: Named arguments of the client's `score`.
        top_k: How many to keep; None keeps all.
        score_threshold: The least score to keep; None keeps all.
        calibration: What makes probabilities of the model's scores, if anything.
        retrieval_weight: How much the retrieval scores count, if at all.
        retrieval_scores: The first stage's, one for each document.
        drop_duplicates: Whether documents whose text stood before are left out of the ranking.
        sends_once: Whether equal texts are sent once; see `StagePlan`.
        cascade: Models that score before, and how many documents go on.
        patience: How long it goes on.
        keeping: Where scores are kept.

    Raises:
        InvalidRequestError: The query or a document is no text, or retrieval scores are missing.
    """

    model: str
    backend: str
    query: str
    documents: Sequence[str | None]
    arguments: Mapping[str, Any]
    engine: str = ""
    top_k: int | None = None
    score_threshold: float | None = None
    calibration: Calibration | None = None
    retrieval_weight: float | None = None
    retrieval_scores: Sequence[float | None] | None = None
    drop_duplicates: bool = False
    sends_once: bool = False
    cascade: Sequence[Stage] = ()
    patience: Patience = field(default_factory=Patience)
    keeping: Keeping = field(default_factory=Keeping)

    def __post_init__(self) -> None:
        _check_documents(self.documents)
        if self.documents:
            _check_query(self.query)
        if self.documents and self.retrieval_weight is not None:
            _check_retrieval_scores(self.retrieval_scores, self.documents)


def rerank_plan(call: RerankCall) -> Plan[Ranking]:
    """Score the documents that have text, and order all of them, or all that differ.

    Raises:
        InvalidRequestError: The backend does not say that its scores are in the space asked for.
        InvalidResponseError: The reply cannot be trusted.
        Exception: What the client raised.
    """
    candidates = [index for index, text in enumerate(call.documents) if has_text(text)]
    duplicates = _duplicates(call, candidates)
    candidates = [index for index in candidates if index not in duplicates]
    stages: list[StageScores] = []
    for stage in call.cascade:
        patience = replace(call.patience, stop_when_stable=None)  # the best are known at the end
        arguments = stage.arguments(call.arguments)
        scores = yield from _ask(call, stage.model, candidates, arguments, patience)
        stages.append(scores)
        if scores.is_degraded:
            break
        order = [entry.index for entry in rank(_listed(call, scores)) if entry.score is not None]
        candidates = (order or candidates)[: stage.num_kept(len(candidates))]
    own = yield from _ask(call, call.model, candidates, call.arguments, call.patience)
    return _to_ranking(call, candidates, stages, own, duplicates)


def to_pairs(queries: object) -> list[tuple[str, Sequence[str | None]]]:
    """Check that queries are pairs of a query and its documents.

    Raises:
        InvalidRequestError: They are something else.
    """
    if isinstance(queries, str | Mapping) or not isinstance(queries, Sequence):
        msg = f"queries must be a list of pairs (query, documents), but got {queries!r:.80}"
        raise InvalidRequestError(msg)
    pairs: list[tuple[str, Sequence[str | None]]] = []
    for position, pair in enumerate(queries):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != _PAIR:
            msg = f"queries[{position}] must be a pair (query, documents), but got {pair!r:.80}"
            raise InvalidRequestError(msg)
        pairs.append((pair[0], pair[1]))
    return pairs


_PAIR: Final = 2


def check_drop_duplicates(drop_duplicates: bool | None) -> None:
    """Raise InvalidRequestError unless it is True, False or None."""
    if drop_duplicates is not None and not isinstance(drop_duplicates, bool):
        msg = f"drop_duplicates must be True or False, but got {drop_duplicates!r}"
        raise InvalidRequestError(msg)


def has_text(text: str | None) -> bool:
    """Tell whether there is anything to score."""
    return text is not None and bool(text.strip())


def _ask(
    call: RerankCall,
    model: str,
    candidates: Sequence[int],
    arguments: Mapping[str, Any],
    patience: Patience,
) -> Plan[StageScores]:
    spec = catalog.find(model)
    plan = StagePlan(
        model,
        call.query,
        {index: call.documents[index] or "" for index in candidates},
        arguments,
        place=f"{call.backend} {call.engine}".strip(),
        max_length=None if spec is None else spec.max_length,
        sends_once=call.sends_once,
        patience=patience,
        keeping=call.keeping,
    )
    scores = yield from plan.run()
    _check_score_space(arguments, scores)
    return scores


def _to_ranking(
    call: RerankCall,
    candidates: Sequence[int],
    stages: Sequence[StageScores],
    own: StageScores,
    duplicates: AbstractSet[int],
) -> Ranking:
    """Order the model's scores; behind them come those it did not score, and blank documents."""
    scores = _listed(call, own)
    space: RerankSpace | None = own.space
    shown, order_by = scores, scores
    if call.calibration is not None and not own.is_degraded:
        probability = call.calibration.probability
        shown = [None if score is None else probability(score) for score in scores]
        space = "calibrated"
    if call.retrieval_weight is not None:
        order_by = _fused(shown, call, call.retrieval_weight)
    # Another model's scores are not measured against the threshold of this one's.
    threshold = None if own.is_degraded else call.score_threshold
    has_more_scores = any(stage.entries for stage in stages)
    num_unscored = 0 if own.is_degraded else len(candidates) - len(own.entries)
    unscored = [index for index, score in enumerate(shown) if score is None]
    if has_more_scores or num_unscored:
        unscored = _unscored(call, candidates, stages, own, is_cut=threshold is not None)
    entries = rank(
        shown,
        order_by=order_by,
        top_k=call.top_k,
        score_threshold=threshold,
        unscored=[index for index in unscored if index not in duplicates],
    )
    if call.retrieval_weight is not None:
        entries = tuple(replace(entry, score=order_by[entry.index]) for entry in entries)
    if order_by is not scores or shown is not scores:
        entries = tuple(replace(entry, model_score=scores[entry.index]) for entry in entries)
    entries = tuple(_with_span(entry, own) for entry in entries)
    if has_more_scores:
        entries = tuple(
            replace(entry, stage_scores=tuple(_score_in(stage, entry.index) for stage in stages))
            for entry in entries
        )
    stopped = next((it.stopped for it in (*stages, own) if it.stopped), None)
    is_partial = stopped is not None or num_unscored > 0
    reply = own.reply
    return Ranking(
        entries=entries,
        model=call.model,
        status="degraded" if own.is_degraded else "partial" if is_partial else "complete",
        served_by=reply.get("served_by") or call.backend,
        reason=_reason(reply.get("reason"), stopped, len(own.entries), len(candidates)),
        score_space=space,
        usage=sum_usage(one.usage for one in (*stages, own)),
        num_scored=len(own.entries),
        num_unscored=num_unscored,
        num_cached=own.num_cached,
        num_duplicates=len(duplicates),
    )


def _duplicates(call: RerankCall, candidates: Sequence[int]) -> AbstractSet[int]:
    """Return those whose text one before them has, if such are to be left out."""
    if not call.drop_duplicates:
        return frozenset()
    firsts = {call.documents[index]: index for index in reversed(candidates)}
    return set(candidates) - set(firsts.values())


def _listed(call: RerankCall, scores: StageScores) -> list[float | None]:
    """Return a score for each document, None where it has none."""
    return [_score_in(scores, index) for index in range(len(call.documents))]


def _score_in(scores: StageScores, index: int) -> float | None:
    entry = scores.entries.get(index)
    return None if entry is None else float(entry["score"])


def _with_span(entry: RankedEntry, scores: StageScores) -> RankedEntry:
    """Add where the best passage of a long document is, if it was scored by passages."""
    span = scores.entries.get(entry.index, {}).get("span")
    return entry if span is None else replace(entry, span=(span[0], span[1]))


def _unscored(
    call: RerankCall,
    candidates: Sequence[int],
    stages: Sequence[StageScores],
    own: StageScores,
    *,
    is_cut: bool,
) -> list[int]:
    """Order what the model did not score: by the last stage that did, the later the better.

    Then come documents that no model scored, in retrieval order, and last blank ones.
    With a threshold (`is_cut`), what a stage left behind goes: it is below what went on.
    """
    reached = set(candidates)

    def place(index: int) -> tuple[bool, bool, int, float, int]:
        is_blank, is_behind = not has_text(call.documents[index]), index not in reached
        for position in range(len(stages) - 1, -1, -1):
            score = _score_in(stages[position], index)
            if score is not None:
                return is_blank, is_behind, -position, -score, index
        return is_blank, is_behind, 1, 0.0, index

    left = [index for index in range(len(call.documents)) if index not in own.entries]
    if is_cut:
        scored = {index for stage in stages for index in stage.entries}
        left = [index for index in left if index in reached or index not in scored]
    return sorted(left, key=place)


def _reason(
    said: str | None, stopped: str | None, num_scored: int, num_candidates: int
) -> str | None:
    if stopped is None:
        return said
    counted = f"{stopped} with {num_scored} of {num_candidates} documents scored"
    return "; ".join(filter(None, [said, counted]))


def _check_score_space(arguments: Mapping[str, Any], scores: StageScores) -> None:
    wanted = (arguments.get("options") or {}).get("score_space")
    if scores.entries and wanted is not None and scores.space != wanted:
        msg = (
            f"score_space={wanted!r} was asked for, but the backend gave "
            f"{scores.space or 'scores without saying which they are'}; leave score_space out to "
            "take them as they are"
        )
        raise InvalidRequestError(msg)


def _fused(scores: Sequence[float | None], call: RerankCall, weight: float) -> list[float | None]:
    """Mix the model's scores with the retrieval scores; what has no score gets none."""
    fused: list[float | None] = [None] * len(scores)
    known = {index: score for index, score in enumerate(scores) if score is not None}
    if not known:  # retrieval order: there is nothing to mix
        return fused
    given = () if call.retrieval_scores is None else call.retrieval_scores
    retrieved = [float(given[index] or 0.0) for index in known]  # numpy's numbers are no JSON
    mixed = fuse_scores(list(known.values()), retrieved, retrieval_weight=weight)
    for index, score in zip(known, mixed, strict=True):
        fused[index] = score
    return fused


def _check_retrieval_scores(
    scores: Sequence[float | None] | None, documents: Sequence[str | None]
) -> None:
    """Raise InvalidRequestError where a document to score has no finite retrieval score."""
    if scores is None or len(scores) != len(documents):
        got = "none" if scores is None else f"{len(scores)}"
        msg = (
            f"fuse_retrieval_score needs a retrieval score for each of {len(documents)} documents, "
            f"but got {got}; leave it None to order by the reranker alone"
        )
        raise InvalidRequestError(msg)
    for index, (score, text) in enumerate(zip(scores, documents, strict=True)):
        if has_text(text) and (score is None or not math.isfinite(score)):
            msg = (
                f"fuse_retrieval_score needs every document's retrieval score, but document "
                f"{index} has {score!r}; leave it None to order by the reranker alone"
            )
            raise InvalidRequestError(msg)


def _check_query(query: object) -> None:
    if not isinstance(query, str) or not query.strip():
        msg = f"query must be a string with text in it, but got {query!r}"
        raise InvalidRequestError(msg)


def _check_documents(documents: object) -> None:
    if isinstance(documents, str) or not isinstance(documents, Sequence):
        msg = f"documents must be a list of strings, but got {type(documents).__name__}"
        raise InvalidRequestError(msg)
    for index, text in enumerate(documents):
        if text is not None and not isinstance(text, str):
            msg = f"documents[{index}] must be a string or None, but got {type(text).__name__}"
            raise InvalidRequestError(msg)
