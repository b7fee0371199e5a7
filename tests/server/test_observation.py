"""What is written down of a request: in its reply, in the log, and never of its contents."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from sie_core.server.access_log import (
    ACCESS_LOGGER,
    LOG_FORMATS,
    JsonFormatter,
    LogFormat,
    TextFormatter,
    access_fields,
    configure_logging,
    write_access,
)
from sie_core.server.observation import Observation
from sie_core.server.record import CallRecord
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

ASKED = "xyzzy-is-what-was-asked"
SCORE = "/v1/score/test/tiny-bert-ce"
BODY = {
    "query": {"text": ASKED},
    "items": [{"text": f"{ASKED} {i}", "id": f"{ASKED}-{i}"} for i in range(3)],
}


def test_a_request_is_one_line_that_says_what_it_was(
    served: Server, caplog: pytest.LogCaptureFixture, access_lines: Any
) -> None:
    """Everything but contents: they are in no line, whatever the level."""
    with caplog.at_level(logging.DEBUG):
        reply = httpx.post(f"{served.url}{SCORE}?q={ASKED}", json=BODY)
        (line,) = access_lines.wait(1)
    assert reply.headers["X-Request-Id"] == line.pop("request_id")
    for name in ("total_ms", "queue_ms", "tokenization_ms", "inference_ms"):
        assert line.pop(name) >= 0
    assert line.pop("tokens") > 0
    assert line == {
        "level": logging.INFO,
        "method": "POST",
        "path": SCORE,
        "route": "/v1/score/{model}",
        "status": 200,
        "model": "test/tiny-bert-ce",
        "items": 3,
        "body_bytes": int(reply.request.headers["Content-Length"]),
        "truncated": 0,
        "client": "127.0.0.1",
    }
    ours = [record for record in caplog.records if record.name.startswith("sie_core")]
    assert ASKED not in "".join(JsonFormatter().format(record) for record in ours)


def test_an_error_has_its_code_in_the_log(served: Server, access_lines: Any) -> None:
    """A model that is not served is no model of the log's: callers make up names."""
    httpx.post(f"{served.url}/v1/score/made/up", json=BODY)
    httpx.get(f"{served.url}/nowhere")
    unknown, nowhere = access_lines.wait(2)
    assert (unknown["status"], unknown["code"]) == (404, "MODEL_NOT_FOUND")
    assert "model" not in unknown
    assert (nowhere["status"], nowhere["path"]) == (404, "/nowhere")
    assert not nowhere.keys() & {"code", "route"}


def test_a_failure_nobody_foresaw_is_500_with_its_stack_in_the_log_only(
    served: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    access_lines: Any,
) -> None:
    """The caller gets the request's id, by which the log is searched."""

    def explode(_: object) -> None:
        raise ZeroDivisionError(ASKED)

    monkeypatch.setattr(served.app.state.service.shelf, "find", explode)
    with caplog.at_level(logging.INFO):
        reply = httpx.post(f"{served.url}{SCORE}", json=BODY)
    assert reply.status_code == 500
    assert reply.headers["X-Request-Id"]
    for word in (ASKED, "ZeroDivision", "Traceback", ".py"):
        assert word not in reply.text
    assert "ZeroDivisionError" in caplog.text
    (line,) = access_lines.wait(1)
    assert (line["status"], line["code"]) == (500, "INTERNAL_ERROR")
    assert line["level"] == logging.WARNING


@pytest.mark.parametrize("given", ["a", "trace-1.2:3/4@b=c+d_e", "x" * 128])
def test_a_request_id_that_is_given_is_kept(served: Server, given: str) -> None:
    """So that a caller's log and ours can be put together."""
    reply = httpx.get(f"{served.url}/healthz", headers={"X-Request-Id": given})
    assert reply.headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, 'a"b', "a;b", "a\tb"])
def test_one_that_could_upset_a_log_is_replaced(served: Server, given: str) -> None:
    """By one of ours."""
    reply = httpx.get(f"{served.url}/healthz", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["X-Request-Id"])


def test_health_checks_are_written_on_debug_only(served: Server, access_lines: Any) -> None:
    """They come every few seconds, and say nothing."""
    for path in ("/healthz", "/metrics", "/v1/models"):
        httpx.get(f"{served.url}{path}")
    levels = {line["path"]: line["level"] for line in access_lines.wait(3)}
    assert levels == {
        "/healthz": logging.DEBUG,
        "/metrics": logging.DEBUG,
        "/v1/models": logging.INFO,
    }


def test_a_server_that_is_not_ready_yet_says_so_quietly(
    serve: Callable[..., Any], tiny_bert: Path, access_lines: Any
) -> None:
    """503 on `/readyz` is an answer; on a call it is worth a warning."""
    models = (ModelSettings(name="tiny", source=str(tiny_bert), preload=False),)
    server = serve(models=models)
    server.app.state.service.is_ready = False
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    levels = {line["level"] for line in access_lines.wait(1, "/readyz")}
    assert levels == {logging.DEBUG}
    assert httpx.post(f"{server.url}/v1/score/tiny", json=BODY).status_code in (200, 503)
    (call,) = access_lines.wait(1, "/v1/score/tiny")
    assert (call["level"] == logging.WARNING) is (call["status"] == 503)


def seen(**given: Any) -> Observation:
    """An observation of a request with a record."""
    record = CallRecord(request_id="r1", **given)
    return Observation(
        method="GET", path="/a b\nc", client="192.0.2.1", status=200, seconds=0.5, record=record
    )


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("log_format", LOG_FORMATS)
def test_a_line_stays_one_line(log_format: LogFormat) -> None:
    """Whatever the path of a request holds: nobody writes another's lines."""
    stream = io.StringIO()
    configure_logging(log_format, stream=stream)
    write_access(seen(caller="app"))
    logging.getLogger("sie_core.server.shelf").warning("two\nlines \x1b[31m")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(char.isprintable() for char in "".join(lines))


@pytest.mark.usefixtures("logging_as_before")
def test_json_has_the_same_names_as_text() -> None:
    """JSON for machines, `name=value` for people."""
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    write_access(seen(caller="app", model="m", num_items=2, usage={"input_tokens": 7}))
    written = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written.pop("time"))
    assert written == {
        "level": "info",
        "logger": ACCESS_LOGGER,
        "message": "GET /a b\nc 200",
        "request_id": "r1",
        "method": "GET",
        "path": "/a b\nc",
        "status": 200,
        "total_ms": 500.0,
        "model": "m",
        "items": 2,
        "tokens": 7,
        "key": "app",
        "client": "192.0.2.1",
    }
    record = logging.LogRecord("x", logging.INFO, "", 0, "said", None, None)
    record.fields = access_fields(seen(caller="app"))
    assert (
        TextFormatter()
        .format(record)
        .endswith(
            ' INFO said request_id=r1 method=GET path="/a b\\nc" status=200 total_ms=500.0 key=app '
            "client=192.0.2.1"
        )
    )


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("log_format", LOG_FORMATS)
def test_a_stack_trace_is_written_whole(log_format: LogFormat) -> None:
    """In JSON as one field."""
    stream = io.StringIO()
    configure_logging(log_format, stream=stream)
    try:
        int("deep")
    except ValueError:
        logging.getLogger("sie_core").exception("it failed")
    text = stream.getvalue()
    if log_format == "json":
        text = json.loads(text)["exception"]
    assert "Traceback" in text
    assert "ValueError: invalid literal for int() with base 10: 'deep'" in text


@pytest.mark.usefixtures("logging_as_before")
def test_uvicorns_own_access_lines_are_left_out() -> None:
    """They hold the query of the URL."""
    stream = io.StringIO()
    configure_logging("text", stream=stream)
    logging.getLogger("uvicorn.access").info("GET /?q=%s", ASKED)
    logging.getLogger("uvicorn.error").info("started")
    assert ASKED not in stream.getvalue()
    assert "started" in stream.getvalue()


def test_every_reply_has_its_id_whatever_its_format(served: Server) -> None:
    """Errors, msgpack, text."""
    packed = httpx.post(
        f"{served.url}{SCORE}",
        content=msgpack.packb(BODY),
        headers={"Content-Type": "application/msgpack"},
    )
    others = [httpx.get(f"{served.url}{path}") for path in ("/nowhere", "/v1/models", "/readyz")]
    assert all(reply.headers["X-Request-Id"] for reply in (packed, *others))


def test_a_caller_who_left_is_written_down_as_499(served: Server, access_lines: Any) -> None:
    """They had no reply, so there is no other status."""
    address = httpx.URL(served.url)
    head = f"POST {SCORE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{"
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head.encode())
    (line,) = access_lines.wait(1)
    assert (line["status"], line["code"]) == (499, "CLIENT_CLOSED_REQUEST")
