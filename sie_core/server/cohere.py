"""Cohere's rerank routes: `/v1/rerank`, as sie-server has it too, and `/v2/rerank`.

    POST /v1/rerank {model, query, documents, top_n, return_documents, …}
      -> {model, results: [{index, relevance_score, document?}], usage}
    POST /v2/rerank {model, query, documents, top_n, max_tokens_per_doc, …}
      -> {id, results: [{index, relevance_score}], meta}

What `/v1/rerank` does not know it refuses, as sie-server does; `/v2/rerank` ignores it, as Cohere
does. Relevance scores are probabilities, where the model has any.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sie_core.server.bodies import json_reply
from sie_core.server.dialect import read, score, to_items, wrong
from sie_core.server.failures import SHAPES, Failure
from sie_core.server.native import timing_headers
from sie_core.server.record import record_of
from sie_core.server.service import service_of
from sie_core.types import ScoreResult

Name = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Document = str | dict[str, str]
"""A text, or an object with a `text`; its other fields come back with it."""

_REQUIREMENTS: Final = {
    "documents": "a non-empty array of strings",
    "max_tokens_per_doc": "a positive integer",
    "model": "a non-empty string",
    "options": "an object",
    "query": "a non-empty string",
    "rank_fields": "an array of strings",
    "return_documents": "a boolean",
    "top_n": "a positive integer",
}


class RerankBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `/v1/rerank`.

    `rank_fields`: which fields of documents that are objects are read; null means `text`.
    `options`: what scoring takes beyond Cohere's interface, such as `instruction` or `profile`.
    """

    model: Name
    query: Name
    documents: Annotated[list[Document], msgspec.Meta(min_length=1)]
    top_n: Count | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    options: dict[str, Any] | None = None


class RerankBodyV2(msgspec.Struct, kw_only=True):
    """The body of `/v2/rerank`; what it does not name is ignored, as `priority` is.

    `max_tokens_per_doc`: tokens of each document that are read; null means as many as the model
    reads. `return_documents` and `rank_fields` are of older clients, and as in `/v1/rerank`.
    """

    model: Name
    query: Name
    documents: Annotated[list[Document], msgspec.Meta(min_length=1)]
    top_n: Count | None = None
    max_tokens_per_doc: Count | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    options: dict[str, Any] | None = None


class RerankResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One document's place: its index in the request, and its score."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class InputTokens(msgspec.Struct, kw_only=True):
    """The tokens of all pairs of query and document."""

    input_tokens: int


class RerankReply(msgspec.Struct, kw_only=True):
    """What `/v1/rerank` answers; the best document stands first."""

    model: str
    results: list[RerankResult]
    usage: InputTokens


class ApiVersion(msgspec.Struct, kw_only=True):
    """Which of Cohere's interfaces answered."""

    version: str


class BilledUnits(msgspec.Struct, kw_only=True):
    """What is charged: nothing."""

    search_units: int = 0


class Meta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What Cohere's clients read beside the results; `warnings` names what was cut."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: InputTokens
    warnings: list[str] | None = None


class RerankReplyV2(msgspec.Struct, kw_only=True):
    """What `/v2/rerank` answers; the best document stands first."""

    id: str
    results: list[RerankResult]
    meta: Meta


async def rerank(request: Request) -> Response:
    """Answer `POST /v1/rerank`."""
    with service_of(request).door.enter() as visit:
        body = await read(request, visit, RerankBody, _REQUIREMENTS)
        found = await _score(request, body, body.options)
    answer = RerankReply(
        model=found["model"],
        results=_results(found, body),
        usage=_tokens(found),
    )
    return json_reply(msgspec.to_builtins(answer), timing_headers(found.get("timing", {})))


async def rerank_v2(request: Request) -> Response:
    """Answer `POST /v2/rerank`."""
    with service_of(request).door.enter() as visit:
        body = await read(request, visit, RerankBodyV2, _REQUIREMENTS)
        options = dict(body.options or {})
        if body.max_tokens_per_doc is not None:
            options["max_document_length"] = body.max_tokens_per_doc
        found = await _score(request, body, options)
    answer = RerankReplyV2(
        id=record_of(request.scope).request_id or str(uuid.uuid4()),
        results=_results(found, body),
        meta=Meta(
            api_version=ApiVersion(version="2"),
            billed_units=BilledUnits(),
            tokens=_tokens(found),
            warnings=_warnings(found),
        ),
    )
    return json_reply(msgspec.to_builtins(answer), timing_headers(found.get("timing", {})))


async def _score(
    request: Request, body: RerankBody | RerankBodyV2, options: Mapping[str, Any] | None
) -> ScoreResult:
    texts = [_text(document, body.rank_fields) for document in body.documents]
    return await score(
        request,
        model=body.model,
        query=body.query,
        items=to_items(request, texts, "documents"),
        options=options,
    )


def _text(document: Document, rank_fields: Sequence[str] | None) -> str:
    """Return what of a document is read: its text, or the fields named, a line for each."""
    if isinstance(document, str):
        return document
    if rank_fields:
        present = [name for name in rank_fields if name in document]
        return "\n".join(f"{name}: {document[name]}" for name in present)
    if "text" not in document:
        message = "'documents' must be a non-empty array of strings, or of objects with a 'text'"
        raise wrong(message, "documents")
    return document["text"]


def _results(found: ScoreResult, body: RerankBody | RerankBodyV2) -> list[RerankResult]:
    """List the best documents by their places in the request, which are the items' ids."""
    entries = found["scores"][: body.top_n]
    return [
        RerankResult(
            index=(index := int(entry["item_id"])),
            relevance_score=entry["score"],
            document=_echo(body.documents[index]) if body.return_documents else None,
        )
        for entry in entries
    ]


def _echo(document: Document) -> dict[str, str]:
    return {"text": document} if isinstance(document, str) else document


def _tokens(found: ScoreResult) -> InputTokens:
    return InputTokens(input_tokens=found.get("usage", {}).get("input_tokens", 0))


def _warnings(found: ScoreResult) -> list[str] | None:
    num_truncated = found.get("usage", {}).get("truncated_items", 0)
    if not num_truncated:
        return None
    return [f"{num_truncated} of {len(found['scores'])} documents were too long and lost their end"]


def error(failure: Failure) -> dict[str, Any]:
    """Write a failure as sie-server does on `/v1/rerank`, which is OpenAI's shape."""
    kind = "invalid_request_error" if failure.status < 500 else "server_error"  # noqa: PLR2004  HTTP's
    return {
        "error": {
            "message": failure.message,
            "type": kind,
            "param": failure.parameter,
            "code": failure.code,
            **failure.fields,
        }
    }


def message(failure: Failure) -> dict[str, Any]:
    """Write a failure as Cohere does."""
    return {"message": failure.message}


SHAPES.update({"/v1/rerank": error, "/v2/rerank": message})
