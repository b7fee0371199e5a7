"""Texts to token ids: the query once, each document once, pairs put together on ids.

The tokenizer's own truncation is never used. It is a setting of the shared tokenizer object, so
that one thread's maximum length would cut another thread's batch; ids are cut here instead, by
the same rule (`longest_first`) as the tokenizers library has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from sie_core.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document as the model reads them, special tokens included."""

    token_ids: list[int]
    type_ids: list[int]
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """The special tokens around a query and a document, and the type ids of each part."""

    before: list[int]
    between: list[int]
    after: list[int]
    query_type: int
    document_type: int
    before_types: list[int]
    between_types: list[int]
    after_types: list[int]

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
        query_end = query_at + sequences.count(0)
        document_end = document_at + sequences.count(1)
        if query_end > document_at:
            msg = "the model's tokenizer puts the document before the query, which is unsupported"
            raise UnsupportedModelError(msg)
        ids, types = sample.ids, sample.type_ids
        return cls(
            before=ids[:query_at],
            between=ids[query_end:document_at],
            after=ids[document_end:],
            query_type=types[query_at],
            document_type=types[document_at],
            before_types=types[:query_at],
            between_types=types[query_end:document_at],
            after_types=types[document_end:],
        )


class PairTokenizer:
    """Makes pairs of token ids. Safe to share between threads: nothing in it ever changes.

    Args:
        tokenizer: A fast tokenizer; its truncation and padding are switched off for good.
        truncation_side: Which end of a text is cut.
    """

    def __init__(self, tokenizer: Tokenizer, *, truncation_side: Side = "right") -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._truncation_side = truncation_side
        self.template = PairTemplate.of(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> PairTokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            ModelLoadError: `tokenizer.json` is missing or cannot be read.
        """
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as exc:  # the library raises plain Exception
            msg = (
                f"no fast tokenizer could be read from {folder / 'tokenizer.json'} ({exc}); save "
                "one there with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            )
            raise ModelLoadError(msg) from exc
        side = read_tokenizer_config(folder).get("truncation_side", "right")
        return cls(tokenizer, truncation_side="left" if side == "left" else "right")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise each text without special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def pair(self, query_ids: list[int], document_ids: list[int], max_length: int) -> Pair:
        """Join a query and a document to at most `max_length` tokens."""
        room = max_length - self.template.num_special
        num_query, num_document = truncate_longest_first(len(query_ids), len(document_ids), room)
        is_truncated = num_query < len(query_ids) or num_document < len(document_ids)
        if is_truncated:
            query_ids = self._cut(query_ids, num_query)
            document_ids = self._cut(document_ids, num_document)
        template = self.template
        return Pair(
            token_ids=[
                *template.before,
                *query_ids,
                *template.between,
                *document_ids,
                *template.after,
            ],
            type_ids=[
                *template.before_types,
                *[template.query_type] * num_query,
                *template.between_types,
                *[template.document_type] * num_document,
                *template.after_types,
            ],
            is_truncated=is_truncated,
        )

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

    def _cut(self, ids: list[int], length: int) -> list[int]:
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
