"""`ScoreCache`: scores of pairs that were scored before, in memory and, if asked for, on disk.

A score is found again only where everything that decides it is the same: the weights, the query,
the text, and what the model was asked to do with them. It is then the very number that the model
gave. Several rerankers may share one cache; threads too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import threading
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from sie_core.errors import InvalidRequestError, MissingDependencyError
from sie_core.score_folder import ScoreFolder
from sie_core.types import Item, ScoreSpace

if TYPE_CHECKING:
    import cachetools

    from sie_core.steps import Reply

_logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES: Final = 64 * 2**20
"""Scores of some 160,000 pairs."""

DEFAULT_MAX_DISK_BYTES: Final = 2**30

_ENTRY_BYTES: Final = 420
"""What one score takes in memory, with its key and its places in three tables, at the moment when
those are made larger. Measured: 338 to 381 bytes (`tests/test_score_cache.py` measures it)."""

_HEAD: Final = struct.Struct("<dB")
"""A score in double precision, and the space it is in."""

_SPACES: Final[tuple[ScoreSpace | None, ...]] = (None, *get_args(ScoreSpace))

_WITHOUT_EFFECT: Final = frozenset({"batch_size"})
"""Options that change no score."""

_FOUND_ANEW: Final = frozenset({"item_id", "score", "rank"})
"""What an entry of a reply has that belongs to one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCacheStats:
    """What a cache holds, and how often it was asked.

    Attributes:
        num_hits: Scores that were there.
        num_misses: Scores that were not.
        num_entries: Scores in memory now.
        num_bytes: What they take.
        max_bytes: The bound.
        num_disk_entries: Scores on disk by now; 0 without a folder that can be read.
    """

    num_hits: int
    num_misses: int
    num_entries: int
    num_bytes: int
    max_bytes: int
    num_disk_entries: int = 0

    @property
    def hit_rate(self) -> float:
        """The part of all scores asked for that were there, 0 before the first."""
        return self.num_hits / max(1, self.num_hits + self.num_misses)


class ScoreCache:
    """Keep scores, those used last in place of those not used for the longest time.

    A copy is the same cache. A pickle carries the settings and no scores; a forked child begins
    with none in memory. No call waits for others that write to the folder: a thread of the cache's
    own writes, soon after the call, and at the latest when the program ends.

    Args:
        max_bytes: Bound on what is kept in memory.
        folder: Keep scores in this folder as well, for other processes and later ones. Nothing in
            it is ever executed.
        max_disk_bytes: Bound on that folder; what was written first leaves first.

    Raises:
        InvalidRequestError: A bound is not an integer of 1 or more, or the folder cannot be used.
        MissingDependencyError: `cachetools`, or for a folder `diskcache`, is not installed.
    """

    def __init__(
        self,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        folder: str | Path | None = None,
        max_disk_bytes: int = DEFAULT_MAX_DISK_BYTES,
    ) -> None:
        self.max_bytes = _check_bytes(max_bytes, "score_cache's max_bytes")
        self.folder = None if folder is None else Path(folder).expanduser()
        self.max_disk_bytes = _check_bytes(max_disk_bytes, "score_cache's max_disk_bytes")
        self._open()

    @classmethod
    def of(cls, given: ScoreCache | Mapping[str, Any] | int | None) -> ScoreCache | None:
        """Return what a `score_cache` argument means.

        Args:
            given: A cache, the bytes of a new one, what `to_dict` gave, or None for none.
        """
        if given is None or isinstance(given, ScoreCache):
            return given
        return cls(**given) if isinstance(given, Mapping) else cls(given)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in a plain form, for a serialised component; scores stay here."""
        folder = None if self.folder is None else str(self.folder)
        return {
            "max_bytes": self.max_bytes,
            "folder": folder,
            "max_disk_bytes": self.max_disk_bytes,
        }

    def get_many(self, keys: Sequence[bytes]) -> list[CachedScore | None]:
        """Return the score of each key, None where there is none."""
        with self._lock:
            values = [self._memory.get(key) for key in keys]
            num_clears = self._num_clears
        missing = [i for i, value in enumerate(values) if value is None]
        if self._disk is not None and missing:
            read = self._disk.read(keys[i] for i in missing)
            for i, value in zip(missing, read, strict=True):
                values[i] = value
            self._keep({keys[i]: values[i] for i in missing}, num_clears)
        found = [None if value is None else CachedScore.read(value) for value in values]
        num_hits = sum(score is not None for score in found)
        with self._lock:
            self._num_hits += num_hits
            self._num_misses += len(keys) - num_hits
        return found

    def put_many(self, scores: Mapping[bytes, CachedScore]) -> None:
        """Keep scores by their keys; those that cannot be written down are not kept.

        Nobody waits for a disk: there they are a little later, or after `close`.
        """
        written = {key: score.written() for key, score in scores.items()}
        values = {key: value for key, value in written.items() if value is not None}
        self._keep(values)
        if self._disk is not None and values:
            self._disk.write(values)

    def clear(self) -> None:
        """Forget all scores, on disk as well, and those on their way there. The counts stay.

        Raises:
            SIEError: Those on disk could not be removed, or not all.
        """
        try:
            if self._disk is not None:
                self._disk.clear()
        finally:
            with self._lock:
                self._memory.clear()
                self._num_clears += 1

    def stats(self) -> ScoreCacheStats:
        """Count what it holds, and its hits and misses so far."""
        num_on_disk = 0 if self._disk is None else len(self._disk)
        with self._lock:
            return ScoreCacheStats(
                num_hits=self._num_hits,
                num_misses=self._num_misses,
                num_entries=len(self._memory),
                num_bytes=int(self._memory.currsize),
                max_bytes=self.max_bytes,
                num_disk_entries=num_on_disk,
            )

    def close(self) -> None:
        """Wait until all is on disk, and close the files of this thread and of the one that writes.

        Those that other threads read are closed with these threads. A closed cache can be used: it
        opens its files anew.
        """
        if self._disk is not None:
            self._disk.close()

    def __copy__(self) -> ScoreCache:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> ScoreCache:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("max_bytes", "folder", "max_disk_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        on_disk = "" if self.folder is None else f", folder={str(self.folder)!r}"
        return f"ScoreCache({self.max_bytes}{on_disk})"

    def _open(self) -> None:
        self._begin()
        self._disk = None if self.folder is None else ScoreFolder(self.folder, self.max_disk_bytes)
        _caches.add(self)

    def _begin(self) -> None:
        """Begin with nothing in memory."""
        try:
            import cachetools
        except ImportError as exc:
            msg = "score_cache needs cachetools: pip install 'sie-core[cache]'"
            raise MissingDependencyError(msg) from exc
        self._lock = threading.Lock()
        self._memory: cachetools.LRUCache[bytes, bytes] = cachetools.LRUCache(
            self.max_bytes, getsizeof=_num_bytes
        )
        self._num_hits = self._num_misses = self._num_clears = 0

    def _keep(self, values: Mapping[bytes, bytes | None], num_clears: int | None = None) -> None:
        """Keep values in memory, unless it was cleared since they were read."""
        with self._lock:
            if num_clears not in (None, self._num_clears):
                return
            for key, value in values.items():
                if value is not None and _num_bytes(value) <= self.max_bytes:
                    self._memory[key] = value


_caches: weakref.WeakSet[ScoreCache] = weakref.WeakSet()


def _begin_in_child() -> None:
    """Begin anew after a fork: a thread that is not there may have been amid a change."""
    for cache in list(_caches):
        cache._begin()  # noqa: SLF001  it is of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


@dataclass(frozen=True, slots=True)
class CachedScore:
    """What is kept of a pair.

    Attributes:
        score: As the model gave it.
        space: What it is, as far as the reply said.
        more: What else the reply said of this item.
    """

    score: float
    space: ScoreSpace | None
    more: Mapping[str, Any]

    @classmethod
    def of(cls, entry: Mapping[str, Any], space: ScoreSpace | None) -> CachedScore:
        """Take what is to be kept from an entry of a reply."""
        more = {key: value for key, value in entry.items() if key not in _FOUND_ANEW}
        return cls(entry["score"], space, more)

    def written(self) -> bytes | None:
        """Return it as bytes; None where a given client said something that has no such form."""
        if self.space not in _SPACES:
            return None
        head = _HEAD.pack(self.score, _SPACES.index(self.space))
        try:
            return head + json.dumps(self.more).encode() if self.more else head
        except (TypeError, ValueError):
            return None

    @classmethod
    def read(cls, value: bytes) -> CachedScore | None:
        """Do the opposite of `written`; None where it is of a version that writes otherwise."""
        try:
            score, space = _HEAD.unpack_from(value)
            more = json.loads(value[_HEAD.size :]) if len(value) > _HEAD.size else {}
            return cls(score, _SPACES[space], more)
        except (struct.error, IndexError, ValueError):
            return None


def score_keys(
    source: str,
    model: str,
    query: Item,
    texts: Iterable[str],
    arguments: Mapping[str, Any],
) -> list[bytes]:
    """Return the key of each text's score: a hash of all that decides it.

    Args:
        source: Whose weights they are; see `source_of`.
        model: As it is asked for.
        query: What is looked for.
        texts: What is scored.
        arguments: Of the client's `score`.
    """
    options = arguments.get("options") or {}
    asked = {
        **{name: arguments.get(name) for name in ("instruction", "gpu")},
        "options": {name: it for name, it in options.items() if name not in _WITHOUT_EFFECT},
    }
    head = json.dumps([source, model, asked, query["text"]], sort_keys=True, default=repr)
    begun = hashlib.blake2b(head.encode(errors="surrogatepass") + b"\0", digest_size=20)
    keys: list[bytes] = []
    for text in texts:
        hashed = begun.copy()
        hashed.update(text.encode(errors="surrogatepass"))
        keys.append(hashed.digest())
    return keys


def source_of(client: Any, model: str, lora: str | None) -> str | None:
    """Say whose scores a client would give now; None where that cannot be told before it is asked.

    For a model in this process these are the weights that its name means now; for a server its
    address, since no client can see what weights it has, and what our clients ask it for of their
    own accord.
    """
    ask = getattr(client, "source_of", None)
    if ask is not None:
        found: str | None = ask(model, lora)
        return found
    base_url = getattr(client, "base_url", None)
    return str(base_url) if base_url else _name_of_object(client)


def source_of_reply(reply: Reply, source: str | None) -> str | None:
    """Say under whose name a reply's scores may be kept; None where they may not.

    Args:
        reply: What the client answered.
        source: What `source_of` said before it was asked.
    """
    if reply.get("status") not in (None, "complete"):
        return None
    named: str | None = reply.get("source")
    return source if named is None else named


_object_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _name_of_object(client: Any) -> str | None:
    """Return a name for a client of unknown kind, which no other has, in no process."""
    try:
        return _object_names.setdefault(client, f"client {uuid.uuid4().hex}")
    except TypeError:  # it has no weak references, or no hash
        return None


def _num_bytes(value: bytes) -> int:
    return _ENTRY_BYTES + len(value) - _HEAD.size


def _check_bytes(number: int, name: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        msg = f"{name} must be an integer of 1 or more, but got {number!r}"
        raise InvalidRequestError(msg)
    return number
