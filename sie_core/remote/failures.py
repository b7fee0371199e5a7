"""From a reply that is no answer, or from no reply at all, to an exception and a kind of failure.

The kind decides whether asking again can help; the exception is raised if it does not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from sie_core.errors import (
    AuthenticationError,
    CreditsError,
    InferenceError,
    InputTooLongError,
    InvalidRequestError,
    ModelLoadError,
    ModelLoadingError,
    ModelNotFoundError,
    ProvisioningError,
    QueueFullError,
    RateLimitedError,
    ResourceExhaustedError,
    ServerError,
    ServerUnavailableError,
    SIEError,
)
from sie_core.remote.codec import excerpt
from sie_core.remote.retry import Kind, Outcome, retry_after_seconds
from sie_core.remote.wire import Reply

_BY_CODE: Final[dict[str, tuple[type[SIEError], Kind]]] = {
    "INVALID_INPUT": (InvalidRequestError, Kind.FINAL),
    "INPUT_TOO_LONG": (InputTooLongError, Kind.FINAL),
    "INSUFFICIENT_CREDITS": (CreditsError, Kind.FINAL),
    "KEY_SPEND_LIMIT_EXCEEDED": (CreditsError, Kind.FINAL),
    "MODEL_NOT_FOUND": (ModelNotFoundError, Kind.FINAL),
    "RATE_LIMIT": (RateLimitedError, Kind.BUSY),
    "INFERENCE_ERROR": (InferenceError, Kind.FINAL),
    "MODEL_LOAD_FAILED": (ModelLoadError, Kind.FINAL),
    "MODEL_LOADING": (ModelLoadingError, Kind.LOADING),
    "LORA_LOADING": (ModelLoadingError, Kind.BUSY),
    "MODEL_NOT_LOADED": (ModelLoadingError, Kind.BUSY),
    "QUEUE_FULL": (QueueFullError, Kind.BUSY),
    "QUEUE_UNAVAILABLE": (QueueFullError, Kind.BUSY),
    "RESOURCE_EXHAUSTED": (ResourceExhaustedError, Kind.EXHAUSTED),
    "PROVISIONING": (ProvisioningError, Kind.PROVISIONING),
}

_BY_STATUS: Final[dict[int, tuple[type[SIEError], Kind]]] = {
    202: (ProvisioningError, Kind.PROVISIONING),
    400: (InvalidRequestError, Kind.FINAL),
    401: (AuthenticationError, Kind.FINAL),
    402: (CreditsError, Kind.FINAL),
    403: (AuthenticationError, Kind.FINAL),
    413: (InputTooLongError, Kind.FINAL),
    422: (InvalidRequestError, Kind.FINAL),
    429: (RateLimitedError, Kind.BUSY),
    502: (ServerUnavailableError, Kind.GATEWAY),
    503: (ServerUnavailableError, Kind.GATEWAY),
    504: (ServerUnavailableError, Kind.GATEWAY),
}

_ADVICE: Final[dict[type[SIEError], str]] = {
    AuthenticationError: "check api_key or SIE_API_KEY",
    CreditsError: "add credits or raise the key's spending limit",
    ProvisioningError: "pass wait_for_capacity=True to wait for a machine",
    ResourceExhaustedError: "send fewer or shorter items, or lower max_concurrency",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A reply that is no answer: what to raise, and what the retry policy needs to know."""

    error: SIEError
    outcome: Outcome


def read_failure(reply: Reply, url: str, *, now: float) -> Failure:
    """Read an error reply, of whatever shape.

    Args:
        reply: Any reply that is not a 200.
        url: What was asked, for the message.
        now: Seconds since the epoch, for a Retry-After that is a date.
    """
    details = _read_details(reply)
    code = _read_code(reply, details)
    default = (ServerError, Kind.FINAL)
    error_class, kind = _BY_CODE.get(code or "", _BY_STATUS.get(reply.status_code, default))
    text = _read_message(details)
    if text is None:
        text = f"{reply.content_type or 'no content type'}: {excerpt(reply.body) or '(no body)'}"
    advice = _ADVICE.get(error_class)
    msg = f"{url} answered {reply.status_code}{f' {code}' if code else ''}: {text}"
    error = error_class(f"{msg}; {advice}" if advice else msg)
    error.status_code = reply.status_code
    error.code = code
    wait = retry_after_seconds(reply.headers.get("retry-after"), now=now)
    return Failure(error, Outcome(kind=kind, retry_after_seconds=wait))


def _read_details(reply: Reply) -> Any:
    """Find the part that describes the error: servers and gateways put it in different places."""
    try:
        content = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    for key in ("detail", "error"):
        if content.get(key):
            return content[key]
    return content


def _read_code(reply: Reply, details: Any) -> str | None:
    code = reply.headers.get("x-sie-error-code")
    if not code and isinstance(details, dict):
        code = details.get("code")
    is_name = isinstance(code, str) and code.isascii() and code.isprintable()
    return code.strip().upper()[:64] or None if isinstance(code, str) and is_name else None


def _read_message(details: Any) -> str | None:
    if isinstance(details, str):
        return excerpt(details.encode("utf-8", "replace"), max_chars=500)
    if isinstance(details, list):  # what FastAPI says of a body that it cannot validate
        return excerpt(json.dumps(details).encode(), max_chars=500)
    message = details.get("message") if isinstance(details, dict) else None
    if not isinstance(message, str):
        return None
    return excerpt(message.encode("utf-8", "replace"), max_chars=500)
