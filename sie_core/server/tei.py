"""Text Embeddings Inference's `/rerank`, as Haystack's HuggingFaceTEIRanker and others call it.

    POST /rerank {query, texts, raw_scores, return_text, truncate, truncation_direction}
      -> [{index, score, text?}]                                     best first

Such a server has one model, so its requests name none: here the first that scores answers, or
the one that `model` names.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sie_core.server.dialect import read, score, to_items
from sie_core.server.failures import SHAPES, Failure, RefusedError
from sie_core.server.native import timing_headers
from sie_core.server.service import service_of
from sie_core.types import ScoreResult

_REQUIREMENTS: Final = {
    "model": "a string",
    "query": "a string",
    "raw_scores": "a boolean",
    "return_text": "a boolean",
    "texts": "an array of strings",
    "truncate": "a boolean",
    "truncation_direction": "'Right' or 'Left'",
}

_ERROR_TYPES: Final = {
    "EMPTY": "Empty",
    "INFERENCE_ERROR": "Backend",
    "INPUT_TOO_LONG": "Validation",
    "INVALID_INPUT": "Validation",
    "QUEUE_FULL": "Overloaded",
    "RATE_LIMIT": "Overloaded",
    "RESOURCE_EXHAUSTED": "Overloaded",
}
"""By our code: the kinds of errors that such servers have; others are of an unhealthy one."""


class RankBody(msgspec.Struct, kw_only=True):
    """The body of `/rerank`.

    `truncate`: whether texts that are too long lose their end; null leaves it to the server, which
    then does so. `model`: which of the server's models is to answer; null means the first that
    scores.
    """

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None
    truncation_direction: Literal["Right", "Left", "right", "left"] | None = None
    model: str | None = None


class Rank(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One text's place: its index in the request, and its score."""

    index: int
    score: float
    text: str | None = None


async def rerank(request: Request) -> Response:
    """Answer `POST /rerank`."""
    service = service_of(request)
    with service.door.enter() as visit:
        body = await read(request, visit, RankBody, _REQUIREMENTS)
        if not body.texts:
            failure = Failure(status=400, code="EMPTY", message="'texts' must not be empty")
            raise RefusedError(failure)
        found = await score(
            request,
            model=body.model or await _first_that_scores(request),
            query=body.query,
            items=to_items(request, body.texts, "texts", status=413),
            options={"score_space": "raw"} if body.raw_scores else None,
        )
    _check_truncation(found, body)
    ranks = [
        Rank(
            index=(index := int(entry["item_id"])),
            score=entry["score"],
            text=body.texts[index] if body.return_text else None,
        )
        for entry in found["scores"]
    ]
    headers = timing_headers(found.get("timing", {}))
    return Response(msgspec.json.encode(ranks), headers=headers, media_type="application/json")


async def _first_that_scores(request: Request) -> str:
    """Return the first of the server's models that scores.

    Raises:
        RefusedError: There is none.
    """
    shelf = service_of(request).shelf
    for shelved in shelf:
        name: str = shelved.name
        if "score" in (await shelf.describe(shelved))["outputs"]:
            return name
    message = "this server was started with no model that scores; name one: sie serve MODEL"
    raise RefusedError(Failure(status=404, code="MODEL_NOT_FOUND", message=message))


def _check_truncation(found: ScoreResult, body: RankBody) -> None:
    """Refuse what the caller did not want: a text that lost its end, where it may not.

    Raises:
        RefusedError: That happened.
    """
    num_truncated = found.get("usage", {}).get("truncated_items", 0)
    cuts_left = (body.truncation_direction or "Right").lower() == "left"
    if not num_truncated or (body.truncate is not False and not cuts_left):
        return
    cut = f"{num_truncated} of {len(body.texts)} texts are longer than the model reads"
    if body.truncate is False:
        failure = Failure(
            status=413,
            code="INPUT_TOO_LONG",
            message=f"{cut}, and 'truncate' is false; send true to have their ends cut off",
        )
    else:
        failure = Failure(
            status=422,
            code="INVALID_INPUT",
            message=f"{cut}, and are cut at their ends; 'truncation_direction' must be 'Right'",
        )
    raise RefusedError(failure)


def error(failure: Failure) -> dict[str, Any]:
    """Write a failure as such a server does."""
    kind = _ERROR_TYPES.get(failure.code)
    if kind is None:
        kind = "Validation" if failure.status < 500 else "Unhealthy"  # noqa: PLR2004  HTTP's
    return {"error": failure.message, "error_type": kind}


SHAPES["/rerank"] = error
