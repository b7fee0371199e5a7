"""The two-stage examples retrieve, rerank and agree; Qdrant's files outlast the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "two_stage"
FRAMEWORKS = ("langchain", "llamaindex", "haystack")


def run(framework: str, path: Path, first_stage: str) -> tuple[str, list[str]]:
    """Run an example; return what it says of Qdrant, and the passages of its prompt in order."""
    finished = subprocess.run(
        [
            sys.executable,
            str(FOLDER / f"with_{framework}.py"),
            *("--first-stage", first_stage, "--path", str(path), "--questions", "10"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    qdrant, *prompt = finished.stdout.splitlines()
    return qdrant, [line for line in prompt if line.startswith("[")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each framework's Qdrant."""
    return {name: tmp_path_factory.mktemp(name) for name in FRAMEWORKS}


@pytest.mark.weights
def test_all_three_agree_and_find_their_files_again(folders: dict[str, Path]) -> None:
    """The first process embeds; the next finds the vectors, and merges them with BM25's list."""
    first = {name: run(name, folders[name], "dense") for name in FRAMEWORKS}
    second = {name: run(name, folders[name], "hybrid") for name in FRAMEWORKS}
    for runs, done in ((first, "embedded"), (second, "found")):
        [said] = {qdrant for qdrant, _ in runs.values()}
        assert said.endswith(f"passages {done} in Qdrant")
        passages = runs["langchain"][1]
        assert len(passages) == 5
        assert all(found == passages for _, found in runs.values())
    # Whom the question asks for; she is on no list of keywords of it.
    assert any("Shirley Temple" in passage for passage in first["langchain"][1])


@pytest.mark.slow
@pytest.mark.weights
def test_keywords_alone_agree_too(folders: dict[str, Path]) -> None:
    """BM25's candidates are the same, so their reranked order is."""
    runs = [run(name, folders[name], "bm25")[1] for name in FRAMEWORKS]
    assert len(runs[0]) == 5
    assert runs[0] == runs[1] == runs[2]
