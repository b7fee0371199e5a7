"""Texts to sequences of tokens: a text by itself, as embedding and ColBERT models read it.

A `TextForm` says what stands around a text, one for queries and one for documents::

    [CLS] text [SEP]                                     a sentence encoder
    [CLS] query: text [SEP]                              one that was trained with prompts
    [CLS] [Q] text [SEP] [MASK] [MASK] … [MASK]          a query of a ColBERT
    [CLS] [D] text [SEP]                                 a document of a ColBERT

As in `tokenization`, ids are cut here and never by the shared tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from sie_core.errors import InvalidRequestError, UnsupportedModelError
from sie_core.local.passages import Cutter, PassageList, Passages
from sie_core.local.token_cache import TokenCache
from sie_core.local.tokenization import (
    Int32s,
    Side,
    read_tokenizer,
    read_truncation_side,
    token_offsets,
)
from sie_core.long_documents import LongDocuments

_NONE = np.array([], np.int32)


@dataclass(frozen=True, slots=True)
class Text:
    """A text as the model reads it, special tokens included.

    Attributes:
        token_ids: Int32; never to be written to.
        num_seen: How many of them, from the start, are seen by the text's tokens. Masks behind a
            query may see the query and not be seen.
        kept: Positions of the tokens that get a vector where each token gets one; None for all.
        outputs: What is to be made of it: `dense`, `multivector`.
        is_truncated: Whether something was cut off.
    """

    token_ids: Int32s
    num_seen: int
    kept: NDArray[np.intp] | None
    outputs: frozenset[str]
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        """Count the tokens, special ones included."""
        return len(self.token_ids)

    @property
    def num_first(self) -> int:
        """Count the tokens of the first type: all."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """What stands around a text.

    Attributes:
        max_length: Tokens at most, all included.
        prompt: Put before the text, as it is.
        marker: A token behind the first one.
        mask: The token with which every text is filled up to `max_length`; None: it is not.
        are_masks_seen: Whether the text's tokens see those.
        skipped: Tokens that get no vector where each token gets one.
        skips_first: Whether the first token gets none either.
    """

    max_length: int
    prompt: str = ""
    marker: int | None = None
    mask: int | None = None
    are_masks_seen: bool = True
    skipped: tuple[int, ...] = ()
    skips_first: bool = False

    def kept(self, token_ids: Int32s) -> NDArray[np.intp] | None:
        """Return the positions of the tokens that get a vector; None for all."""
        if not self.skipped and not self.skips_first:
            return None
        is_kept = ~np.isin(token_ids, self.skipped)
        if self.skips_first:
            is_kept[0] = False
        return np.flatnonzero(is_kept)


class TextTokenizer:
    """Makes sequences of texts. Safe to share between threads: only its cache ever changes.

    Args:
        tokenizer: A fast tokenizer; its truncation and padding are switched off for good.
        truncation_side: Which end of a text is cut.
    """

    def __init__(self, tokenizer: Tokenizer, *, truncation_side: Side = "right") -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._truncation_side = truncation_side
        self._before, self._after = _read_template(tokenizer)
        self.cache = TokenCache()

    @classmethod
    def load(cls, folder: Path, *, lowercases: bool = False) -> TextTokenizer:
        """Read the tokenizer of a model folder.

        Args:
            folder: The folder.
            lowercases: Whether texts are lowercased before anything else.

        Raises:
            ModelLoadError: `tokenizer.json` is missing or cannot be read.
        """
        tokenizer = read_tokenizer(folder)
        if lowercases:
            others = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
        return cls(tokenizer, truncation_side=read_truncation_side(folder))

    def token_id(self, token: str) -> int | None:
        """Return the id of one token, None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def first_id(self, text: str) -> int | None:
        """Return the first id of a text's tokens."""
        [ids] = self._encode([text])
        return int(ids[0]) if len(ids) else None

    def sequences(
        self, texts: Sequence[str], form: TextForm, *, outputs: frozenset[str]
    ) -> list[Text]:
        """Make a sequence of every text. Only those that the cache does not have are tokenised."""
        return [self._sequence(ids, form, outputs) for ids in self._ids(texts, form)]

    def passages(
        self,
        texts: Sequence[str],
        form: TextForm,
        *,
        outputs: frozenset[str],
        settings: LongDocuments,
    ) -> Passages[Text]:
        """Make a sequence of every text, or of each passage of one that is too long."""
        if not settings.has_passages:
            sequences = self.sequences(texts, form, outputs=outputs)
            return Passages.whole(sequences, [sequence.is_truncated for sequence in sequences])
        room = self._room(form)
        cutter = Cutter(
            settings=settings,
            num_lead_chars=len(form.prompt),
            keeps_end=self._truncation_side == "left",
        )
        found: PassageList[Text] = PassageList()
        for text, ids in zip(texts, self._ids(texts, form), strict=True):
            cut = None
            if len(ids) > room:
                cut = cutter.cut(text, ids, self._offsets(form.prompt + text), room)
            if cut is None:
                sequence = self._sequence(ids, form, outputs)
                found.add_whole(sequence, is_truncated=sequence.is_truncated)
            else:
                sequences = [self._sequence(part, form, outputs) for part in cut.parts]
                found.add(sequences, cut.spans, is_truncated=cut.is_truncated)
        return found.passages()

    def _ids(self, texts: Sequence[str], form: TextForm) -> list[Int32s]:
        texts = [form.prompt + text for text in texts] if form.prompt else list(texts)
        known = self.cache.get_many(texts)
        new = [text for text, ids in zip(texts, known, strict=True) if ids is None]
        new_ids = self._encode(new)
        self.cache.put_many(new, new_ids)
        coming = iter(new_ids)
        return [next(coming) if ids is None else ids for ids in known]

    def _offsets(self, text: str) -> Int32s:
        """Return where a text's tokens stand in it; [tokens, 2]."""
        offsets = self.cache.get_offsets(text)
        if offsets is None:
            offsets = token_offsets(self._tokenizer, text)
            self.cache.put_offsets(text, offsets)
        return offsets

    def check_max_length(self, max_length: int, form: TextForm, longest: int) -> None:
        """Raise InvalidRequestError unless `max_length` leaves room for a token and can be read."""
        shortest = self._num_special(form) + 1
        is_integer = isinstance(max_length, int) and not isinstance(max_length, bool)
        if not is_integer or not shortest <= max_length <= longest:
            msg = (
                f"max_length must be an integer from {shortest} to {longest}, the most that this "
                f"model reads, but got {max_length!r}"
            )
            raise InvalidRequestError(msg)

    def shorten(self, form: TextForm, num_tokens: int) -> TextForm:
        """Return the form of texts that keep at most `num_tokens` of their own."""
        most = num_tokens + self._num_special(form)
        return replace(form, max_length=min(form.max_length, most))

    def _num_special(self, form: TextForm) -> int:
        return len(self._before) + len(self._after) + (form.marker is not None)

    def _room(self, form: TextForm) -> int:
        return max(0, form.max_length - self._num_special(form))

    def _sequence(self, ids: Int32s, form: TextForm, outputs: frozenset[str]) -> Text:
        room = self._room(form)
        is_truncated = len(ids) > room
        if is_truncated:
            ids = ids[len(ids) - room :] if self._truncation_side == "left" else ids[:room]
        marker = _NONE if form.marker is None else np.array([form.marker], np.int32)
        before = np.concatenate((self._before[:1], marker, self._before[1:]))
        token_ids = np.concatenate((before, ids, self._after))
        num_seen = len(token_ids)
        if form.mask is not None:
            masks = np.full(max(0, form.max_length - num_seen), form.mask, np.int32)
            token_ids = np.concatenate((token_ids, masks))
        if form.are_masks_seen:
            num_seen = len(token_ids)
        return Text(token_ids, num_seen, form.kept(token_ids), outputs, is_truncated)

    def _encode(self, texts: Sequence[str]) -> list[Int32s]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def _read_template(tokenizer: Tokenizer) -> tuple[Int32s, Int32s]:
    """Return the special tokens before and after a text, off one that the tokenizer encodes.

    Raises:
        UnsupportedModelError: None stands before it: there is no token to read a text off.
    """
    sample = tokenizer.encode("a")
    ids, is_special = np.array(sample.ids, np.int32), np.array(sample.special_tokens_mask, bool)
    inside = np.flatnonzero(~is_special)
    if not len(inside) or inside[0] == 0:
        msg = (
            "the model's tokenizer puts no special token before a text; encoders that run here "
            "have one ([CLS] or <s>)"
        )
        raise UnsupportedModelError(msg)
    return ids[: inside[0]], ids[inside[-1] + 1 :]
