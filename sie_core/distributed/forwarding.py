"""A request and its reply as plain values, which go from process to process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from sie_core.server.record import CallRecord, record_of

_App = Callable[..., Awaitable[None]]

_KEPT_BACK = frozenset({b"authorization", b"cookie", b"content-length", b"transfer-encoding"})
"""Keys stay where they were checked; a body that was read has the length that it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedCall:
    """A request whose caller is known and whose body is there.

    Attributes:
        method: In upper case.
        path: Decoded.
        query_string: Behind the question mark.
        headers: Without credentials.
        body: All of it.
        request_id: By which the logs name it.
        caller: The name of the key that was used.
        is_admin: Whether the caller may change what is served.
    """

    method: str
    path: str
    query_string: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = field(default=b"", repr=False)
    request_id: str | None = None
    caller: str | None = None
    is_admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedReply:
    """What was answered.

    Attributes:
        status: Of the reply.
        headers: All of them.
        body: All of it.
        record: What was found out on the way.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)
    record: CallRecord


def forwarded(request: Request, body: bytes = b"") -> ForwardedCall:
    """Make a call of a request whose body was read."""
    scope = request.scope
    record = record_of(scope)
    return ForwardedCall(
        method=scope["method"],
        path=scope["path"],
        query_string=scope["query_string"],
        headers=tuple(
            (bytes(name), bytes(value))
            for name, value in scope["headers"]
            if name.lower() not in _KEPT_BACK
        ),
        body=body,
        request_id=record.request_id,
        caller=record.caller,
        is_admin=record.is_admin,
    )


def returned(reply: ForwardedReply) -> Response:
    """Make a response of a reply, with its headers as they are."""
    response = Response(reply.body, reply.status)
    response.raw_headers = list(reply.headers)
    return response


def note(record: CallRecord, reply: ForwardedReply) -> None:
    """Take over what was found out about a call where it was answered."""
    found = reply.record
    record.model = found.model
    record.num_items = found.num_items
    record.usage = found.usage
    record.timing = found.timing
    record.code = found.code


async def run_app(app: _App, call: ForwardedCall) -> ForwardedReply:
    """Let an ASGI app answer a call. Who cancels this is gone as a caller is that hung up."""
    record = CallRecord(request_id=call.request_id, caller=call.caller, is_admin=call.is_admin)
    headers = [*call.headers, (b"content-length", str(len(call.body)).encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": quote(call.path).encode(),
        "root_path": "",
        "query_string": call.query_string,
        "headers": headers,
        "client": None,
        "server": None,
    }
    record_of(scope, record)
    messages = iter([{"type": "http.request", "body": call.body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        message = next(messages, None)
        if message is not None:
            return message
        await asyncio.Event().wait()  # until this is cancelled
        return {"type": "http.disconnect"}

    response = await gather_response(app, scope, receive)
    return ForwardedReply(
        status=response.status_code,
        headers=tuple(response.raw_headers),
        body=bytes(response.body),
        record=record,
    )


async def gather_response(app: _App, scope: Any, receive: Callable[[], Awaitable[Any]]) -> Response:
    """Let an ASGI app answer a request, and return its reply when it is whole."""
    response = Response()
    chunks: list[bytes] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            response.status_code = message["status"]
            response.raw_headers = [(bytes(name), bytes(it)) for name, it in message["headers"]]
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    response.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return response
