"""The routes of SIE's own protocol: score, encode, models, health, status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sie_core.errors import InvalidRequestError
from sie_core.remote.wire import PROTOCOL_VERSION
from sie_core.server.bodies import (
    EncodeBody,
    EncodeParameters,
    ScoreBody,
    decode,
    json_reply,
    read_body,
    receive,
    reply,
    to_item,
    to_items,
)
from sie_core.server.failures import Failure, RefusedError
from sie_core.server.record import record_of
from sie_core.server.service import service_of
from sie_core.types import EncodeResult

SERVED_BY: Final = {"X-SIE-Served-By": "local", "X-SIE-Server-Version": PROTOCOL_VERSION}
"""On every reply to a call; the version is that of the protocol."""

_TIMING_HEADERS: Final = {
    "queue_ms": "X-Queue-Time",
    "tokenization_ms": "X-Tokenization-Time",
    "inference_ms": "X-Inference-Time",
    "total_ms": "X-Total-Time",
}


class ReloadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a reload request, which may be empty."""

    source: str | None = None


async def score(request: Request) -> Response:
    """Answer `POST /v1/score/{model}`."""
    service = service_of(request)
    settings = service.settings
    _check_remote(request)
    with service.door.enter() as visit:
        body = await receive(request, visit, settings, ScoreBody)
        items = to_items(
            body.items, max_items=settings.max_items, max_item_bytes=settings.max_item_bytes
        )
        query = to_item(body.query, "query", max_item_bytes=settings.max_item_bytes)
        result = await service.score(
            request,
            model=request.path_params["model"],
            query=query,
            items=items,
            instruction=body.instruction,
            options=body.options,
        )
    return reply(request, result, timing_headers(record_of(request.scope).timing))


async def encode(request: Request) -> Response:
    """Answer `POST /v1/encode/{model}`."""
    service = service_of(request)
    settings = service.settings
    _check_remote(request)
    with service.door.enter() as visit:
        body = await receive(request, visit, settings, EncodeBody)
        items = to_items(
            body.items, max_items=settings.max_items, max_item_bytes=settings.max_item_bytes
        )
        parameters = body.params or EncodeParameters()
        results = await service.encode(
            request,
            model=request.path_params["model"],
            items=items,
            output_types=parameters.output_types,
            output_dtype=parameters.output_dtype,
            instruction=parameters.instruction,
            options=parameters.options,
        )
    record = record_of(request.scope)
    answer = {
        "model": record.model,
        "items": [_embedding(result) for result in results],
        "timing": record.timing,
        "usage": record.usage,
    }
    return reply(request, answer, timing_headers(record.timing))


async def models(request: Request) -> Response:
    """Answer `GET /v1/models`, where SIE's clients read `models` and OpenAI's read `data`."""
    shelf = service_of(request).shelf
    described = [await shelf.describe(shelved) for shelved in shelf]
    return json_reply({"models": described, "object": "list", "data": described})


async def model(request: Request) -> Response:
    """Answer `GET /v1/models/{model}`."""
    shelf = service_of(request).shelf
    return json_reply(await shelf.describe(shelf.find(request.path_params["model"])))


async def reload(request: Request) -> Response:
    """Answer `POST /v1/models/{model}/reload`: load its files anew, without downtime."""
    service = service_of(request)
    record = record_of(request.scope)
    if not (record.is_admin or service.settings.allow_reload):
        message = (
            "reloading a model needs a key with the role admin, or a server started with "
            "--allow-reload"
        )
        raise RefusedError(Failure(status=403, code="FORBIDDEN", message=message))
    shelved = service.shelf.find(request.path_params["model"])
    record.model = shelved.name
    with service.door.enter() as visit:
        content = await read_body(
            request, visit, max_bytes=2**16, seconds=service.settings.body_timeout_seconds
        )
        kind = request.headers.get("content-type", "")
        body = decode(content, kind, ReloadBody) if content.strip() else ReloadBody()
        if body.source is not None and not record.is_admin:
            # It may be any folder of this machine, or a download.
            message = "naming another source for a model needs a key with the role admin"
            raise RefusedError(Failure(status=403, code="FORBIDDEN", message=message))
        num_replaced = await service.shelf.reload(shelved, body.source)
    return json_reply({**await service.shelf.describe(shelved), "replaced": num_replaced})


async def alive(_: Request) -> Response:
    """Answer `/healthz` and `/livez`."""
    return PlainTextResponse("ok", headers={"X-SIE-Server-Version": PROTOCOL_VERSION})


async def ready(request: Request) -> Response:
    """Answer `/readyz`: whether calls should be sent here."""
    service = service_of(request)
    if service.is_draining:
        return PlainTextResponse("draining", 503)
    if not service.is_ready:
        return PlainTextResponse("loading", 503)
    return PlainTextResponse("ok")


def timing_headers(timing: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of a reply to a call: who answered, and how long its parts took."""
    times = {
        header: f"{timing[name]:.2f}"
        for name, header in _TIMING_HEADERS.items()
        if timing.get(name) is not None
    }
    return SERVED_BY | times


def _check_remote(request: Request) -> None:
    if request.headers.get("x-sie-remote", "forbid") != "forbid":
        msg = "X-SIE-Remote accepts only 'forbid'"
        raise InvalidRequestError(msg)


def _embedding(result: EncodeResult) -> dict[str, Any]:
    """Write one item's embeddings as the protocol has them."""
    written: dict[str, Any] = {}
    if "id" in result:
        written["id"] = result["id"]
    if "dense" in result:
        written["dense"] = _array(result["dense"], ("dims",))
    if "multivector" in result:
        written["multivector"] = _array(result["multivector"], ("num_tokens", "token_dims"))
    return written


def _array(values: np.ndarray[Any, np.dtype[Any]], names: tuple[str, ...]) -> dict[str, Any]:
    shape = dict(zip(names, values.shape, strict=True))
    return {**shape, "dtype": str(values.dtype), "values": values}
