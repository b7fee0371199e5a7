"""Servers of ours on loopback, over tiny checkpoints."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core.local import LocalClient
from sie_core.server.access_log import ACCESS_LOGGER
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings, Profile, ServerSettings

TIMEOUT_SECONDS = 30


@contextlib.contextmanager
def run_server(settings: ServerSettings, client: LocalClient | None = None) -> Iterator[Server]:
    """Run a server in a thread, until the end of the block."""
    server = Server(settings, port=0, client=client or LocalClient(mode="exact"))
    thread = threading.Thread(target=server.run, name="sie-test-server")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive()


def wait_until_ready(url: str) -> None:
    """Wait until a server has the models that are to be there from the start."""
    with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
        for _ in range(20 * TIMEOUT_SECONDS):
            reply = client.get(f"{url}/readyz")
            if reply.status_code == 200:
                return
            assert reply.text == "loading"
            threading.Event().wait(0.05)
    pytest.fail(f"{url} was not ready within {TIMEOUT_SECONDS} s")


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A maker of running servers; it takes what `ServerSettings` takes, and a client."""
    with serving() as start:
        yield start


@pytest.fixture(scope="module")
def serve_module() -> Iterator[Serve]:
    """The same, for servers that all tests of a module share."""
    with serving() as start:
        yield start


@contextlib.contextmanager
def serving() -> Iterator[Serve]:
    """Make a maker of running servers; they end with the block."""
    with contextlib.ExitStack() as stack:

        def start(
            *, client: LocalClient | None = None, is_awaited: bool = True, **given: Any
        ) -> Server:
            server = stack.enter_context(run_server(ServerSettings(**given), client))
            if is_awaited:
                wait_until_ready(server.url)
            return server

        yield start


class AccessLines(logging.Handler):
    """The fields of each line of the access log; a server writes it when its reply is out."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[dict[str, Any]] = []
        self._more = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        with self._more:
            self._lines.append({"level": record.levelno, **vars(record)["fields"]})
            self._more.notify_all()

    def wait(self, count: int, path: str | None = None) -> list[dict[str, Any]]:
        """Wait until there are so many, of one path where it is given, and return them."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self._lines if path in (None, line["path"])]

        with self._more:
            assert self._more.wait_for(lambda: len(found()) >= count, TIMEOUT_SECONDS)
            return found()


@pytest.fixture
def access_lines() -> Iterator[AccessLines]:
    """What the access log says at all levels."""
    logger, lines = logging.getLogger(ACCESS_LOGGER), AccessLines()
    before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)
    logger.setLevel(before)


@pytest.fixture
def cold_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """A checkpoint that nothing else in this process has loaded."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "cold-bert"))


@pytest.fixture
def cold_xlmr(tiny_xlmr: Path, tmp_path: Path) -> Path:
    """Another."""
    return Path(shutil.copytree(tiny_xlmr, tmp_path / "cold-xlmr"))


@pytest.fixture(scope="session")
def recorded_models(  # noqa: PLR0917  fixtures
    tiny_bert: Path,
    tiny_xlmr: Path,
    tiny_colbert: Path,
    tiny_embedder: Path,
    served_adapter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ModelSettings, ...]:
    """Models by the names that the recorded exchanges have, with random weights of our own."""
    folder = tmp_path_factory.mktemp("served")
    return (
        ModelSettings(
            name="test/tiny-bert-ce",
            source=str(tiny_bert),
            profiles={"instructed": Profile(instruction="rank by topic")},
            loras={"x/y": str(served_adapter)},
        ),
        ModelSettings(name="test/tiny-xlmr-ce", source=str(tiny_xlmr)),
        ModelSettings(name="test/tiny-colbert", source=str(tiny_colbert)),
        ModelSettings(name="test/tiny-embed", source=str(tiny_embedder)),
        ModelSettings(name="test/nan-ce", source=str(spoil(folder / "nan", tiny_bert))),
    )


@pytest.fixture(scope="session")
def served(recorded_models: tuple[ModelSettings, ...]) -> Iterator[Server]:
    """One running server with these models."""
    # Other tests bound the number of models in this process, and so unload these.
    settings = ServerSettings(models=recorded_models, wait_for_load_seconds=TIMEOUT_SECONDS)
    with run_server(settings) as server:
        wait_until_ready(server.url)
        yield server


def spoil(folder: Path, base: Path) -> Path:
    """Copy a cross-encoder and make it give scores that are no numbers."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
