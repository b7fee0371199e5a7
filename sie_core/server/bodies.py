"""Bodies: read under limits, decoded by their content type, written as the caller asked.

Nothing is decoded before its size is known, and nothing that was compressed is unpacked. msgspec
reads straight into the shapes below: what they do not name is skipped, never built.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sie_core.errors import InputTooLongError, InvalidRequestError
from sie_core.remote.codec import JSON, MSGPACK
from sie_core.server.admission import Visit
from sie_core.server.failures import CallerGoneError, Failure, RefusedError
from sie_core.server.record import record_of
from sie_core.server.settings import ServerSettings
from sie_core.server.values import check_values
from sie_core.types import Item

_T = TypeVar("_T")


class ItemBody(msgspec.Struct, kw_only=True):
    """What is scored or encoded."""

    id: str | None = None
    text: str | None = None
    metadata: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class ScoreBody(msgspec.Struct, kw_only=True):
    """The body of a score request."""

    query: ItemBody
    items: list[ItemBody]
    instruction: str | None = None
    options: dict[str, Any] | None = None


class EncodeParameters(msgspec.Struct, kw_only=True):
    """What is to be made of the items of an encode request."""

    output_types: list[str] | None = None
    output_dtype: str | None = None
    instruction: str | None = None
    options: dict[str, Any] | None = None


class EncodeBody(msgspec.Struct, kw_only=True):
    """The body of an encode request."""

    items: list[ItemBody]
    params: EncodeParameters | None = None


async def read_body(request: Request, visit: Visit, *, max_bytes: int, seconds: float) -> bytes:
    """Read a request's body, and no further than the limit.

    Raises:
        RefusedError: It is too large, compressed, or does not arrive in time.
        CallerGoneError: The caller hung up in the middle of it.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"the body is compressed ({encoding:.40}); send it as it is"
        raise RefusedError(Failure(status=415, code="INVALID_INPUT", message=message))
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise RefusedError(_too_large(max_bytes))
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise RefusedError(_too_large(max_bytes))
                visit.grow(len(chunk))
                chunks.append(chunk)
    except TimeoutError as exc:
        message = f"the body did not arrive within {seconds:g} s"
        failure = Failure(
            status=408, code="REQUEST_TIMEOUT", message=message, headers={"Connection": "close"}
        )
        raise RefusedError(failure) from exc
    except ClientDisconnect as exc:
        raise CallerGoneError from exc
    record_of(request.scope).num_body_bytes = num_bytes
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def receive(request: Request, visit: Visit, settings: ServerSettings, shape: type[_T]) -> _T:
    """Read a request's body within the server's limits, and decode it.

    Raises:
        RefusedError: See `read_body`.
        CallerGoneError: The same.
        InvalidRequestError: It is not of the shape.
    """
    content = await read_body(
        request,
        visit,
        max_bytes=settings.max_body_bytes,
        seconds=settings.body_timeout_seconds,
    )
    return decode(content, request.headers.get("content-type", ""), shape)


def _too_large(max_bytes: int) -> Failure:
    message = f"request body exceeds the limit of {max_bytes} bytes"
    # The rest of the body is not read, so the connection cannot be used again.
    return Failure(
        status=413, code="INPUT_TOO_LONG", message=message, headers={"Connection": "close"}
    )


def decode(body: bytes, content_type: str, shape: type[_T]) -> _T:
    """Decode a body: msgpack where its content type says so, else JSON.

    Raises:
        InvalidRequestError: It is neither, or not of the shape, or holds too many values; the
            message says where.
    """
    is_msgpack = "msgpack" in content_type.lower()
    check_values(body, is_msgpack=is_msgpack)
    try:
        if is_msgpack:
            return msgspec.msgpack.decode(body, type=shape)
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise InvalidRequestError(reason) from exc


def to_items(bodies: Sequence[ItemBody], *, max_items: int, max_item_bytes: int) -> list[Item]:
    """Check the items of a request, and make the engine's of them.

    Raises:
        InvalidRequestError: There are none, or too many, or one has no text.
        InputTooLongError: One is too long.
    """
    if not bodies:
        msg = "Field 'items' must not be empty"
        raise InvalidRequestError(msg)
    if len(bodies) > max_items:
        msg = (
            f"Request has {len(bodies)} items but at most {max_items} are taken per request; "
            f"split the request into batches of {max_items} or fewer"
        )
        raise InvalidRequestError(msg)
    return [
        to_item(item, f"items[{i}]", max_item_bytes=max_item_bytes) for i, item in enumerate(bodies)
    ]


def to_item(body: ItemBody, name: str, *, max_item_bytes: int) -> Item:
    """Check one item, and make the engine's of it.

    Raises:
        InvalidRequestError: It has no text.
        InputTooLongError: It is too long.
    """
    text = body.text
    if text is None:
        msg = f"{name} has no text; servers score and encode texts"
        raise InvalidRequestError(msg)
    # A character is at most four bytes: most texts need no counting.
    if 4 * len(text) + memoryview(body.metadata).nbytes > max_item_bytes:
        num_bytes = len(text.encode()) + memoryview(body.metadata).nbytes
        if num_bytes > max_item_bytes:
            msg = (
                f"{name} holds {num_bytes} bytes of text and metadata, but at most "
                f"{max_item_bytes} are taken per item; split it into passages"
            )
            raise InputTooLongError(msg)
    return Item(text=text) if body.id is None else Item(id=body.id, text=text)


def reply(
    request: Request, value: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """Write a reply as JSON where the caller accepts that by name, else as msgpack."""
    if "application/json" in request.headers.get("accept", "").lower():
        return json_reply(value, headers)
    body = msgspec.msgpack.encode(value, enc_hook=MSGPACK.array)
    return Response(body, headers=dict(headers or {}), media_type=MSGPACK.content_type)


def json_reply(
    value: Mapping[str, Any], headers: Mapping[str, str] | None = None, *, status: int = 200
) -> Response:
    """Write a reply as JSON."""
    body = msgspec.json.encode(value, enc_hook=JSON.array)
    return Response(body, status, dict(headers or {}), media_type=JSON.content_type)
