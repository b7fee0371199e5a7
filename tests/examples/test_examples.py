"""Every script in examples/ runs and prints what it says it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted([*FOLDER.glob("*_rerank.py"), *FOLDER.glob("*_embed.py")])
HEADING = "# Expected output:\n"
MAX_LINES = 60


def test_there_is_an_example_for_each_framework() -> None:
    """The names recur, so that a reader finds the three side by side."""
    names = {example.name for example in EXAMPLES}
    frameworks = ("haystack", "langchain", "llamaindex")
    assert {f"{name}_{what}.py" for name in frameworks for what in ("rerank", "embed")} <= names


@pytest.mark.weights
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_prints_what_it_says(example: Path) -> None:
    """The comment at the end of the script is its output, and the script fits on a page."""
    source = example.read_text(encoding="utf-8")
    _, found, comment = source.partition(HEADING)
    assert found, f"{example.name} must end in a comment that begins with {HEADING!r}"
    expected = [line.removeprefix("#").removeprefix(" ") for line in comment.splitlines()]
    finished = subprocess.run(
        [sys.executable, str(example)], check=False, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == expected
    assert len(source.splitlines()) < MAX_LINES
