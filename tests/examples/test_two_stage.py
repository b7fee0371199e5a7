"""The two-stage examples retrieve, rerank and agree; Qdrant's files outlast the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "two_stage"
FRAMEWORKS = ("langchain", "llamaindex", "haystack")
RUN_ALL = """
import runpy, sys
sys.path.insert(0, sys.argv[1])  # as Python does for a script
folders = dict(line.split("=", 1) for line in sys.argv[3:])
arguments = ["--first-stage", sys.argv[2], "--questions", "10", "--path"]
for name, path in folders.items():
    sys.argv = [f"with_{name}.py", *arguments, path]
    print(f"==> {name}")
    runpy.run_path(f"{sys.path[0]}/with_{name}.py", run_name="__main__")
"""


def run(folders: dict[str, Path], first_stage: str) -> dict[str, tuple[str, list[str]]]:
    """Run the examples one after the other in a process, which loads the models once.

    Returns:
        By framework what it says of Qdrant, and the passages of its prompt in order.
    """
    paths = [f"{name}={path}" for name, path in folders.items()]
    finished = subprocess.run(
        [sys.executable, "-c", RUN_ALL, str(FOLDER), first_stage, *paths],
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    said: dict[str, tuple[str, list[str]]] = {}
    for part in finished.stdout.split("==> ")[1:]:
        name, qdrant, *prompt = part.splitlines()
        said[name] = qdrant, [line for line in prompt if line.startswith("[")]
    return said


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each framework's Qdrant."""
    return {name: tmp_path_factory.mktemp(name) for name in FRAMEWORKS}


@pytest.mark.weights
def test_all_three_agree_and_find_their_files_again(folders: dict[str, Path]) -> None:
    """The first process embeds; the next finds the vectors, and merges them with BM25's list."""
    first = run(folders, "dense")
    second = run(folders, "hybrid")
    for runs, done in ((first, "embedded"), (second, "found")):
        assert tuple(runs) == FRAMEWORKS
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
    runs = [passages for _, passages in run(folders, "bm25").values()]
    assert len(runs[0]) == 5
    assert runs[0] == runs[1] == runs[2]
