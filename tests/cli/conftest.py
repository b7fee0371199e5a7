"""The program with a fake model, and the command as a process with a tiny real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sie_core.cli.program import program
from sie_core.ranking import rank
from sie_core.reranker import Reranker
from sie_core.types import Item, ScoreEntry, ScoreResult


class LengthClient:
    """Scores a text by its length, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def score(self, model: str, query: Item, items: Sequence[Item], **_: Any) -> ScoreResult:
        """Score as `LocalClient` does."""
        texts = [item["text"] for item in items]
        self.calls.append((query["text"], texts))
        return ScoreResult(
            model=model,
            query_id=None,
            scores=[
                ScoreEntry(
                    item_id=items[entry.index]["id"], score=entry.score or 0.0, rank=entry.rank
                )
                for entry in rank([float(len(text)) for text in texts])
            ],
            usage={"input_tokens": 0, "truncated_items": sum(len(text) > 500 for text in texts)},
        )


class Finished:
    """What a run of the program left behind."""

    def __init__(self, result: Any) -> None:
        self.exit_code: int = result.exit_code
        self.stdout: str = result.stdout
        self.stderr: str = result.stderr

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSONL on stdout."""
        return [json.loads(line) for line in self.stdout.split("\n") if line]


Run = Callable[..., Finished]


@pytest.fixture
def client() -> LengthClient:
    """The fake model behind `run`."""
    return LengthClient()


@pytest.fixture
def run(client: LengthClient) -> Run:
    """Call the program in this process, with the fake model: `run("rerank", "-q", "cats")`."""

    def make_reranker(model: str, **settings: Any) -> Reranker:
        cut = {name: settings.get(name) for name in ("top_k", "score_threshold")}
        return Reranker(model, client=client, **cut)

    return lambda *arguments, input=None: invoke(arguments, input, make_reranker)  # noqa: A006


@pytest.fixture
def run_real() -> Run:
    """Call the program in this process, as it is: `run_real("rerank", "--base-url", …)`."""
    return lambda *arguments, input=None: invoke(arguments, input)  # noqa: A006


@pytest.fixture
def run_serve(logging_as_before: None) -> Run:
    """Call `sie serve` in this process where it is to end by itself."""
    del logging_as_before
    return lambda *arguments: invoke(["serve", "--port", "0", *arguments])


def invoke(
    arguments: Sequence[object],
    given: str | bytes | None = None,
    make_reranker: Callable[..., Reranker] | None = None,
) -> Finished:
    """Call the program, with `given` on its standard input."""
    result = CliRunner().invoke(
        program,
        [str(argument) for argument in arguments],
        input=given,
        obj=make_reranker,
        catch_exceptions=False,
    )
    return Finished(result)


@pytest.fixture
def run_with() -> Callable[..., Finished]:
    """Call the program with another factory of rerankers: `run_with(make, "rerank", …)`."""
    return lambda make, *arguments, input=None: invoke(arguments, input, make)  # noqa: A006


@pytest.fixture
def command() -> list[str]:
    """The command line of a process that runs `sie`."""
    return [sys.executable, "-m", "sie_core.cli"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of such a process: no hub, no index, an empty cache."""
    return os.environ | {
        "SIE_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
    }


@pytest.fixture
def sie(command: list[str], environment: dict[str, str]) -> Callable[..., Any]:
    """Run `sie` as a process of its own, to its end."""

    def start(*arguments: object, input: str = "") -> subprocess.CompletedProcess[str]:  # noqa: A002
        return subprocess.run(
            [*command, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            input=input,
            env=environment,
            timeout=120,
        )

    return start
