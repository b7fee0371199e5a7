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
    """Worker threads do not keep a finished program alive, nor crash its end."""
    code = """
import sys
from sie_core.local import LocalClient
LocalClient().score(sys.argv[1], {"text": "q"}, [{"text": "d"}])
print("done")
"""
    assert run(code, str(tiny_bert)).split() == ["done"]


def test_the_applications_own_torch_threads_are_left_alone(tiny_bert: Path) -> None:
    """Before, while and after models run: the same number, in old and new threads alike."""
    code = """
import sys, threading, torch
from sie_core.local import LocalClient

def count():
    counts = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    print(torch.get_num_threads(), *counts)

def score():
    documents = [{"text": "a city " * n} for n in range(40)]
    LocalClient(num_threads=2).score(sys.argv[1], {"text": "what"}, documents)

torch.set_num_threads(3)
count()
score()
count()
torch.set_num_threads(4)
score()
count()
"""
    assert run(code, str(tiny_bert)).splitlines() == ["3 3", "3 3", "4 4"]


def test_a_program_that_never_set_its_torch_threads_keeps_the_default(tiny_bert: Path) -> None:
    """Scoring is no setting: what torch finds by itself still holds, in new threads too."""
    code = """
import sys, threading, torch
from sie_core.local import LocalClient
before = torch.get_num_threads()
LocalClient(num_threads=3).score(sys.argv[1], {"text": "q"}, [{"text": "d " * 50}] * 20)
counts = []
thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
thread.start()
thread.join()
print(torch.get_num_threads() == before, counts == [before])
"""
    assert run(code, str(tiny_bert)).split() == ["True", "True"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_limits_hold_for_operations_and_not_only_for_numbers() -> None:
    """In a limited thread, products in both formats start no OpenMP threads.

    The same in the application's own thread, while the limited one is still there, starts as many
    as it asked for.
    """
    code = """
import os, threading, torch
from sie_core.local.openmp import limit_this_thread
torch.set_num_threads(3)

def count_started():
    before = len(os.listdir("/proc/self/task"))
    for dtype in (torch.float32, torch.bfloat16):
        rows = torch.ones(512, 512, dtype=dtype)
        torch.nn.functional.gelu(rows @ rows)
        torch.nn.functional.layer_norm(torch.ones(4096, 64, dtype=dtype), (64,))
    print(len(os.listdir("/proc/self/task")) - before)

is_done, may_end = threading.Event(), threading.Event()
def limited():
    limit_this_thread()
    count_started()
    is_done.set()
    may_end.wait(60)
thread = threading.Thread(target=limited)
thread.start()
is_done.wait(60)
count_started()
may_end.set()
thread.join()
"""
    assert run(code).split() == ["0", "2"]
