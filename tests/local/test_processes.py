"""Forks, process ends and imports: what happens at the borders of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PATIENCE_SECONDS = 120


def run(code: str, *arguments: str) -> str:
    """Run `code` in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_scores_with_threads_of_its_own(tiny_bert: Path) -> None:
    """After the parent has scored, children fork, score the same, and the parent goes on."""
    code = """
import os, sys
from sie_core.local import LocalClient
client, model = LocalClient(), sys.argv[1]
def score():
    documents = [{"text": "a city"}, {"text": "b " * 60}]
    reply = client.score(model, {"text": "what is python"}, documents)
    return [round(entry["score"], 4) for entry in reply["scores"]]
expected = score()
for _ in range(2):
    child = os.fork()
    if child == 0:
        os._exit(0 if score() == expected else 3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(score() == expected)
"""
    assert run(code, str(tiny_bert)).split() == ["0", "0", "True"]


def test_a_process_ends_at_once_with_a_model_loaded(tiny_bert: Path) -> None:
    """The dispatcher thread does not keep a finished program alive, nor crash its end."""
    code = """
import sys
from sie_core.local import LocalClient
LocalClient().score(sys.argv[1], {"text": "q"}, [{"text": "d"}])
print("done")
"""
    assert run(code, str(tiny_bert)).split() == ["done"]
