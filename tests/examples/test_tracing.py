"""The example of tracing runs, and prints what it says it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "trace_calls.py"


@pytest.mark.weights
def test_the_example_prints_what_it_says() -> None:
    """Its last comment is its output, and it is short."""
    code, _, comment = SCRIPT.read_text(encoding="utf-8").partition("# Expected output:\n")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [line.removeprefix("# ") for line in comment.splitlines()]
    assert len(code.splitlines()) < 60
