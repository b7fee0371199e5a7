from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import (
    DeadlineExceededError,
    DownloadError,
    InvalidRequestError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from sie_core.models import hub, sources
from sie_core.settings import SourceSettings

NAME = "owner/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "s3cret" * 5
SAFE = ("config.json", "model.safetensors", "tokenizer.json")


class FakeHub(ThreadingHTTPServer):
    """A hub on loopback with one model, as far as downloading it needs one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.failure: tuple[int, str] | None = None
        """Status and error code of every answer, instead of the model."""
        self.asked: list[str] = []
        """The files that were asked for."""
        self.tokens: set[str] = set()
        """The credentials that were shown."""

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "Authorization" in self.headers:
            self.server.tokens.add(self.headers["Authorization"])
        if self.server.failure is not None:
            status, code = self.server.failure
            headers = {"X-Error-Code": code, "X-Error-Message": code}
            self._answer(b"{}", status=status, headers=headers)
        elif self.path.startswith(f"/api/models/{NAME}/tree/"):
            files = self.server.files.items()
            listing = [
                {"type": "file", "path": path, "size": len(content), "oid": f"{hash(path):040x}"}
                for path, content in files
            ]
            self._answer(json.dumps(listing).encode())
        elif self.path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": path} for path in self.server.files]
            info = {"id": NAME, "sha": COMMIT, "siblings": siblings}
            self._answer(json.dumps(info).encode())
        else:
            path = self.path.partition(f"/resolve/{COMMIT}/")[2]
            self.server.asked.append(path)
            headers = {"ETag": f'"{abs(hash(path)):x}"', "X-Repo-Commit": COMMIT}
            self._answer(self.server.files[path], headers=headers)

    do_HEAD = do_GET  # noqa: N815 # the name that http.server looks for

    def _answer(
        self, body: bytes, *, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the test's output clean."""


@pytest.fixture
def fake_hub(
    online: Path,  # noqa: ARG001 # for what it does
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FakeHub]:
    """A hub that can be reached, with a model that has everything."""
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.files = dict.fromkeys(SAFE, b"{}")
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server
        server.shutdown()
        thread.join()


def test_a_model_is_downloaded_and_then_found_without_a_request(fake_hub: FakeHub) -> None:
    """The second time, the hub's own cache has it."""
    with pytest.raises(DownloadError, match="has no snapshot"):
        hub.find_cached([NAME], SourceSettings())

    folder = hub.download(NAME, SourceSettings())

    assert sorted(path.name for path in folder.iterdir()) == sorted(SAFE)
    fake_hub.failure = (500, "")
    assert hub.find_cached(["owner/other-spelling", NAME], SourceSettings()) == folder


def test_code_and_pickles_and_other_runtimes_stay_behind(fake_hub: FakeHub) -> None:
    """Weights that are only data, settings and the tokenizer are asked for, and nothing else."""
    unwanted = ("modeling.py", "pytorch_model.bin", "onnx/config.json", "README.md", "rust.ot")
    fake_hub.files |= dict.fromkeys(unwanted, b"{}")
    hub.download(NAME, SourceSettings(allow_pickle=True))
    assert sorted(set(fake_hub.asked)) == sorted(SAFE)


def test_pickled_weights_are_refused_before_anything_is_downloaded(fake_hub: FakeHub) -> None:
    """The error names the files and the setting; with the setting they are fetched."""
    fake_hub.files = {
        "config.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "training_args.bin": b"",
    }
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin.*allow_pickle=True"):
        hub.download(NAME, SourceSettings())
    assert fake_hub.asked == []

    folder = hub.download(NAME, SourceSettings(allow_pickle=True))
    assert (folder / "pytorch_model.bin").read_bytes() == b"pickle"
    assert not (folder / "training_args.bin").exists()
    with pytest.raises(DownloadError, match="allow_pickle"):
        hub.find_cached([NAME], SourceSettings())


def test_a_repository_without_weights_is_an_error(fake_hub: FakeHub) -> None:
    """Such as one with files for another runtime only, which are named."""
    fake_hub.files = {"config.json": b"{}"}
    with pytest.raises(ModelLoadError, match="holds no weights"):
        hub.download(NAME, SourceSettings())
    fake_hub.files["model.gguf"] = b""
    with pytest.raises(UnsupportedModelError, match=r"weights for llama\.cpp"):
        hub.download(NAME, SourceSettings())


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ((404, "RepoNotFound"), r"shows no owner/model \(HTTP 404\); check the spelling"),
        ((401, ""), r"HTTP 401\).*pass a token"),
        ((404, ""), r"HTTP 404"),
        ((403, "GatedRepo"), r"is gated; accept its terms at http.*owner/model.*token"),
        ((404, "RevisionNotFound"), r"has no owner/model"),
        ((503, ""), r"failed: HfHubHTTPError"),
    ],
)
def test_a_hub_that_answers_no_is_reachable(
    fake_hub: FakeHub, failure: tuple[int, str], expected: str
) -> None:
    """The error says what the answer means, and the next call asks again."""
    fake_hub.failure = failure
    with pytest.raises(DownloadError, match=expected):
        hub.download(NAME, SourceSettings(token=TOKEN))
    fake_hub.failure = None
    assert hub.download(NAME, SourceSettings()).is_dir()


def test_an_unknown_revision_is_named(fake_hub: FakeHub) -> None:
    """The error tells a wrong revision from a wrong name."""
    fake_hub.failure = (404, "RevisionNotFound")
    with pytest.raises(DownloadError, match="has no revision 'v9' of owner/model"):
        hub.download(NAME, SourceSettings(revision="v9"))


@pytest.mark.usefixtures("online")
def test_a_silent_hub_is_given_up_on_once(
    silent_listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for as long as the settings say, and not asked again in this process."""
    address = f"http://127.0.0.1:{silent_listener.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    settings = SourceSettings(hub_timeout_seconds=0.3)

    started = time.monotonic()
    with pytest.raises(DownloadError, match=rf"{address} could not be reached"):
        hub.download(NAME, settings)
    assert time.monotonic() - started < 3
    silent_listener.accept()[0].close()

    with pytest.raises(DownloadError, match=rf"{address} could not be reached"):
        hub.download("owner/other", settings)
    silent_listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        silent_listener.accept()


@pytest.mark.usefixtures("online")
def test_a_call_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name resolution has no timeout of its own, and must not hold the caller."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    hanging = threading.Event()
    resolving = threading.Event()

    def resolve(*_arguments: object, **_options: object) -> list[Any]:
        resolving.set()
        hanging.wait(20)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        with pytest.raises(DownloadError, match=r"no answer within 0\.2 seconds"):
            hub.download(NAME, SourceSettings(hub_timeout_seconds=0.2))
        assert resolving.is_set()
    finally:
        hanging.set()


def test_a_refusing_hub_is_remembered_by_its_address(
    unreachable_hub: str, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one mirror is down says nothing about another."""
    monkeypatch.setenv("HF_ENDPOINT", unreachable_hub)
    with pytest.raises(DownloadError, match="could not be reached"):
        hub.download(NAME, SourceSettings())
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.address)
    assert hub.download(NAME, SourceSettings()).is_dir()


@pytest.mark.usefixtures("online")
def test_a_deadline_shorter_than_the_patience_is_not_held_against_the_hub(
    silent_listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of the caller's time is a deadline; the hub may still be there."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent_listener.getsockname()[1]}")
    for _ in range(2):
        with pytest.raises(DeadlineExceededError, match=r"longer than the 0\.1 seconds"):
            hub.download(NAME, SourceSettings(hub_timeout_seconds=30), timeout_seconds=0.1)
        silent_listener.accept()[0].close()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_asks_nobody(
    fake_hub: FakeHub, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable, which the user may have forgotten."""
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"was not asked, because {variable} is set"):
        hub.download(NAME, SourceSettings())
    assert fake_hub.asked == []


def test_the_token_is_never_shown(fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    """Not in the settings' repr, nor in what we log, nor in an error that quotes the server."""
    settings = SourceSettings(token=f"{TOKEN}\n")
    assert TOKEN not in repr(settings)
    fake_hub.failure = (503, f"no {TOKEN}")
    with caplog.at_level(logging.DEBUG), pytest.raises(DownloadError) as caught:
        hub.download(NAME, settings)
    assert fake_hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    ours = [record for record in caplog.records if record.name.startswith("sie_core")]
    assert not any(TOKEN in record.getMessage() for record in ours)


@pytest.mark.parametrize("token", ["two\nlines", "two words", "hf_ü"])
def test_what_cannot_be_a_token_is_never_sent(fake_hub: FakeHub, token: str) -> None:
    """HTTP libraries would quote it in their errors and debug logs; ours does not."""
    with pytest.raises(InvalidRequestError, match="the hub token holds") as caught:
        hub.download(NAME, SourceSettings(token=token))
    assert token not in str(caught.value)
    assert fake_hub.tokens == set()


def test_a_name_that_no_model_can_have_is_said_to_be_one(fake_hub: FakeHub) -> None:
    """No request is made for it."""
    for look in (hub.download, lambda name, settings: hub.find_cached([name], settings)):
        with pytest.raises(DownloadError, match="'no such name' is not a name"):
            look("no such name", SourceSettings())
    assert fake_hub.asked == []


def test_a_snapshot_that_lacks_only_what_nobody_needs_is_used(fake_hub: FakeHub) -> None:
    """Other programs leave files of a repository out; config, weights and tokenizer will do."""
    fake_hub.files["extra.json"] = b"{}"
    folder = hub.download(NAME, SourceSettings())
    (folder / "extra.json").unlink()
    assert hub.find_cached([NAME], SourceSettings()) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="holds no weights"):
        hub.find_cached([NAME], SourceSettings())


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def test_an_adapter_is_downloaded_and_then_found_without_a_request(fake_hub: FakeHub) -> None:
    """By its name, with what belongs to an adapter and nothing else."""
    fake_hub.files = dict.fromkeys((*ADAPTER_FILES, "README.md", "adapter_model.bin"), b"{}")
    folder = sources.resolve_adapter(NAME, SourceSettings(revision="of-the-model"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(ADAPTER_FILES)
    fake_hub.failure = (500, "")
    assert sources.resolve_adapter(NAME, SourceSettings()) == folder


def test_a_pickled_adapter_is_refused_before_it_is_downloaded(fake_hub: FakeHub) -> None:
    """As a pickled model is."""
    fake_hub.files = dict.fromkeys(("adapter_config.json", "adapter_model.bin"), b"{}")
    with pytest.raises(UnsupportedModelError, match=r"only pickled weights \(adapter_model\.bin\)"):
        sources.resolve_adapter(NAME, SourceSettings())
    assert fake_hub.asked == []


def test_an_adapter_that_is_nowhere_names_the_places(unreachable_hub: str, tmp_path: Path) -> None:
    """A path is not looked for on the hub; a name is."""
    with pytest.raises(ModelNotFoundError, match="absent does not exist"):
        sources.resolve_adapter(str(tmp_path / "absent"), SourceSettings())
    with pytest.raises(ModelNotFoundError, match=f"hub cache: .*\n- hub: {unreachable_hub}"):
        sources.resolve_adapter(NAME, SourceSettings())
