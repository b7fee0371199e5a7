"""From what a model gave to what a call returns: scores best first, embeddings under their ids."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from sie_core.errors import InferenceError
from sie_core.local.model import Job, Model
from sie_core.local.requests import EncodeRequest, ScoreRequest
from sie_core.ranking import rank
from sie_core.types import EncodeResult, ScoreEntry, ScoreResult, ScoreSpace, Timing, Usage

_logger = logging.getLogger(__name__)


def to_score_result(
    request: ScoreRequest, job: Job[list[float]], outputs: list[Any], model: Model
) -> ScoreResult:
    """Give each item its score, in the score space asked for, best first.

    Raises:
        InferenceError: A score is not a finite number.
    """
    raw = job.finish(outputs)
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
    result = ScoreResult(
        model=request.model,
        query_id=request.query.get("id"),
        scores=[
            ScoreEntry(item_id=ids[entry.index], score=scores[entry.index], rank=entry.rank)
            for entry in rank(raw)
        ],
        usage=_usage(job),
        score_space=space,
    )
    if job.truncated:
        result["truncated"] = [ids[i] for i in job.truncated]
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
    return Usage(input_tokens=job.num_input_tokens, truncated_items=job.num_truncated)


_warned_models: set[str] = set()


def _warn_truncated(
    request: ScoreRequest | EncodeRequest, job: Job[Any], num_texts: int, model: Model
) -> None:
    """Say once per model that texts were cut unasked; every result of `score` counts them."""
    is_asked_for = isinstance(request, ScoreRequest) and request.max_document_length is not None
    if not job.num_truncated or is_asked_for or request.model in _warned_models:
        return
    _warned_models.add(request.model)
    _logger.warning(
        "%d of %d texts were longer than the %d tokens that %s reads, a query before them "
        "included, and lost their end; every result of score counts such texts in "
        "usage['truncated_items']",
        job.num_truncated,
        num_texts,
        request.max_length or model.max_length,
        request.model,
    )
