"""From what a model gave to what a call returns: scores best first, embeddings under their ids."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from sie_core.errors import InferenceError
from sie_core.local.model import Job, Model
from sie_core.local.passages import Scored
from sie_core.local.requests import EncodeRequest, ScoreRequest
from sie_core.ranking import rank
from sie_core.types import EncodeResult, ScoreEntry, ScoreResult, ScoreSpace, Timing, Usage

_logger = logging.getLogger(__name__)


def to_score_result(
    request: ScoreRequest, job: Job[Scored], outputs: list[Any], model: Model
) -> ScoreResult:
    """Give each item its score, in the score space asked for, best first.

    Raises:
        InferenceError: A score is not a finite number.
    """
    scored = job.finish(outputs)
    raw = scored.scores
    bad = sum(not math.isfinite(score) for score in raw)
    if bad:
        msg = (
            f"{request.model} gave no finite score for {bad} of {len(raw)} texts; its numbers "
            "overflow in this format: use dtype='float32' or 'bfloat16'"
        )
        raise InferenceError(msg)
    _warn_truncated(request, job, len(raw), model)
    space = request.score_space or model.score_space
    scores, ids = to_score_space(raw, space), request.item_ids
    ranked = rank(raw)
    result = ScoreResult(
        model=request.model,
        query_id=request.query.get("id"),
        scores=[
            ScoreEntry(item_id=ids[entry.index], score=scores[entry.index], rank=entry.rank)
            for entry in ranked
        ],
        usage=_usage(job),
        score_space=space,
    )
    if job.truncated:
        result["truncated"] = [ids[i] for i in job.truncated]
    if request.long_documents.how is not None:
        result["long_documents"] = request.long_documents.how
    if scored.spans is not None:
        for entry, place in zip(result["scores"], ranked, strict=True):
            if (span := scored.spans[place.index]) is not None:
                entry["span"] = list(span)
    return result


def to_encode_results(
    request: EncodeRequest, job: Job[list[EncodeResult]], outputs: list[Any], model: Model
) -> list[EncodeResult]:
    """Give each item its embeddings, under the caller's id where there is one."""
    results = job.finish(outputs)
    _warn_truncated(request, job, len(results), model)
    for item, result in zip(request.items, results, strict=True):
        if (item_id := item.get("id")) is not None:
            result["id"] = item_id
        result["usage"] = _usage(job)
    return results


def put_timing(results: Sequence[EncodeResult], timing: Timing) -> None:
    """Give each result the timing of the call that it is of; a copy, since each is the caller's."""
    for result in results:
        result["timing"] = timing.copy()


def to_score_space(logits: Sequence[float], space: ScoreSpace) -> list[float]:
    """Turn logits into the scores asked for; the sigmoid is taken in double precision."""
    if space == "raw":
        return list(logits)
    return torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()


def _usage(job: Job[Any]) -> Usage:
    usage = Usage(input_tokens=job.num_input_tokens, truncated_items=job.num_truncated)
    if job.num_passages is not None:
        usage["passages"] = job.num_passages
    return usage


_warned: set[tuple[str, bool]] = set()


def _warn_truncated(
    request: ScoreRequest | EncodeRequest, job: Job[Any], num_texts: int, model: Model
) -> None:
    """Say once per model that texts were cut unasked; every result of `score` counts them."""
    has_passages, is_scored = job.num_passages is not None, isinstance(request, ScoreRequest)
    is_asked_for = isinstance(request, ScoreRequest) and request.max_document_length is not None
    if not job.num_truncated or is_asked_for or (request.model, has_passages) in _warned:
        return
    _warned.add((request.model, has_passages))
    max_length = request.max_length or model.max_length
    if isinstance(request, ScoreRequest) and has_passages:
        _logger.warning(
            "%d of %d texts had more than %d passages of the %d tokens that %s reads, or a query "
            "before them that fills most of those, and lost their end; every result of score "
            "counts such texts in usage['truncated_items']; raise max_passages to read more",
            job.num_truncated,
            num_texts,
            request.long_documents.most,
            max_length,
            request.model,
        )
        return
    _logger.warning(
        "%d of %d texts were longer than the %d tokens that %s reads, a query before them "
        "included, and lost their end; every result of score counts such texts in "
        "usage['truncated_items']%s",
        job.num_truncated,
        num_texts,
        max_length,
        request.model,
        "; long_documents='max_passage' reads them whole" if is_scored else "",
    )
