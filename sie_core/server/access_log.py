"""The server's log: a line for each request, and everything else that is logged, as JSON or text.

No line holds what was asked, what was scored, or a key.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import IO, Any, Literal

import msgspec

from sie_core.server.observation import Observation

LogFormat = Literal["json", "text"]
LOG_FORMATS: tuple[LogFormat, ...] = ("json", "text")

ACCESS_LOGGER = "sie_core.server.access"

_FIELDS = "fields"
_PARTS = ("queue_ms", "tokenization_ms", "inference_ms")
_READY_PATH = "/readyz"
"""Says 503 while models are loaded: an answer, not a failure."""

_QUIET_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/metrics", "/v1/status"})
"""Asked every few seconds by machines and pages: logged only at the level `debug`."""

_logger = logging.getLogger(ACCESS_LOGGER)


def write_access(seen: Observation) -> None:
    """Log one request."""
    is_not_ready = seen.path == _READY_PATH and seen.status == HTTPStatus.SERVICE_UNAVAILABLE
    is_failed = seen.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not is_not_ready
    level = logging.DEBUG if seen.path in _QUIET_PATHS else logging.INFO
    if is_failed:
        level = logging.WARNING
    if _logger.isEnabledFor(level):
        line = f"{seen.method} {seen.path} {seen.status}"
        _logger.log(level, "%s", line, extra={_FIELDS: access_fields(seen)})


def access_fields(seen: Observation) -> dict[str, Any]:
    """Return what the log says about a request; what is not known is left out."""
    record = seen.record
    found: dict[str, Any] = {
        "request_id": record.request_id,
        "method": seen.method,
        "path": seen.path,
        "route": record.route,
        "status": seen.status,
        "code": record.code,
        "total_ms": round(1000 * seen.seconds, 3),
        "model": record.model,
        "items": record.num_items or None,
        "body_bytes": record.num_body_bytes or None,
        "tokens": record.usage.get("input_tokens"),
        "truncated": record.usage.get("truncated_items"),
        "key": record.caller,
        "client": seen.client,
    }
    found |= {name: record.timing.get(name) for name in _PARTS}
    return {name: value for name, value in found.items() if value is not None}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, and what is known besides."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = {**_head(record), "message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """For people: time, level, message, then `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; only a stack trace takes more than one line."""
        head = _head(record)
        words = [head["time"], head["level"].upper(), _plain(record.getMessage())]
        words += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        if record.exc_info:
            words.append("\n" + self.formatException(record.exc_info))
        return " ".join(words)


def configure_logging(
    log_format: LogFormat, *, level: str = "info", stream: IO[str] | None = None
) -> None:
    """Send all that is logged in this process to `stream`, stderr by default, in one format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("sie_core", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    # uvicorn's own access lines would say it twice, in another format and with the query.
    access = logging.getLogger("uvicorn.access")
    access.handlers[:] = []
    access.propagate = False


def _head(record: logging.LogRecord) -> dict[str, str]:
    time = datetime.fromtimestamp(record.created, UTC)
    return {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return found


def _plain(text: str) -> str:
    """Keep a message to one line, so that nobody's path can look like a line of its own."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _quoted(value: object) -> str:
    text = str(value)
    is_word = text.isprintable() and not any(char in ' "=' for char in text)
    return text if is_word and text else json.dumps(text)
