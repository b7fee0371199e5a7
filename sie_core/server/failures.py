"""From any exception to what a caller is told: status, code, message, and when to come back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sie_core.errors import (
    AuthenticationError,
    ClientClosedError,
    DeadlineExceededError,
    DownloadError,
    InferenceError,
    InputTooLongError,
    InvalidRequestError,
    ModelError,
    ModelNotFoundError,
    QueueFullError,
    RateLimitedError,
    ResourceExhaustedError,
)
from sie_core.server.record import record_of

_logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST: Final = 499
"""What nginx calls it: nobody is there to read the reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A refusal or an error, before it is written in the shape that a client expects.

    Attributes:
        status: Of the reply.
        code: SIE's name for it.
        message: What was wrong, and what to do about it.
        retry_after_seconds: When to come back, where that helps.
        fields: More that belongs to the code.
        headers: More of the reply's.
        parameter: The name of the field of the body that was wrong, where it is known.
    """

    status: int
    code: str
    message: str
    retry_after_seconds: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    parameter: str | None = None


class RefusedError(Exception):
    """Raised inside the server by who knows exactly what the caller is to be told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class CallerGoneError(Exception):
    """The caller hung up; what was to be computed for them is dropped."""


_KINDS: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (InputTooLongError, 400, "INPUT_TOO_LONG"),
    (InvalidRequestError, 400, "INVALID_INPUT"),
    (AuthenticationError, 401, "UNAUTHORIZED"),
    (RateLimitedError, 429, "RATE_LIMIT"),
    (ModelNotFoundError, 404, "MODEL_NOT_FOUND"),
    (ModelError, 502, "MODEL_LOAD_FAILED"),
    (DownloadError, 502, "MODEL_LOAD_FAILED"),
    (QueueFullError, 503, "QUEUE_FULL"),
    (ResourceExhaustedError, 503, "RESOURCE_EXHAUSTED"),
    (ClientClosedError, 503, "QUEUE_UNAVAILABLE"),
    (InferenceError, 500, "INFERENCE_ERROR"),
    (DeadlineExceededError, 504, "DEADLINE_EXCEEDED"),
)
"""The first that fits counts: subclasses stand before what they derive from."""

_RETRY_SECONDS: Final = {"QUEUE_FULL": 1.0, "RESOURCE_EXHAUSTED": 5.0, "QUEUE_UNAVAILABLE": 1.0}


def failure_of(error: BaseException) -> Failure:
    """Tell what a caller is told of an exception; of one that nobody foresaw, nothing."""
    if isinstance(error, RefusedError):
        return error.failure
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            wait = _RETRY_SECONDS.get(code)
            return Failure(status=status, code=code, message=str(error), retry_after_seconds=wait)
    _logger.error("a request failed in a way that nobody foresaw", exc_info=error)
    message = "the server failed; its log says why, under the request's id"
    return Failure(status=500, code="INTERNAL_ERROR", message=message)


Shape = Callable[[Failure], dict[str, Any]]
"""Writes a failure as the JSON object that the clients of one dialect read."""


def detail(failure: Failure) -> dict[str, Any]:
    """Write a failure as SIE's own protocol has it."""
    return {
        "detail": {"code": failure.code, "message": failure.message, **failure.fields},
    }


SHAPES: Final[dict[str, Shape]] = {}
"""By path: how failures on it are written; on other paths, as `detail` does."""


def refuse(path: str, failure: Failure) -> Response:
    """Write a failure as the clients of a path read it. Errors are JSON, whatever was asked for."""
    headers = {"X-SIE-Error-Code": failure.code, **failure.headers}
    if failure.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after_seconds)))
    content = SHAPES.get(path, detail)(failure)
    return Response(
        msgspec.json.encode(content), failure.status, headers, media_type="application/json"
    )


def respond(request: Request, error: Exception) -> Response:
    """Turn what a handler raised into a reply, and note its code for the log."""
    if isinstance(error, CallerGoneError):
        record_of(request.scope).code = "CLIENT_CLOSED_REQUEST"
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    failure = failure_of(error)
    record_of(request.scope).code = failure.code
    return refuse(request.url.path, failure)
