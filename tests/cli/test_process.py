"""`sie` as a process: exit codes, Ctrl-C, pipes, and what a terminal gets to see."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

import sie_core

QUERY = "how many people live in berlin"
DOCUMENTS = ["berlin museum", "berlin population", "yellow banana"]
DEADLINE_SECONDS = 120
RUN_MAIN = "from sie_core.cli.__main__ import main; main()"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file of three lines."""
    path = tmp_path / "documents.txt"
    path.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture
def endless(tmp_path: Path, lines: Path) -> tuple[Path, Path]:
    """Documents and queries that would keep a process busy for much longer than a test runs."""
    queries = tmp_path / "queries.txt"
    queries.write_text(f"{QUERY}\n" * 1_000_000, encoding="utf-8")
    return lines, queries


def test_a_real_model_ranks_a_file(sie: Callable[..., Any], tiny_bert: Path, lines: Path) -> None:
    """JSONL on a pipe, nothing on stderr, exit code 0; scores are those of the library."""
    finished = sie("rerank", lines, "-q", QUERY, "--model", tiny_bert)
    assert (finished.returncode, finished.stderr) == (0, "")
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    with sie_core.Reranker(str(tiny_bert)) as reranker:
        ranking = reranker.rerank(QUERY, DOCUMENTS)
    assert [row["index"] for row in rows] == [entry.index for entry in ranking]
    assert [row["score"] for row in rows] == pytest.approx(
        [entry.score for entry in ranking], abs=1e-5
    )


def test_the_model_options_reach_the_model(
    sie: Callable[..., Any], tiny_bert: Path, lines: Path
) -> None:
    """Probabilities, a maximum length, an instruction, a batch size, and how the model runs."""
    options = ["--score-space", "probability", "--max-length", "7", "--instruction", "the film"]
    options += ["--batch-size", "1", "--device", "cpu", "--mode", "exact", "--num-threads", "2"]
    options += ["--timeout", "100"]
    finished = sie("rerank", lines, "-q", "people", "--model", tiny_bert, *options)
    assert finished.returncode == 0
    assert finished.stderr.startswith("note: 3 pairs")
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    with sie_core.Reranker(
        str(tiny_bert),
        score_space="probability",
        max_length=7,
        instruction="the film",
        mode="exact",
    ) as reranker:
        ranking = reranker.rerank("people", DOCUMENTS)
    assert [row["score"] for row in rows] == pytest.approx(
        [entry.score for entry in ranking], abs=1e-5
    )


def test_a_model_that_is_nowhere_is_an_error_in_the_work(
    sie: Callable[..., Any], lines: Path
) -> None:
    """Exit code 1, the message on stderr, no traceback."""
    finished = sie("rerank", lines, "-q", QUERY, "--model", "./nowhere")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("error: the model folder ./nowhere does not exist")
    assert "Traceback" not in finished.stderr


def test_debug_shows_the_traceback(sie: Callable[..., Any], lines: Path) -> None:
    """The same exit code and last line, after the traceback."""
    finished = sie("rerank", lines, "-q", QUERY, "--model", "./nowhere", "--debug")
    assert finished.returncode == 1
    assert finished.stderr.startswith("Traceback")
    assert "\nerror: the model folder ./nowhere" in finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["rerank", "--help"],
        ["eval", "--help"],
        ["health", "--help"],
        ["models"],
        ["--version"],
    ],
)
def test_help_and_the_catalogue_import_nothing_heavy(
    environment: dict[str, str], arguments: list[str]
) -> None:
    """Start-up stays quick where no model is needed."""
    script = textwrap.dedent("""
        import sys
        from sie_core.cli.__main__ import main
        try:
            main()
        except SystemExit as exit:
            assert exit.code == 0, exit.code
        heavy = {"torch", "transformers", "huggingface_hub", "httpx"} & set(sys.modules)
        assert not heavy, heavy
    """)
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_what_to_install(
    environment: dict[str, str], missing: str
) -> None:
    """Exit code 2 and one line."""
    script = f"import sys; sys.modules[{missing!r}] = None\n{RUN_MAIN}"
    finished = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 2
    assert finished.stderr.endswith("run: pip install 'sie-core[cli]'\n")
    assert finished.stderr.count("\n") == 1


def test_without_torch_the_command_says_what_to_install(
    environment: dict[str, str], lines: Path
) -> None:
    """The missing extra is a usage error too."""
    script = (
        "import sys; sys.modules['torch'] = None\nfrom sie_core.cli.__main__ import main; main()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, "rerank", str(lines), "-q", "x"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert finished.returncode == 2
    assert "pip install 'sie-core[local]'" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_ctrl_c_ends_the_work_without_a_trace(
    command: list[str],
    environment: dict[str, str],
    tiny_bert: Path,
    endless: tuple[Path, Path],
) -> None:
    """Exit code 130, one short line, no traceback."""
    documents, queries = endless
    arguments = [*command, "rerank", str(documents), "--queries", str(queries)]
    with started([*arguments, "--model", str(tiny_bert)], environment) as process:
        assert first_line(process.stdout)  # it is at work
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    assert errors == b"interrupted\n"


def test_ctrl_c_leaves_no_file(
    command: list[str],
    environment: dict[str, str],
    tiny_bert: Path,
    endless: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """Neither the file nor what was to become it. The bar on the terminal says when it works."""
    documents, queries = endless
    out = tmp_path / "out" / "ranked.jsonl"
    out.parent.mkdir()
    arguments = [*command, "rerank", str(documents), "--queries", str(queries)]
    arguments += ["--model", str(tiny_bert), "--out", str(out)]
    with terminal() as (screen, far_end), started(arguments, environment, far_end) as process:
        seen = read_until(screen, b"reranking")
        unfinished = list(out.parent.iterdir())
        process.send_signal(signal.SIGINT)
        seen += read_until(screen, b"interrupted")
        assert process.wait(DEADLINE_SECONDS) == 130
    assert len(unfinished) == 1
    assert unfinished[0] != out
    assert list(out.parent.iterdir()) == []
    assert b"Traceback" not in seen
    assert b"loading" in seen


def test_ctrl_c_does_not_wait_for_a_server(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Though it sits on all the requests of a large call."""
    documents = tmp_path / "documents.txt"
    documents.write_text("\n".join(f"document {i}" for i in range(2000)), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_SECONDS)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        arguments = [*command, "rerank", str(documents), "-q", QUERY, "--base-url", address]
        with started(arguments, environment) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, output, errors) == (130, b"", b"interrupted\n")


def test_a_reader_that_leaves_early_is_no_error(
    command: list[str],
    environment: dict[str, str],
    tiny_bert: Path,
    endless: tuple[Path, Path],
) -> None:
    """`sie rerank … | head -1` ends both, and says nothing."""
    documents, queries = endless
    arguments = [*command, "rerank", str(documents), "--queries", str(queries)]
    with started([*arguments, "--model", str(tiny_bert)], environment) as process:
        assert first_line(process.stdout)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(DEADLINE_SECONDS) == 141
        assert process.stderr.read() == b""


def test_a_terminal_gets_tables(
    command: list[str], environment: dict[str, str], tiny_bert: Path, lines: Path, tmp_path: Path
) -> None:
    """One table per query, though there is a bar on the same terminal."""
    queries = tmp_path / "queries.txt"
    queries.write_text("first query\nsecond query\n", encoding="utf-8")
    arguments = [*command, "rerank", str(lines), "--queries", str(queries)]
    arguments += ["--model", str(tiny_bert)]
    with (
        terminal() as (screen, far_end),
        started(arguments, environment, far_end, stdout=far_end) as process,
    ):
        os.close(far_end)
        seen = read_until(screen, b"")
        assert process.wait(DEADLINE_SECONDS) == 0
    shown = seen.decode()
    assert "first query" in shown
    assert "second query" in shown
    assert shown.count("berlin population") == 2
    assert "loaded in" in shown


@contextmanager
def started(
    arguments: list[str],
    environment: dict[str, str],
    stderr: int = subprocess.PIPE,
    *,
    stdout: int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that does not outlive the block, whatever happens in it."""
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # before Popen waits for its end


@contextmanager
def terminal() -> Iterator[tuple[IO[bytes], int]]:
    """Open a terminal: what is shown on it, and the end to write to."""
    near_end, far_end = pty.openpty()
    with open(near_end, "rb", buffering=0) as screen:  # noqa: PTH123 - a descriptor, not a path
        try:
            yield screen, far_end
        finally:
            with suppress(OSError):  # the test may have closed it
                os.close(far_end)


def read_until(screen: IO[bytes], expected: bytes) -> bytes:
    """Read what a terminal shows until `expected` appears, or to the end if that is empty."""
    seen = b""
    end = time.monotonic() + DEADLINE_SECONDS
    while not expected or expected not in seen:
        wait_for(screen, end, seen)
        try:
            piece = screen.read(4096)
        except OSError:  # Linux's way to say that the last writer is gone
            break
        if not piece:
            break
        seen += piece
    return seen


def first_line(stream: IO[bytes] | None) -> bytes:
    """Read the first line of a pipe."""
    assert stream is not None
    wait_for(stream, time.monotonic() + DEADLINE_SECONDS)
    return stream.readline()


def wait_for(stream: IO[bytes], end: float, seen: bytes = b"") -> None:
    """Wait until there is something to read; a process that stays silent fails the test."""
    ready, _, _ = select.select([stream], [], [], max(end - time.monotonic(), 0))
    assert ready, f"nothing more came within {DEADLINE_SECONDS} s after {seen!r}"
