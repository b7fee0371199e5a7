"""`sie health`: what it finds out about a server, and how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sie_core.cli.health import health
from sie_core.errors import ModelNotFoundError, SIEConnectionError

LOADED = {"name": "a/b", "outputs": ["score"], "loaded": True, "state": "loaded"}
COLD = {"name": "c/d", "outputs": ["dense"], "loaded": False, "max_sequence_length": 512}


async def well(x: Any) -> None:
    """Answer as a server does."""
    if x.request.path == "/healthz":
        await x.send(200, b"ok", "text/plain")
    elif x.request.path == "/v1/models":
        await x.send(200, json.dumps({"models": [COLD, LOADED]}).encode(), "application/json")
    elif x.request.path == "/v1/score/a/b":
        body = json.dumps(x.scores()).encode()
        await x.send(200, body, "application/json", x_sie_server_version="0.10.1")
    else:
        await x.fail(404, "MODEL_NOT_FOUND")


async def bare(x: Any) -> None:
    """Answer as a gateway that knows no models."""
    if x.request.path == "/healthz":
        await x.send(200, b"ok", "text/plain")
    else:
        await x.send(404, b'{"detail": "Not Found"}', "application/json")


def invoke(*arguments: str) -> Any:
    """Run the command alone; the program around it prints its errors."""
    program = typer.Typer()
    program.command()(health)
    return CliRunner().invoke(program, arguments)


def test_a_server_is_described(serve: Any) -> None:
    """Version, models and the times of a loaded model are shown."""
    server = serve(well)
    result = invoke(server.url)
    assert result.exit_code == 0, result.output
    for word in (server.url, "0.10.1", "a/b", "c/d", "512", "2 documents"):
        assert word in result.output


def test_the_description_can_be_read_by_programs(serve: Any) -> None:
    """The same as one JSON object."""
    server = serve(well)
    report = json.loads(invoke(server.url, "--json").output)
    assert report["server_version"] == "0.10.1"
    assert report["models"] == [COLD, LOADED]
    assert report["probe_model"] == "a/b"
    assert report["probe_ms"] > 0
    assert len(server.requests) == 4


def test_what_a_gateway_does_not_know_is_not_fatal(serve: Any) -> None:
    """No list of models and nothing to probe: the server is alive all the same."""
    result = invoke(serve(bare).url)
    assert result.exit_code == 0
    assert "alive" in result.output
    assert "none" in result.output


def test_no_server_is_an_error(serve: Any) -> None:
    """A server that is not there, and a model that it does not have, raise."""
    assert isinstance(invoke("http://127.0.0.1:1").exception, SIEConnectionError)
    result = invoke(serve(well).url, "--model", "no/such")
    assert isinstance(result.exception, ModelNotFoundError)


def test_the_address_comes_from_the_environment(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIE_BASE_URL stands in for the argument."""
    monkeypatch.setenv("SIE_BASE_URL", serve(well).url)
    assert invoke().exit_code == 0


async def hostile(x: Any) -> None:
    """Answer with a model's name that would be markup, and steer the terminal."""
    if x.request.path == "/healthz":
        await x.send(200, b"ok", "text/plain")
    else:
        body = json.dumps({"models": [{"name": "[link]\x1b[2J/evil", "state": 5}]}).encode()
        await x.send(200, body, "application/json")


def test_what_a_server_says_stays_text(serve: Any) -> None:
    """No markup, no escape code."""
    output = invoke(serve(hostile).url).output
    assert "[link]" in output
    assert "\x1b" not in output
