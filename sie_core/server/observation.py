"""`Observation`: one request and its reply, told to the log and the metrics when they are over."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sie_core.server.failures import CLIENT_CLOSED_REQUEST
from sie_core.server.record import CallRecord, record_of

_REQUEST_ID_HEADER = b"x-request-id"
_CODE_HEADER = b"x-sie-error-code"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One request and its reply, without their contents.

    Attributes:
        method: Of the request.
        path: Of the request, without the query.
        client: Address of the caller; None for a socket without one.
        status: Of the reply; 499 if the caller left before it began.
        seconds: From the head of the request to the end of the reply.
        record: What those found out who worked on it.
    """

    method: str
    path: str
    client: str | None
    status: int
    seconds: float
    record: CallRecord


Observer = Callable[[Observation], None]


class Observed:
    """ASGI middleware, the outermost: names the request in its reply, and reports both.

    Args:
        app: What answers.
        observers: Are called with each observation.
        clock: Tells the seconds that pass.
    """

    def __init__(
        self,
        app: ASGIApp,
        observers: Sequence[Observer],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._observers = observers
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; HTTP alone is observed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        record = record_of(scope)
        record.request_id = _request_id(_header(scope["headers"], _REQUEST_ID_HEADER))
        named = (_REQUEST_ID_HEADER, record.request_id.encode())
        status: int | None = None

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.get("headers", ())
                if status >= HTTPStatus.BAD_REQUEST and record.code is None:
                    record.code = _header(headers, _CODE_HEADER)
                message = {**message, "headers": [*headers, named]}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            status = status or HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            if record.route is None:  # of one that is no call, such as the page
                record.route = getattr(scope.get("route"), "path", None)
            observation = Observation(
                method=scope["method"],
                path=scope["path"],
                client=client_address(scope),
                status=status or CLIENT_CLOSED_REQUEST,
                seconds=self._clock() - started,
                record=record,
            )
            for observe in self._observers:
                observe(observation)


def client_address(scope: Scope) -> str | None:
    """Return the address of who calls; None for a socket without one."""
    client = scope.get("client")
    return client[0] if client else None


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return a header, by its name in small letters; None if it is not there."""
    for found, value in headers:
        if found.lower() == name:
            return value.decode("latin-1")
    return None


def _request_id(given: str | None) -> str:
    """Take the caller's, unless it could upset a log or a header."""
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
