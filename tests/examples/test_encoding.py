"""The examples of encoding run, and print what they say they print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> list[str]:
    """Run an example, and return its lines."""
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


@pytest.mark.weights
def test_the_dense_example_prints_what_it_says() -> None:
    """Its last comment is its output."""
    _, _, comment = (EXAMPLES / "encode_texts.py").read_text().partition("# Expected output:\n")
    assert run("encode_texts.py") == [line.removeprefix("# ") for line in comment.splitlines()]


def test_kept_vectors_score_as_before(tiny_colbert: Path, tmp_path: Path) -> None:
    """The second run reads what the first one kept, and prints the same."""
    file = tmp_path / "vectors.npz"
    first = run("colbert_kept_vectors.py", str(tiny_colbert), str(file))
    assert [line for line in first if not line.startswith(" ")] == [
        "How many people live in Berlin?",
        "Which fruit is yellow?",
    ]
    assert len(first) == 2 * (1 + 4)
    assert {vectors.dtype for vectors in np.load(file).values()} == {np.dtype(np.float16)}
    written = file.stat().st_mtime_ns
    assert run("colbert_kept_vectors.py", str(tiny_colbert), str(file)) == first
    assert file.stat().st_mtime_ns == written
