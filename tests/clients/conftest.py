"""Other people's clients, unmodified, in environments of their own under `.build/clients`.

They run as their users run them, a program each, against `sie serve` in a process of its own. Its
tiny models answer under the names, and the programs ask at the address, of SIE's documentation:
only that address is replaced by the real one. `make test-clients` installs what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sie_core.local import LocalClient
from sie_core.types import Item

HERE = Path(__file__).parent
DOCUMENTED_ADDRESS = "http://localhost:8080"
PATIENCE_SECONDS = 120
INSTALL_SECONDS = 1200

RERANKER, EMBEDDER, COLBERT = "BAAI/bge-reranker-v2-m3", "BAAI/bge-m3", "colbert-ir/colbertv2.0"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Install hundreds of megabytes only when asked to: `-m clients`, as `make test-clients`."""
    if "clients" in (config.option.markexpr or ""):
        return
    reason = "installs other people's clients: run `make test-clients`"
    for item in items:
        if item.get_closest_marker("clients"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def folder() -> Path:
    """Where the clients are installed: `.build/clients`, or where SIE_TEST_CLIENTS says."""
    named = os.environ.get("SIE_TEST_CLIENTS")
    return Path(named) if named else HERE.parents[1] / ".build" / "clients"


@pytest.fixture(scope="session")
def models(tiny_xlmr: Path, tiny_embedder: Path, tiny_colbert: Path) -> dict[str, Path]:
    """The served models' folders, by their names."""
    return {RERANKER: tiny_xlmr, EMBEDDER: tiny_embedder, COLBERT: tiny_colbert}


class Engine:
    """What the answers are to be: this project's own, computed in this process.

    Args:
        models: Folders by names.
    """

    def __init__(self, models: dict[str, Path]) -> None:
        self._client = LocalClient(mode="exact")
        self._models = models

    def scores(
        self, query: str, texts: list[str], model: str = RERANKER, **arguments: Any
    ) -> dict[str, float]:
        """Score texts; by the names `item-N`, best first."""
        items = [Item(text=text) for text in texts]
        folder = str(self._models[model])
        result = self._client.score(folder, Item(text=query), items, **arguments)
        return {entry["item_id"]: entry["score"] for entry in result["scores"]}

    def vectors(self, texts: list[str], model: str = EMBEDDER, **arguments: Any) -> Any:
        """Encode texts: a vector each, or a matrix each."""
        items = [Item(text=text) for text in texts]
        found = self._client.encode(str(self._models[model]), items, **arguments)
        kind = "dense" if "dense" in found[0] else "multivector"
        return [np.asarray(result[kind], np.float32) for result in found]


@pytest.fixture(scope="session")
def engine(models: dict[str, Path]) -> Engine:
    """This project's engine with the served models."""
    return Engine(models)


@pytest.fixture(scope="session")
def address(models: dict[str, Path], serve_command: Any) -> Iterator[str]:
    """Where `sie serve` listens."""
    named = [f"{name}={path}" for name, path in models.items()]
    with serve_command(*named, "--mode", "exact") as (url, _):
        yield url


@pytest.fixture(scope="session")
def python(folder: Path, python312: Path) -> Path:
    """Python 3.12 with the Python clients installed."""
    home, wanted = folder / "python", (HERE / "requirements.txt").read_text()
    done = home / "installed"
    found = home / "bin/python"
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        run(str(python312), "-m", "venv", str(home), seconds=INSTALL_SECONDS)
        pip = [str(found), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run(*pip, "-r", str(HERE / "requirements.txt"), seconds=INSTALL_SECONDS)
        done.write_text(wanted)
    return found


@pytest.fixture(scope="session")
def node(folder: Path) -> Path:
    """A folder with the Node clients installed, or a skip that says that there is no Node."""
    if shutil.which("npm") is None:
        pytest.skip("this needs Node.js with npm")
    home, wanted = folder / "node", (HERE / "node/package.json").read_text()
    done = home / "package.json"
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        fresh = home / "package.json.new"
        fresh.write_text(wanted)
        fresh.rename(done)
        run("npm", "install", "--silent", cwd=home, seconds=INSTALL_SECONDS)
    return home


@pytest.fixture(scope="session")
def node_with_sdk(folder: Path) -> Path:
    """A folder with SIE's own Node client, or a skip that says that the registry has none."""
    if shutil.which("npm") is None:
        pytest.skip("this needs Node.js with npm")
    home = folder / "node-sdk"
    if not (home / "node_modules/@superlinked/sie-sdk").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "package.json").write_text('{"private": true, "type": "module"}')
        command = ["npm", "install", "--loglevel=error", "@superlinked/sie-sdk"]
        finished = subprocess.run(
            command, cwd=home, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
        if "E404" in finished.stdout + finished.stderr:
            pytest.skip("this npm registry has no @superlinked/sie-sdk")
        if finished.returncode:
            pytest.fail(f"npm: {finished.stderr[-2000:]}")
    return home


def run(*command: str, cwd: Path | None = None, seconds: float = PATIENCE_SECONDS) -> str:
    """Run a program and return what it printed; one that fails fails the test."""
    finished = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    if finished.returncode:
        pytest.fail(f"{' '.join(command)}:\n{finished.stdout}\n{finished.stderr[-4000:]}")
    return finished.stdout


def addressed(snippet: Path, address: str, folder: Path) -> Path:
    """Write a snippet with the real address in place of the documented one."""
    text = snippet.read_text()
    assert DOCUMENTED_ADDRESS in text
    copy = folder / snippet.name
    copy.write_text(text.replace(DOCUMENTED_ADDRESS, address))
    return copy


Run = Callable[[str], str]


@pytest.fixture
def run_python(python: Path, address: str, tmp_path: Path) -> Run:
    """Run a Python snippet, by its name, and return what it prints."""

    def run_snippet(name: str) -> str:
        copy = addressed(HERE / "snippets" / name, address, tmp_path)
        return run(str(python), str(copy), cwd=tmp_path)

    return run_snippet


@pytest.fixture
def run_shell(address: str, tmp_path: Path) -> Run:
    """Run a shell snippet, by its name, and return what it prints."""
    if shutil.which("curl") is None:
        pytest.skip("this needs curl")
    return lambda name: run(
        "sh", str(addressed(HERE / "snippets" / name, address, tmp_path)), cwd=tmp_path
    )


def _run_node(home: Path, address: str) -> Run:
    # Node looks for packages beside the program, not where it is started.
    return lambda name: run("node", str(addressed(HERE / "node" / name, address, home)), cwd=home)


@pytest.fixture
def run_node(node: Path, address: str) -> Run:
    """Run a Node snippet, by its name, and return what it prints."""
    return _run_node(node, address)


@pytest.fixture
def run_node_sdk(node_with_sdk: Path, address: str) -> Run:
    """Run a Node snippet that uses SIE's own client."""
    return _run_node(node_with_sdk, address)
