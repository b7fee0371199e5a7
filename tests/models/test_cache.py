from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from sie_core.errors import DatasetError, DeadlineExceededError, ModelLoadError
from sie_core.models.cache import build_once, cache_folder

# Builds a folder: says that it has begun, waits to be told to go on, and finishes.
BUILDER = textwrap.dedent(
    """
    import logging, sys
    from pathlib import Path
    from sie_core.models.cache import build_once

    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s", force=True)
    folder, builds = Path(sys.argv[1]), Path(sys.argv[2])

    def build(staged):
        with builds.open("a") as file:
            file.write("built\\n")
        (staged / "first").write_text("first")
        print("building", flush=True)
        sys.stdin.readline()
        (staged / "second").write_text("second")

    build_once(folder, build)
    print("there" if (folder / "second").exists() else "incomplete", flush=True)
    """
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet, below one that does not either."""
    return tmp_path / "cache" / "made"


def start_builder(folder: Path, builds: Path) -> subprocess.Popen[str]:
    """Start a process that builds `folder`, and appends a line to `builds` when it begins."""
    command = [sys.executable, "-c", BUILDER, str(folder), str(builds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    """Wait for the next line that `process` prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def fill(staged: Path) -> None:
    """Build the smallest thing there is."""
    (staged / "file").write_text("content")


def fail(_staged: Path) -> None:
    """Stand for a build that must not happen."""
    pytest.fail("built although it was there")


def test_the_argument_comes_before_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache_dir`, then `SIE_CACHE_DIR`, then the platform's folder; blank means unset."""
    monkeypatch.setenv("SIE_CACHE_DIR", str(tmp_path / "variable"))
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.setenv("SIE_CACHE_DIR", " ")
    assert cache_folder().name == "sie"
    monkeypatch.delenv("SIE_CACHE_DIR")
    assert cache_folder().name == "sie"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`SIE_CACHE_DIR=~/models` means what it does in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SIE_CACHE_DIR", "~/models")
    assert cache_folder() == tmp_path / "models"


def test_a_folder_is_made_once(folder: Path) -> None:
    """The second call finds the first one's work, and calls nothing."""
    assert build_once(folder, fill) == folder
    assert build_once(folder, fail) == folder
    assert (folder / "file").read_text() == "content"


def test_the_final_name_appears_only_when_complete(folder: Path) -> None:
    """While the folder is being built, nobody sees it."""

    def build(staged: Path) -> None:
        (staged / "file").write_text("half")
        assert not folder.exists()
        assert staged.parent == folder.parent

    build_once(folder, build)
    assert folder.exists()


def test_a_failed_build_leaves_nothing(folder: Path) -> None:
    """The error passes through, the half-made folder goes, and the next call succeeds."""

    def build(staged: Path) -> None:
        fill(staged)
        msg = "no"
        raise KeyboardInterrupt(msg)

    with pytest.raises(KeyboardInterrupt, match="no"):
        build_once(folder, build)
    assert [path.name for path in folder.parent.iterdir()] == [".made.lock"]
    build_once(folder, fill)
    assert folder.exists()


def test_a_folder_that_lost_a_required_file_is_made_again(folder: Path) -> None:
    """Cleaners of temporary folders delete single files; what they leave is not used."""
    build_once(folder, fill, required=["file"])
    (folder / "file").unlink()
    (folder / "other").touch()
    build_once(folder, fill, required=["file"])
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_threads_at_once_build_once(folder: Path) -> None:
    """Eight threads that start together share one build."""
    builds = []
    barrier = threading.Barrier(8)
    found = []

    def build(staged: Path) -> None:
        builds.append(staged)
        fill(staged)

    def run() -> None:
        barrier.wait()
        found.append((build_once(folder, build) / "file").read_text())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["content"] * 8
    assert len(builds) == 1


def test_two_processes_at_once_build_once(folder: Path, tmp_path: Path) -> None:
    """The second process waits for the first, says so, and then uses what it made."""
    builds = tmp_path / "builds"
    with start_builder(folder, builds) as first, start_builder(folder, builds) as second:
        # Whichever is first builds; the other one waits.
        lines = {read_line(first): first, read_line(second): second}
        waiting = f"Waiting for another process or thread that is making {folder}"
        assert set(lines) == {"building", waiting}
        lines["building"].communicate("go on\n", timeout=20)
        assert read_line(lines[waiting]) == "there"
    assert builds.read_text() == "built\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL to send")
def test_a_killed_process_leaves_nothing_half_made(folder: Path, tmp_path: Path) -> None:
    """After a SIGKILL the final name is free, and the next call builds and sweeps."""
    with start_builder(folder, tmp_path / "builds") as killed:
        assert read_line(killed) == "building"
        killed.kill()
    assert not folder.exists()
    assert any(".partial-" in path.name for path in folder.parent.iterdir())

    build_once(folder, fill)

    assert [path.name for path in folder.iterdir()] == ["file"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".made.lock", "made"]


def test_waiting_for_another_process_is_bounded(folder: Path, tmp_path: Path) -> None:
    """A caller with a deadline does not wait beyond it for somebody else's download."""
    with start_builder(folder, tmp_path / "builds") as holder:
        assert read_line(holder) == "building"
        with pytest.raises(DeadlineExceededError, match=r"not ready within 0\.1 seconds"):
            build_once(folder, fail, timeout_seconds=0.1)
        holder.communicate("go on\n", timeout=20)


def test_a_cache_that_cannot_be_written_is_an_error_that_helps(tmp_path: Path) -> None:
    """The error names the folder and the variable, in the class that the caller chose."""
    (tmp_path / "file").touch()  # in the way, where root's permissions would not be
    folder = tmp_path / "file" / "made"
    with pytest.raises(ModelLoadError, match="SIE_CACHE_DIR") as caught:
        build_once(folder, fill)
    assert str(folder) in str(caught.value)
    with pytest.raises(DatasetError, match="SIE_CACHE_DIR"):
        build_once(folder, fill, error=DatasetError)


def test_a_full_disk_is_an_error_that_helps(folder: Path) -> None:
    """What the system says while building is translated, and nothing is left."""

    def build(staged: Path) -> None:
        fill(staged)
        raise OSError(28, os.strerror(28))

    with pytest.raises(ModelLoadError, match=r"No space left on device.*SIE_CACHE_DIR"):
        build_once(folder, build)
    assert not folder.exists()


def test_errors_of_ours_pass_untouched(folder: Path) -> None:
    """A deadline is an OSError to python; it is not mistaken for a full disk."""

    def build(_staged: Path) -> None:
        msg = "too slow"
        raise DeadlineExceededError(msg)

    with pytest.raises(DeadlineExceededError, match="too slow"):
        build_once(folder, build)
