"""`sie serve --engine ray` as a process: it brings its own Ray, and takes it along at the end."""

from __future__ import annotations

import json
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


def wait_for(is_so: Callable[[], bool]) -> None:
    """Look again and again until something is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end
        threading.Event().wait(0.05)


def is_listening(url: str) -> bool:
    """Say whether anybody takes connections there."""
    try:
        httpx.get(f"{url}/livez")
    except httpx.TransportError:
        return False
    return True


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
    options = ("--engine", "ray", "--cores-per-replica", "0.5", "--mode", "exact")
    body = json.dumps({"query": {"text": "river"}, "items": [{"text": "the river"}]}).encode()
    may_end = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield body[:10]
        assert may_end.wait(PATIENCE_SECONDS)
        yield body[10:]

    with (
        serve_command(f"m={tiny_bert}", *options) as (url, process),
        ThreadPoolExecutor(1) as pool,
    ):
        assert processes_of(ray_folder)
        score = f"{url}/v1/score/m"
        assert httpx.post(score, content=body, timeout=PATIENCE_SECONDS).status_code == 200
        call = pool.submit(httpx.post, score, content=slowly(), timeout=PATIENCE_SECONDS)
        try:
            wait_for(lambda: httpx.get(f"{url}/v1/status").json()["requests"]["in_flight"] == 1)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: not is_listening(url))
        finally:
            may_end.set()
        assert call.result(PATIENCE_SECONDS).status_code == 200
        assert process.wait(PATIENCE_SECONDS) == 0
        wait_for(lambda: not processes_of(ray_folder))


@pytest.mark.slow
def test_a_model_that_is_not_there_ends_it_with_the_reason(
    sie_serve: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, ray_folder: Path
) -> None:
    """As one process does, in the words of the replica that could not start."""
    del ray_folder
    done = sie_serve(f"m={tmp_path}", "--engine", "ray", "--cores-per-replica", "0.5")
    assert done.returncode == 1
    assert "has no config.json" in done.stderr.splitlines()[-1]


def test_more_replicas_than_this_machine_holds_are_refused(
    sie_serve: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    ray_folder: Path,
) -> None:
    """Where no cluster is named and none runs: they would be waited for without an end."""
    del ray_folder
    monkeypatch.delenv("RAY_ADDRESS")
    done = sie_serve("--engine", "ray", *("--min-replicas", "500", "--max-replicas", "500"))
    assert done.returncode == 2
    assert "500 replicas of 1 cores do not fit into" in done.stderr.splitlines()[-1]
