"""What one rerank call does, as a generator that asks nobody itself.

`rerank_plan` yields the steps to send, is sent what came of them, and returns the `Ranking`. How
they are sent, blocking or awaited, is in `sie_core.steps`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sie_core.calibration import Calibration
from sie_core.errors import InvalidRequestError
from sie_core.fusion import fuse_scores
from sie_core.ranking import Ranking, match_scores, rank
from sie_core.steps import Plan, Reply, Step
from sie_core.types import Item, RerankSpace, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankCall:
    """One checked call.

    Attributes:
        model: Who is to score.
        backend: Who that is asked of, where a reply does not say.
        query: What is looked for.
        documents: All candidates, in retrieval order.
        arguments: Named arguments of the client's `score`.
        top_k: How many to keep; None keeps all.
        score_threshold: The least score to keep; None keeps all.
        calibration: What makes probabilities of the model's scores, if anything.
        retrieval_weight: How much the retrieval scores count, if at all.
        retrieval_scores: The first stage's, one for each document.

    Raises:
        InvalidRequestError: The query or a document is no text, or retrieval scores are missing.
    """

    model: str
    backend: str
    query: str
    documents: Sequence[str | None]
    arguments: Mapping[str, Any]
    top_k: int | None = None
    score_threshold: float | None = None
    calibration: Calibration | None = None
    retrieval_weight: float | None = None
    retrieval_scores: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        _check_documents(self.documents)
        if self.documents:
            _check_query(self.query)
        if self.retrieval_weight is not None:
            _check_retrieval_scores(self.retrieval_scores, self.documents)


def rerank_plan(call: RerankCall) -> Plan[Ranking]:
    """Score the documents that have text, and order all of them.

    Raises:
        InvalidRequestError: The backend does not say that its scores are in the space asked for.
        InvalidResponseError: The reply cannot be trusted.
        Exception: What the client raised.
    """
    indices = [index for index, text in enumerate(call.documents) if has_text(text)]
    if not indices:
        return _to_ranking(call, indices, {"scores": []})
    items = [Item(id=str(index), text=call.documents[index] or "") for index in indices]
    step = Step(
        model=call.model, query=Item(text=call.query), items=items, arguments=call.arguments
    )
    [outcome] = yield [step]
    if isinstance(outcome, Exception):
        raise outcome
    return _to_ranking(call, indices, outcome)


def has_text(text: str | None) -> bool:
    """Tell whether there is anything to score."""
    return text is not None and bool(text.strip())


def _to_ranking(call: RerankCall, indices: Sequence[int], reply: Reply) -> Ranking:
    """Match scores to documents through the ids sent, and order them."""
    is_degraded = reply.get("status") == "degraded"
    scores: list[float | None] = [None] * len(call.documents)
    if reply["scores"] or not is_degraded:  # retrieval order comes without scores
        found = match_scores(reply["scores"], [str(i) for i in indices])
        for index, score in zip(indices, found, strict=True):
            scores[index] = score
        _check_score_space(call, indices, reply)
    space: RerankSpace | None = reply.get("score_space")
    shown, order_by = scores, scores
    if call.calibration is not None and space == call.calibration.score_space:
        probability = call.calibration.probability
        shown = [None if score is None else probability(score) for score in scores]
        space = "calibrated"
    if call.retrieval_weight is not None:
        order_by = _fused(shown, call, indices, call.retrieval_weight)
    entries = rank(
        shown,
        order_by=order_by,
        top_k=call.top_k,
        # Another model's scores are not measured against the threshold of this one's.
        score_threshold=None if is_degraded else call.score_threshold,
    )
    if call.retrieval_weight is not None:
        entries = tuple(replace(entry, score=order_by[entry.index]) for entry in entries)
    if order_by is not scores or shown is not scores:
        entries = tuple(replace(entry, model_score=scores[entry.index]) for entry in entries)
    return Ranking(
        entries=entries,
        model=call.model,
        status="degraded" if is_degraded else "complete",
        served_by=reply.get("served_by") or call.backend,
        reason=reply.get("reason"),
        score_space=space,
        usage=reply.get("usage") or Usage(),
    )


def _check_score_space(call: RerankCall, indices: Sequence[int], reply: Reply) -> None:
    wanted = call.arguments.get("options", {}).get("score_space")
    got = reply.get("score_space")
    if indices and wanted is not None and got != wanted:
        msg = (
            f"score_space={wanted!r} was asked for, but the backend gave "
            f"{got or 'scores without saying which they are'}; leave score_space out to take "
            "them as they are"
        )
        raise InvalidRequestError(msg)


def _fused(
    scores: Sequence[float | None], call: RerankCall, indices: Sequence[int], weight: float
) -> list[float | None]:
    """Mix the model's scores with the retrieval scores; what has no score gets none."""
    fused: list[float | None] = [None] * len(scores)
    model_scores = [scores[index] for index in indices]
    known = [score for score in model_scores if score is not None]
    if len(known) != len(model_scores):  # retrieval order: there is nothing to mix
        return fused
    given = call.retrieval_scores or ()
    mixed = fuse_scores(known, [given[index] or 0.0 for index in indices], retrieval_weight=weight)
    for index, score in zip(indices, mixed, strict=True):
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
