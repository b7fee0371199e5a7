"""`TokenCache`: the token ids of texts seen before, up to a number of bytes.

Of long texts that are read in passages it also keeps where each token stands in the text.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sie_core.errors import InvalidRequestError
from sie_core.settings import TOKEN_CACHE_BYTES

_LARGEST_SHARE = 16
"""A text that alone takes more than this part of the cache is not kept: it would drive out many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCacheStats:
    """What a cache holds, and how often it was asked.

    Attributes:
        num_hits: Texts that were there.
        num_misses: Texts that were not.
        num_texts: Texts held now.
        num_bytes: What they, their ids and the tokens' places take.
        max_bytes: The bound.
    """

    num_hits: int
    num_misses: int
    num_texts: int
    num_bytes: int
    max_bytes: int


class TokenCache:
    """Keeps the ids of the texts used last. Safe to share between threads.

    Whole calls are looked up and kept under one lock each, since a call has many texts.

    Args:
        max_bytes: Bound on texts and ids together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = TOKEN_CACHE_BYTES) -> None:
        self._max_bytes = check_token_cache_bytes(max_bytes)
        self._ids_of: OrderedDict[str, NDArray[np.int32]] = OrderedDict()
        self._offsets_of: dict[str, NDArray[np.int32]] = {}
        self._num_bytes = 0
        self._num_hits = self._num_misses = 0
        self.reset_lock()

    def reset_lock(self) -> None:
        """Make the lock anew: in a forked child, a thread that is not there may hold it."""
        self._lock = threading.Lock()

    def get_many(self, texts: Sequence[str]) -> list[NDArray[np.int32] | None]:
        """Return the ids of each text, None where they are not known."""
        if not self._max_bytes:
            return [None] * len(texts)
        with self._lock:
            found = [self._ids_of.get(text) for text in texts]
            for text, ids in zip(texts, found, strict=True):
                if ids is not None:
                    self._ids_of.move_to_end(text)
            num_misses = sum(ids is None for ids in found)
            self._num_misses += num_misses
            self._num_hits += len(texts) - num_misses
        return found

    def put_many(self, texts: Sequence[str], all_ids: Sequence[NDArray[np.int32]]) -> None:
        """Keep the ids of texts, in place of those not used for the longest time."""
        if not self._max_bytes:
            return
        with self._lock:
            for text, ids in zip(texts, all_ids, strict=True):
                num_bytes = _num_bytes(text, ids)
                if text in self._ids_of or num_bytes > self._max_bytes // _LARGEST_SHARE:
                    continue
                self._ids_of[text] = ids
                self._num_bytes += num_bytes
            self._shrink()

    def get_offsets(self, text: str) -> NDArray[np.int32] | None:
        """Return where a text's tokens begin and end, [tokens, 2]; None where that is not known."""
        with self._lock:
            return self._offsets_of.get(text)

    def put_offsets(self, text: str, offsets: NDArray[np.int32]) -> None:
        """Keep where a text's tokens stand for as long as its ids are kept."""
        with self._lock:
            ids = self._ids_of.get(text)
            if ids is None or text in self._offsets_of:
                return
            num_bytes = sys.getsizeof(offsets) + _ENTRY_BYTES
            if _num_bytes(text, ids) + num_bytes > self._max_bytes // _LARGEST_SHARE:
                return
            self._offsets_of[text] = offsets
            self._num_bytes += num_bytes
            self._shrink()

    def resize(self, max_bytes: int) -> None:
        """Change the bound; what no longer fits is dropped."""
        max_bytes = check_token_cache_bytes(max_bytes)
        with self._lock:
            self._max_bytes = max_bytes
            self._shrink()

    def stats(self) -> TokenCacheStats:
        """Count what it holds, and its hits and misses so far."""
        with self._lock:
            return TokenCacheStats(
                num_hits=self._num_hits,
                num_misses=self._num_misses,
                num_texts=len(self._ids_of),
                num_bytes=self._num_bytes,
                max_bytes=self._max_bytes,
            )

    def _shrink(self) -> None:
        while self._num_bytes > self._max_bytes:
            text, ids = self._ids_of.popitem(last=False)
            self._num_bytes -= _num_bytes(text, ids)
            offsets = self._offsets_of.pop(text, None)
            if offsets is not None:
                self._num_bytes -= sys.getsizeof(offsets) + _ENTRY_BYTES


def check_token_cache_bytes(max_bytes: int) -> int:
    """Return `max_bytes`.

    Raises:
        InvalidRequestError: It is not an integer of 0 or more.
    """
    is_integer = isinstance(max_bytes, int) and not isinstance(max_bytes, bool)
    if not is_integer or max_bytes < 0:
        msg = f"token_cache_bytes must be an integer of 0 or more, but got {max_bytes!r}"
        raise InvalidRequestError(msg)
    return max_bytes


_ENTRY_BYTES = 100
"""What a dictionary's entry with its links takes besides the text and the array."""


def _num_bytes(text: str, ids: NDArray[np.int32]) -> int:
    return sys.getsizeof(text) + sys.getsizeof(ids) + _ENTRY_BYTES
