"""`sie serve --engine ray` as a process: it brings its own Ray, and takes it along at the end."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from sie_core import SIEClient
from sie_core.types import Item

pytest.importorskip("ray.serve", reason="Ray is not installed: the extra distributed brings it")

RunningCommand = Callable[..., AbstractContextManager[tuple[str, subprocess.Popen[str]]]]

PATIENCE_SECONDS = 60


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its files: a short path, since sockets are among them."""
    folder = Path(tempfile.mkdtemp(prefix="sie-ray-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not one that happens to run on this machine
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sie_serve() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `sie serve` to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sie_core.cli", "serve", "--port", "0", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


def processes_of(folder: Path) -> list[int]:
    """The processes that have a folder in their command line: Ray's own, which know where it is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if str(folder).encode() in line:
            found.append(int(process.name))
    return found


def test_it_answers_and_ends_well_when_it_is_told_to(
    serve_command: RunningCommand, tiny_bert: Path, ray_folder: Path
) -> None:
    """A request in progress gets its answer, the exit code is 0, and nothing of Ray's is left."""
    items = [Item(text="the river is long " * 20) for _ in range(500)]
    options = ("--engine", "ray", "--cores-per-replica", "0.5", "--mode", "exact")
    with (
        serve_command(f"m={tiny_bert}", *options) as (url, process),
        SIEClient(url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert len(client.score("m", Item(text="river"), items[:2])["scores"]) == 2
        assert processes_of(ray_folder)
        call = pool.submit(client.score, "m", Item(text="river"), items)
        end = time.monotonic() + PATIENCE_SECONDS
        while not httpx.get(f"{url}/v1/status").json()["requests"]["in_flight"]:
            assert time.monotonic() < end
            threading.Event().wait(0.01)
        process.send_signal(signal.SIGTERM)
        assert len(call.result(PATIENCE_SECONDS)["scores"]) == 500
        assert process.wait(PATIENCE_SECONDS) == 0
        while processes_of(ray_folder):
            assert time.monotonic() < end
            threading.Event().wait(0.1)


@pytest.mark.slow
def test_a_model_that_is_not_there_ends_it_with_the_reason(
    sie_serve: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, ray_folder: Path
) -> None:
    """As one process does, in the words of the replica that could not start."""
    del ray_folder
    done = sie_serve(f"m={tmp_path}", "--engine", "ray", "--cores-per-replica", "0.5")
    assert done.returncode == 1
    assert "has no config.json" in done.stderr.splitlines()[-1]
