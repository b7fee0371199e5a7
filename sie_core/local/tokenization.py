"""Texts to token ids: the query once, each document once, pairs put together on ids.

The tokenizer's own truncation is never used. It is a setting of the shared tokenizer object, so
that one thread's maximum length would cut another thread's batch; ids are cut here instead, by
the same rule (`longest_first`) as the tokenizers library has. Documents' ids are kept in a
`TokenCache`: retrieval brings the same ones again and again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sie_core.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from sie_core.local.passages import Cutter, PassageList, Passages
from sie_core.local.token_cache import TokenCache
from sie_core.long_documents import LongDocuments

Side = Literal["left", "right"]
Int32s = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document as the model reads them, special tokens included.

    Attributes:
        token_ids: Of both, int32; shared with the caches, so never to be written to.
        num_first: How many of them have the type id 0; those behind them have 1.
        is_truncated: Whether something was cut off.
    """

    token_ids: Int32s
    num_first: int
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        """Count the tokens of both, special ones included."""
        return len(self.token_ids)

    @property
    def num_seen(self) -> int:
        """Count the tokens that attention looks at: all."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """The special tokens around a query and a document, and where the type ids change.

    Attributes:
        before: Special tokens before the query.
        between: Those between query and document.
        after: Those after the document.
        num_first_special: How many of them, counted from the start, belong to the first type;
            None where the tokenizer has one type only.
    """

    before: Int32s
    between: Int32s
    after: Int32s
    num_first_special: int | None

    @property
    def num_special(self) -> int:
        """Count the special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PairTemplate:
        """Read the template off a pair that the tokenizer itself puts together.

        Raises:
            UnsupportedModelError: The tokenizer does not join a pair as query, then document.
        """
        sample = tokenizer.encode("a", "a")
        sequences = sample.sequence_ids
        if 0 not in sequences or 1 not in sequences:
            msg = "the model's tokenizer does not encode pairs: it is not a cross-encoder's"
            raise UnsupportedModelError(msg)
        query_at, document_at = sequences.index(0), sequences.index(1)
        num_query, num_document = sequences.count(0), sequences.count(1)
        query_end, document_end = query_at + num_query, document_at + num_document
        if query_end > document_at:
            msg = "the model's tokenizer puts the document before the query, which is unsupported"
            raise UnsupportedModelError(msg)
        ids = np.array(sample.ids, dtype=np.int32)
        num_first = sample.type_ids.count(0)
        num_second = len(ids) - num_first
        is_split = query_end <= num_first <= document_at or num_second == 0
        if sample.type_ids != [0] * num_first + [1] * num_second or not is_split:
            msg = (
                f"the model's tokenizer gives a pair the type ids {sample.type_ids}; supported "
                "are zeros for the query, then ones for the document, or zeros for both"
            )
            raise UnsupportedModelError(msg)
        return cls(
            before=ids[:query_at],
            between=ids[query_end:document_at],
            after=ids[document_end:],
            num_first_special=num_first - num_query if num_second else None,
        )


class PairTokenizer:
    """Makes pairs of token ids. Safe to share between threads: only its cache ever changes.

    Args:
        tokenizer: A fast tokenizer; its truncation and padding are switched off for good.
        truncation_side: Which end of a text is cut.
        cache: Keeps documents' ids; None makes one of the default size.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        truncation_side: Side = "right",
        cache: TokenCache | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._truncation_side = truncation_side
        self.template = PairTemplate.of(tokenizer)
        self.cache = TokenCache() if cache is None else cache

    @classmethod
    def load(cls, folder: Path) -> PairTokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            ModelLoadError: `tokenizer.json` is missing or cannot be read.
        """
        return cls(read_tokenizer(folder), truncation_side=read_truncation_side(folder))

    def encode(self, texts: Sequence[str]) -> list[Int32s]:
        """Tokenise each text without special tokens; the cache is neither asked nor filled."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_pairs(
        self,
        query: str,
        documents: Sequence[str],
        max_length: int,
        *,
        max_document_length: int | None = None,
    ) -> list[Pair]:
        """Make a pair of the query and each document, of at most `max_length` tokens.

        A document is first cut to `max_document_length`, where that is given. Only documents that
        the cache does not have are tokenised, all in one call, with the query.
        """
        return self._pair_each(*self._ids(query, documents), max_length, max_document_length)

    def encode_passages(
        self,
        query: str,
        documents: Sequence[str],
        max_length: int,
        *,
        max_document_length: int | None = None,
        settings: LongDocuments,
    ) -> Passages[Pair]:
        """Make a pair of the query and each document, or of each passage of a long one.

        What fits beside the query makes the same pair as `encode_pairs`. What does not is cut into
        passages as long as what is left of it there.
        """
        query_ids, document_ids = self._ids(query, documents)
        if not settings.has_passages:
            pairs = self._pair_each(query_ids, document_ids, max_length, max_document_length)
            return Passages.whole(pairs, [pair.is_truncated for pair in pairs])
        cutter = Cutter(settings=settings, keeps_end=self._truncation_side == "left")
        room = max_length - self.template.num_special
        found: PassageList[Pair] = PassageList()
        for text, ids in zip(documents, document_ids, strict=True):
            num_query, num_document = truncate_longest_first(len(query_ids), len(ids), room)
            cut = None
            if num_document < len(ids):
                offsets = self._offsets(text)
                cut = cutter.cut(text, ids, offsets, num_document)
            if cut is None:
                pair = self.pair(query_ids, ids, max_length)
                found.add_whole(pair, is_truncated=pair.is_truncated)
                continue
            kept = self._cut(query_ids, num_query)
            found.add(
                self._pair_each(kept, cut.parts, max_length),
                cut.spans,
                is_truncated=cut.is_truncated or num_query < len(query_ids),
            )
        return found.passages()

    def _ids(self, query: str, documents: Sequence[str]) -> tuple[Int32s, list[Int32s]]:
        """Tokenise the query and, in the same call, the documents that the cache does not have."""
        known = self.cache.get_many(documents)
        new = [text for text, ids in zip(documents, known, strict=True) if ids is None]
        query_ids, *new_ids = self.encode([query, *new])
        self.cache.put_many(new, new_ids)
        coming = iter(new_ids)
        return query_ids, [next(coming) if ids is None else ids for ids in known]

    def _offsets(self, text: str) -> Int32s:
        """Return where a document's tokens stand in it; [tokens, 2]."""
        offsets = self.cache.get_offsets(text)
        if offsets is None:
            offsets = token_offsets(self._tokenizer, text)
            self.cache.put_offsets(text, offsets)
        return offsets

    def pair(self, query_ids: Int32s, document_ids: Int32s, max_length: int) -> Pair:
        """Join a query and a document to at most `max_length` tokens."""
        [pair] = self._pair_each(query_ids, [document_ids], max_length)
        return pair

    def _pair_each(
        self,
        query_ids: Int32s,
        all_document_ids: Sequence[Int32s],
        max_length: int,
        max_document_length: int | None = None,
    ) -> list[Pair]:
        """Join a query and each document; what stands before a document is joined once."""
        template, pairs = self.template, []
        room = max_length - template.num_special
        whole = np.concatenate((template.before, query_ids, template.between))
        for document_ids in all_document_ids:
            first, second = whole, document_ids
            num_query, num_document = len(query_ids), len(document_ids)
            if max_document_length is not None:
                num_document = min(num_document, max_document_length)
            is_truncated = num_document < len(document_ids) or num_query + num_document > room
            if is_truncated:
                num_query, num_document = truncate_longest_first(num_query, num_document, room)
                second = self._cut(document_ids, num_document)
                if num_query < len(query_ids):
                    query = self._cut(query_ids, num_query)
                    first = np.concatenate((template.before, query, template.between))
            token_ids = np.concatenate((first, second, template.after))
            split = template.num_first_special
            num_first = len(token_ids) if split is None else split + num_query
            pairs.append(Pair(token_ids, num_first, is_truncated))
        return pairs

    def check_max_length(self, max_length: int, longest: int) -> None:
        """Raise InvalidRequestError unless a pair of `max_length` tokens can be made and read."""
        shortest = self.template.num_special + 2
        is_integer = isinstance(max_length, int) and not isinstance(max_length, bool)
        if not is_integer or not shortest <= max_length <= longest:
            msg = (
                f"max_length must be an integer from {shortest} to {longest}, the most that this "
                f"model reads, but got {max_length!r}"
            )
            raise InvalidRequestError(msg)

    def _cut(self, ids: Int32s, length: int) -> Int32s:
        if self._truncation_side == "left":
            return ids[len(ids) - length :]
        return ids[:length]


def truncate_longest_first(num_query: int, num_document: int, room: int) -> tuple[int, int]:
    """Return how many tokens of the query and of the document fit into `room` together.

    The longer of the two gives way until both are equally long, then both do; an odd token goes
    to the longer one. This is the `longest_first` strategy of the tokenizers library.
    """
    if num_query + num_document <= room:
        return num_query, num_document
    shorter, longer = sorted((num_query, num_document))
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if num_query > num_document else (shorter, longer)


def token_offsets(tokenizer: Tokenizer, text: str) -> Int32s:
    """Return where each token of a text begins and ends, in characters; [tokens, 2]."""
    [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)
    return np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the fast tokenizer of a model folder.

    Raises:
        ModelLoadError: `tokenizer.json` is missing or cannot be read.
    """
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as exc:  # the library raises plain Exception
        msg = (
            f"no fast tokenizer could be read from {folder / 'tokenizer.json'} ({exc}); save "
            "one there with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
        raise ModelLoadError(msg) from exc


def read_truncation_side(folder: Path) -> Side:
    """Return which end of a text a model folder's tokenizer cuts."""
    side = read_tokenizer_config(folder).get("truncation_side", "right")
    return "left" if side == "left" else "right"


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return `tokenizer_config.json` of a model folder, empty where there is none."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        msg = f"{path} could not be read: {exc}"
        raise ModelLoadError(msg) from exc
    return config
