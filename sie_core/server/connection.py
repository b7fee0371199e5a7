"""`BoundedConnection`: uvicorn's HTTP connection, with an end to what callers leave unfinished.

uvicorn waits for the rest of a request for ever, and takes heads of any size. Both let one machine
with a slow or endless request hold a connection, or memory, as long as it likes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio.events import TimerHandle
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; nginx takes 32 KiB, Node 16."""


def bounded_connection(
    *,
    message_timeout_seconds: float,
    head_timeout_seconds: float,
    max_connections: int,
    max_head_bytes: int = MAX_HEAD_BYTES,
) -> type[BoundedConnection]:
    """Return a class for uvicorn's `http=`, with bounds.

    Args:
        message_timeout_seconds: For a whole request, head and body. A handler that reads bodies has
            its own, shorter bound and says what was wrong; this one is for bodies that nobody
            reads.
        head_timeout_seconds: For the head, from the connection's begin, or the first byte after a
            reply.
        max_connections: Open at a time; further ones are closed at once.
        max_head_bytes: Bytes of the head.
    """
    bounds = {
        "message_timeout_seconds": message_timeout_seconds,
        "head_timeout_seconds": head_timeout_seconds,
        "max_head_bytes": max_head_bytes,
        "max_connections": max_connections,
    }
    return type("BoundedConnection", (BoundedConnection,), bounds)


class BoundedConnection(HttpToolsProtocol):
    """One connection. uvicorn makes them itself, so the bounds are the class's."""

    message_timeout_seconds: ClassVar[float]
    head_timeout_seconds: ClassVar[float]
    max_connections: ClassVar[int]
    max_head_bytes: ClassVar[int]

    _patience: TimerHandle | None = None
    _num_head_bytes = 0
    _is_in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head, unless too many connections are open."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            message = f"{self.max_connections} connections are open; come back later"
            self._refuse(503, "QUEUE_FULL", message)
            return
        self._wait(self.head_timeout_seconds, "the head of the request did not arrive")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, as long as the head is not too large."""
        if self.transport.is_closing():
            return
        if self._is_in_head:
            if self._patience is None:  # the first bytes of another request
                self._wait(self.head_timeout_seconds, "the head of the request did not arrive")
            # What of these bytes is body counts too: so much of it comes with a head at most.
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_head_bytes > self.max_head_bytes:
            self._refuse(
                431, "INPUT_TOO_LONG", f"the head of a request holds {self.max_head_bytes} bytes"
            )

    def on_headers_complete(self) -> None:
        """Go over from waiting for the head to waiting for the rest."""
        self._is_in_head = False
        self._num_head_bytes = 0
        self._stop_waiting()
        self._wait(self.message_timeout_seconds, "the body of the request did not arrive")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait no longer: what takes time now is this side's."""
        self._is_in_head = True
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of every other error."""
        self._refuse(400, "INVALID_INPUT", msg)

    def _wait(self, seconds: float, what: str) -> None:
        self._patience = self.loop.call_later(seconds, self._give_up, seconds, what)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self, seconds: float, what: str) -> None:
        self._patience = None
        is_silent = self._is_in_head and not self._num_head_bytes
        if is_silent:
            self.transport.close()
        else:
            self._refuse(408, "REQUEST_TIMEOUT", f"{what} within {seconds:g} s")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer, if no other answer has begun, and close the connection."""
        self._stop_waiting()
        _logger.info("%s: %s", self.client[0] if self.client else "a caller", message)
        cycle = self.cycle
        # Of a request whose reply has begun only the body is waited for: it has its reply.
        is_answered = cycle is not None and cycle.response_started
        if not self.pipeline and (
            not is_answered or (self._is_in_head and cycle.response_complete)
        ):
            self.transport.write(_response(status, code, message))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def _response(status: int, code: str, message: str) -> bytes:
    content: dict[str, Any] = {"detail": {"code": code, "message": message}}
    body = json.dumps(content).encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-sie-error-code: {code}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
