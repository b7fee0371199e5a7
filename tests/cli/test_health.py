"""`sie health` as one of the program's subcommands; what it finds out is tested with the remote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]

MODEL = "test/tiny-bert"


def test_a_server_is_described(run_real: Run, sie_server: str) -> None:
    """Its models are listed, and the one named is probed; exit code 0, nothing on stderr."""
    finished = run_real("health", sie_server, "--model", MODEL)
    assert (finished.exit_code, finished.stderr) == (0, "")
    for word in (sie_server, "0.10.1", MODEL, "loaded", "2 documents"):
        assert word in finished.stdout
    report = json.loads(run_real("health", sie_server, "--model", MODEL, "--json").stdout)
    assert report["probe_model"] == MODEL
    assert report["probe_ms"] > 0


def test_a_server_that_is_not_there_is_one_line(run_real: Run) -> None:
    """Exit code 1, as scripts that wait for a server need it."""
    finished = run_real("health", "http://127.0.0.1:9")
    assert (finished.exit_code, finished.stdout) == (1, "")
    assert finished.stderr.startswith("error: no reply from http://127.0.0.1:9")
    assert finished.stderr.count("\n") == 1


def test_a_model_that_it_has_not_is_an_error(run_real: Run, sie_server: str) -> None:
    """The probe that was asked for could not be made."""
    finished = run_real("health", sie_server, "--model", "no/such")
    assert finished.exit_code == 1
    assert "no/such" in finished.stderr


def test_no_address_is_a_wrong_call(run_real: Run) -> None:
    """Exit code 2, and where an address may stand."""
    finished = run_real("health")
    assert (finished.exit_code, finished.stdout) == (2, "")
    assert "SIE_BASE_URL" in finished.stderr
