"""What a run has done so far, on disk, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sie_core.errors import DatasetError, InvalidRequestError

_SETTINGS = "settings.json"


class StateFolder:
    """A folder that belongs to one run's settings.

    Args:
        path: The folder; made if it is not there.
        settings: What the results depend on; can be written as JSON.

    Raises:
        InvalidRequestError: The folder belongs to other settings, or to another running process.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as exc:
            msg = f"another process is using {path}; wait for it, or name another folder"
            raise InvalidRequestError(msg) from exc
        try:
            self._claim(settings)
        except BaseException:
            self._lock.release()
            raise

    def _claim(self, settings: Mapping[str, Any]) -> None:
        known = _read_settings(self.path / _SETTINGS)
        if known is None:
            _write(self.path / _SETTINGS, settings)
        elif changed := changes(known, settings):
            msg = (
                f"{self.path} holds a run with other settings: {'; '.join(changed)}. Name another "
                "folder, or delete this one to begin anew"
            )
            raise InvalidRequestError(msg)

    def part(self, name: str, settings: Mapping[str, Any]) -> tuple[Path, list[str]]:
        """Return the sub-folder for a part of the run with settings of its own.

        Returns:
            The folder, and where there is one of the same name but with other settings, and none
            with these, what has changed since.
        """
        slug = "".join(char if char.isalnum() or char in "-." else "-" for char in name)[-60:]
        folder = self.path / f"{slug}-{fingerprint(settings)}"
        changed: list[str] = []
        if not folder.exists():
            for other in sorted(self.path.glob(f"{slug}-*/{_SETTINGS}")):
                changed = changes(_read_settings(other) or {}, settings) or changed
            folder.mkdir()
            _write(folder / _SETTINGS, settings)
        return folder, changed

    def delete(self) -> None:
        """Delete the folder and all in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.release()


class Journal:
    """Records in a file of JSON lines, each on disk before the next begins.

    Args:
        path: The file. A last line that was written in part is taken off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cut_off_partial_line()

    def read(self) -> Iterator[dict[str, Any]]:
        """Read all records that were appended, in their order.

        Raises:
            DatasetError: The file is damaged.
        """
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    record = json.loads(line)
                except ValueError as exc:
                    msg = f"{self.path} line {number} is damaged; delete the file to begin anew"
                    raise DatasetError(msg) from exc
                yield record

    @contextmanager
    def appending(self) -> Iterator[_Appender]:
        """Open the file to append to."""
        with self.path.open("ab") as stream:
            yield _Appender(stream)

    def _cut_off_partial_line(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self.path.open("r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)


class _Appender:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def append(self, record: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(record).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a short name for settings: equal for equal ones, whatever their order."""
    content = json.dumps(settings, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def changes(known: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Say what differs between settings then and now: `candidates was 50 and is now 100`."""
    # What is compared is what JSON makes of them: tuples become lists.
    now = json.loads(json.dumps(settings))
    changed = []
    for name in dict.fromkeys([*known, *now]):
        before, after = known.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += [f"{name} {change}" for change in changes(before, after)]
        elif before != after:
            changed.append(f"{name} was {_shown(before)} and is now {_shown(after)}")
    return changed


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _read_settings(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as exc:
        msg = f"{path} is damaged; delete its folder to begin anew"
        raise DatasetError(msg) from exc
    return dict(settings)


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    staged = path.with_name(f"{path.name}.part")
    staged.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    staged.replace(path)
