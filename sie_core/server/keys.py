"""`Keys`: who may call the server. A file holds the names and hashes of keys, never the keys.

A line is `name:sha256-hex`, or `name:sha256-hex:admin` for a key that may change what the server
serves; blank lines and those that begin with `#` are passed over. The file is read again when it
changes. `sie key NAME` makes a key and its line. See
docs/decisions/0070-keys-and-limits.md.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sie_core.errors import InvalidRequestError

_logger = logging.getLogger(__name__)

_PREFIX = "sie_"
"""Tells people, and scanners of repositories, what they are looking at."""

_KEY_BYTES = 32
"""Too many to guess, so that a plain hash is enough: nobody tries what a slow one would slow."""

_ADMIN = "admin"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")

_CHECK_SECONDS = 1.0
"""How often the file is looked at; what is revoked is out after so long at most."""

_LOOSE_MODE = stat.S_IWGRP | stat.S_IWOTH | stat.S_IROTH


@dataclass(frozen=True, slots=True)
class KeyHash:
    """One line of the file.

    Attributes:
        name: Stands for the key in logs and limits.
        digest: SHA-256 of the key.
        is_admin: Whether it may change what the server serves.
    """

    name: str
    digest: bytes
    is_admin: bool = False

    def __str__(self) -> str:
        return f"{self.name}:{self.digest.hex()}" + (f":{_ADMIN}" if self.is_admin else "")


def make_key(name: str, *, is_admin: bool = False) -> tuple[str, KeyHash]:
    """Make a random key, and what the file is to hold of it.

    Raises:
        InvalidRequestError: `name` cannot be a key's name.
    """
    check_name(name)
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, KeyHash(name, _digest(key), is_admin)


def check_name(name: str) -> None:
    """Raise InvalidRequestError unless `name` can be a key's name."""
    if not _NAME.fullmatch(name):
        msg = (
            "a key's name must be 1 to 64 letters, digits or ._@- and begin with a letter or digit,"
            f" but got {name!r}"
        )
        raise InvalidRequestError(msg)


def read_keys(text: str, source: str) -> tuple[KeyHash, ...]:
    """Read the lines of a key file.

    Args:
        text: What the file holds.
        source: Its name, for errors.

    Raises:
        InvalidRequestError: A line is not `name:sha256-hex`, or two have the same name or key. The
            message never holds the line: it may be a key.
    """
    found: list[KeyHash] = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key = _read_line(stripped)
        if key is None:
            msg = (
                f"line {number} of {source} is not name:sha256-hex or name:sha256-hex:{_ADMIN}; "
                "`sie key NAME` makes a key and prints such a line"
            )
            raise InvalidRequestError(msg)
        if any(key.name == other.name or key.digest == other.digest for other in found):
            msg = f"line {number} of {source} has the name or the key of an earlier line"
            raise InvalidRequestError(msg)
        found.append(key)
    return tuple(found)


def _read_line(line: str) -> KeyHash | None:
    name, digest, *rest = (part.strip() for part in f"{line}:".split(":"))
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest.lower()):
        return None
    rights = [part for part in rest if part]
    if rights not in ([], [_ADMIN]):
        return None
    return KeyHash(name, bytes.fromhex(digest), is_admin=bool(rights))


class Keys:
    """The keys of a file, as it stands now.

    Where a changed file cannot be read, the keys that were read last stay, and an error is logged:
    a slip of the pen neither opens the server nor locks everyone out.

    Args:
        path: The file.
        clock: Tells the seconds that pass.

    Raises:
        InvalidRequestError: The file cannot be read, or a line of it is wrong.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._stamp: tuple[int, ...] | None = None
        self._keys: tuple[KeyHash, ...] = ()
        self._looked_at = clock()
        try:
            self._read()
        except OSError as exc:
            msg = f"the key file {path} cannot be read: {exc.strerror}"
            raise InvalidRequestError(msg) from exc

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"Keys({str(self._path)!r}, {len(self)} keys)"

    def find(self, key: str) -> KeyHash | None:
        """Return what the file says of a key, or None for one that may not call.

        It takes as long for every key, right or wrong, in whichever line.
        """
        self._refresh()
        digest = _digest(key)
        found: KeyHash | None = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found

    def reload(self) -> None:
        """Read the file now, whether it seems to have changed or not."""
        self._looked_at = self._clock()
        try:
            self._read()
        except (OSError, InvalidRequestError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            _logger.error(  # noqa: TRY400 - the reason says it all
                "the key file %s was not read again; what was read before stays (keys: %d): %s",
                self._path,
                len(self),
                reason,
            )

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._looked_at < _CHECK_SECONDS:
            return
        self._looked_at = now
        try:
            has_changed = _stamp_of(self._path) != self._stamp
        except OSError:
            has_changed = self._stamp is not None
        if has_changed:
            self.reload()

    def _read(self) -> None:
        self._stamp = None  # what fails now is not tried again until the file changes once more
        self._stamp = _stamp_of(self._path)
        text = self._path.read_bytes().decode(errors="replace")
        self._keys = read_keys(text, str(self._path))
        _logger.info("the key file %s was read; keys: %d", self._path, len(self))
        if not self._keys:
            _logger.warning("the key file %s has no keys, so nobody may call", self._path)
        if self._path.stat().st_mode & _LOOSE_MODE:
            _logger.warning(
                "the key file %s can be read or written by others; run: chmod 640 %s",
                self._path,
                self._path,
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _stamp_of(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
