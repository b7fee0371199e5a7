"""The flags of `sie serve` that keep others out, and those of its log, on a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from sie_core.server.keys import make_key

RunningCommand = Callable[..., AbstractContextManager[tuple[str, subprocess.Popen[str]]]]


def test_hanging_up_reads_the_keys_again(
    serve_command: RunningCommand, tiny_bert: Path, tmp_path: Path
) -> None:
    """SIGHUP ends no server, and a file is read that looks as it did."""
    path = tmp_path / "keys"
    old, old_line = make_key("old")
    new, new_line = make_key("new")
    path.write_text(f"{old_line}\n")
    path.chmod(0o600)
    stamp = path.stat()
    with serve_command(f"m={tiny_bert}", "--api-key-file", str(path)) as (url, process):

        def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.get(f"{url}/v1/models", headers=headers).status_code

        assert (status(old), status(new)) == (200, 401)
        path.write_text(f"{new_line}\n")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        process.send_signal(signal.SIGHUP)
        for _ in range(3000):
            if status(old) != 200:
                break
            assert process.poll() is None
        assert (status(old), status(new)) == (401, 200)


def test_rates_and_origins_reach_the_server(serve_command: RunningCommand, tiny_bert: Path) -> None:
    """With no keys, a caller is an address."""
    flags = ("--rate-limit", "2/hour", "--allow-origin", "https://search.example")
    with serve_command(f"m={tiny_bert}", *flags) as (url, _):
        origins = ["https://evil.example", "https://search.example", "https://search.example"]
        replies = [httpx.get(f"{url}/v1/models", headers={"Origin": it}) for it in origins]
        assert [reply.status_code for reply in replies] == [403, 200, 200]
        assert httpx.get(f"{url}/v1/models").status_code == 429


def test_a_guard_that_cannot_be_ends_the_start(
    run_serve: Callable[..., Any], tiny_bert: Path
) -> None:
    """Rather than a server that is open; in one line."""
    done = run_serve(f"m={tiny_bert}", "--rate-limit", "many")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: a rate limit is such as 600/minute")
    assert done.stderr.count("\n") == 1


def test_the_log_is_json_where_it_is_to_be(tmp_path: Path) -> None:
    """Every line of it; what the command itself says is for people."""
    command = [sys.executable, "-m", "sie_core.cli", "serve", "--port", "0", f"m={tmp_path}"]
    done = subprocess.run(
        [*command, "--log-format", "json"], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert [line.split()[0] for line in said] == ["sie", "error:"]
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert any(line["level"] == "error" for line in lines)
