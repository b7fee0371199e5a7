"""`sie serve` as a process: what it serves, and how it begins and ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core import SIEClient
from sie_core.errors import InvalidRequestError
from sie_core.types import Item

RunningCommand = Callable[..., AbstractContextManager[tuple[str, subprocess.Popen[str]]]]

QUERY = Item(text="river")
ITEMS = [Item(text="the river"), Item(text="a banana")]
CONFIG = """
max_items = 2
[[models]]
name = "configured"
source = "{folder}"
preload = false
[models.profiles.short]
options = {{ max_length = 8 }}
"""


def sie(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "sie_core.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_models_come_from_the_command_and_from_a_file(
    serve_command: RunningCommand,
    tiny_bert: Path,
    tiny_xlmr: Path,
    tiny_modernbert: Path,
    tmp_path: Path,
) -> None:
    """Named ones are there from the start, allowed ones at their first use."""
    config = tmp_path / "serve.toml"
    config.write_text(CONFIG.format(folder=tiny_modernbert))
    arguments = (
        f"here={tiny_bert}",
        "--allow",
        f"later={tiny_xlmr}",
        "--config",
        str(config),
        "--wait-for-load",
        "30",
    )
    with serve_command(*arguments) as (url, _), SIEClient(url) as client:
        states = {model["name"]: model["state"] for model in client.list_models()}
        assert states == {"here": "loaded", "later": "unloaded", "configured": "unloaded"}
        for name in states:
            assert len(client.score(name, QUERY, ITEMS)["scores"]) == 2
        options = {"profile": "short"}
        client.score("configured", QUERY, ITEMS, options=options)
        with pytest.raises(InvalidRequestError, match="at most 2"):
            httpx_score(url, 3)


def httpx_score(url: str, num_items: int) -> None:
    """Send a request as it is, since our client splits it; raise what our client would."""
    items = [{"text": "a"}] * num_items
    reply = httpx.post(f"{url}/v1/score/here", json={"query": {"text": "a"}, "items": items})
    assert reply.status_code == 400
    raise InvalidRequestError(reply.json()["detail"]["message"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_when_it_is_told_to(
    serve_command: RunningCommand, tiny_bert: Path, number: signal.Signals
) -> None:
    """Exit code 0, and the port is free again."""
    with serve_command(f"m={tiny_bert}") as (url, process):
        process.send_signal(number)
        assert process.wait(30) == 0
        port = int(url.rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_in_use_is_an_error_in_one_line(tiny_bert: Path) -> None:
    """Nothing is loaded for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = sie("serve", f"m={tiny_bert}", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_ends_it_with_the_reason(tmp_path: Path) -> None:
    """What was named cannot be served, so it does not pretend to."""
    done = sie("serve", f"m={tmp_path}", "--port", "0")
    assert done.returncode == 1
    assert "has no config.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m=",), "must be NAME=FOLDER, but got 'm='"),
        (("m=/a", "m=/b"), "'m' is given twice"),
        (("--lora", "legal"), "must be NAME=FOLDER, but got 'legal'"),
        (("--config", "/no/such.toml"), "could not be read"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(
    run_serve: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    """Exit code 2, in one line."""
    done = run_serve(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_it_serves_the_adapters_it_was_given(
    serve_command: RunningCommand, tiny_bert: Path, served_adapter: Path
) -> None:
    """`--lora` names one for every model."""
    with serve_command(f"m={tiny_bert}", "--lora", f"legal={served_adapter}") as (url, _):
        with SIEClient(url) as client:
            plain = client.score("m", QUERY, ITEMS)
            options: dict[str, Any] = {"lora": "legal"}
            adapted = client.score("m", QUERY, ITEMS, options=options)
        assert plain["scores"] != adapted["scores"]
