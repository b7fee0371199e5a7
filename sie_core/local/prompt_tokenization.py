"""`PromptTokenizer`: a query and its documents to prompts of token ids, part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sie_core.errors import InvalidRequestError, UnsupportedModelError
from sie_core.local.passages import Cutter, PassageList, Passages, Span
from sie_core.local.prefix import DecoderSequence, Prefix
from sie_core.local.prompts import Prompt
from sie_core.local.token_cache import TokenCache
from sie_core.local.tokenization import (
    Int32s,
    read_tokenizer,
    read_tokenizer_config,
    token_offsets,
)
from sie_core.long_documents import LongDocuments

_MIN_ROOM = 5
"""Room in which, by every family's rule, a query and a document keep a token each."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands around a query and its document.

    Attributes:
        opening: Before the query.
        joint: Between query and document.
        closing: Behind the document.
    """

    opening: Int32s
    joint: Int32s
    closing: Int32s


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as it is read.

    Attributes:
        parts: Tokens of each of its passages; of all that is read, where it is not in passages.
        spans: Where each of those is in the text.
        is_truncated: Whether something of it is not read.
    """

    parts: Sequence[Int32s]
    spans: Sequence[Span | None]
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What stands around the documents of a call.

    Attributes:
        head: Before each document.
        closing: Behind each document.
        room: Tokens of a document.
        is_query_cut: Whether the query lost its end.
    """

    head: Int32s
    closing: Int32s
    room: int
    is_query_cut: bool

    def all(self, documents: Iterable[_Document]) -> Passages[DecoderSequence]:
        """Put the head before, and the closing behind, every part of every document."""
        found = list(documents)
        is_shared = sum(len(document.parts) for document in found) > 1
        prefix = Prefix(self.head) if is_shared else None
        begin = [] if prefix else [self.head]
        prompts: PassageList[DecoderSequence] = PassageList()
        for document in found:
            is_truncated = document.is_truncated or self.is_query_cut
            sequences = [
                DecoderSequence(prefix, np.concatenate((*begin, part, self.closing)), is_truncated)
                for part in document.parts
            ]
            prompts.add(sequences, document.spans, is_truncated=is_truncated)
        return prompts.passages()


class PromptTokenizer:
    """Makes prompts of token ids. Safe to share between threads: only its cache ever changes.

    Args:
        tokenizer: A fast tokenizer; its truncation and padding are switched off for good.
        prompt: The family's.
        bos_token_id: What stands first; None for nothing.
        cache: Keeps documents' ids; None makes one of the default size.

    Raises:
        UnsupportedModelError: An answer is no token of this tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Prompt,
        *,
        bos_token_id: int | None = None,
        cache: TokenCache | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._bos = [] if bos_token_id is None else [bos_token_id]
        self.prompt = prompt
        self.cache = TokenCache() if cache is None else cache
        self._frame = self._make_frame(None)
        answers = (
            [prompt.positive] if prompt.negative is None else [prompt.positive, prompt.negative]
        )
        self.answer_ids = [self._token_id(answer) for answer in answers]

    @classmethod
    def load(cls, folder: Path, prompt: Prompt) -> PromptTokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            ModelLoadError: `tokenizer.json` is missing or cannot be read.
            UnsupportedModelError: An answer is no token of this tokenizer.
        """
        tokenizer = read_tokenizer(folder)
        bos = _bos_token_id(tokenizer, folder) if prompt.begins_with_bos else None
        return cls(tokenizer, prompt, bos_token_id=bos)

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        max_length: int,
        max_document_length: int | None = None,
    ) -> list[DecoderSequence]:
        """Make a prompt of the query and each document, of at most `max_length` tokens."""
        return self.encode_passages(
            query,
            documents,
            instruction=instruction,
            max_length=max_length,
            max_document_length=max_document_length,
            settings=LongDocuments(),
        ).sequences

    def encode_passages(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None,
        max_length: int,
        max_document_length: int | None = None,
        settings: LongDocuments,
    ) -> Passages[DecoderSequence]:
        """Make a prompt of the query and each document, or of each passage of a long one.

        Of a document at most `max_document_length` tokens are kept, where that is given. Only
        documents that the cache does not have are tokenised, all in one call, with the query.
        Several prompts share what stands before the documents; one has nobody to share it with.
        """
        known = self.cache.get_many(documents)
        new = [text for text, ids in zip(documents, known, strict=True) if ids is None]
        texts = [self.prompt.document.format(document=text) for text in new]
        query_ids, *new_ids = self._encode([self.prompt.head(query, instruction), *texts])
        self.cache.put_many(new, new_ids)
        coming = iter(new_ids)
        document_ids = [next(coming) if ids is None else ids for ids in known]
        frame = self._frame if not instruction else self._make_frame(instruction)
        put = self._put_together(frame, query_ids, max_length, max_document_length)
        return put.all(self._cut(documents, document_ids, put, settings))

    def check_max_length(self, max_length: int, longest: int, instruction: str | None) -> None:
        """Raise InvalidRequestError unless prompts of `max_length` tokens can be made and read."""
        frame = self._make_frame(instruction)
        [empty] = self._encode([self.prompt.head("", instruction)])
        fixed = -self._room(frame, 0) + len(empty) + len(frame.joint)
        shortest = fixed + _MIN_ROOM
        is_integer = isinstance(max_length, int) and not isinstance(max_length, bool)
        if not is_integer or not shortest <= max_length <= longest:
            msg = (
                f"max_length must be an integer from {shortest}, which the prompt and a few words "
                f"take, to {longest}, the most that this model reads, but got {max_length!r}"
            )
            raise InvalidRequestError(msg)

    def _put_together(
        self,
        frame: _Frame,
        query_ids: Int32s,
        max_length: int,
        max_document_length: int | None,
    ) -> _Prompts:
        """Join all that stands around a document."""
        room = self._room(frame, max_length)
        share = self.prompt.query_share
        kept = query_ids[: room * share.numerator // share.denominator]
        head = np.concatenate((frame.opening, kept, frame.joint))
        left = max(0, min(room, max_length - len(head) - len(frame.closing)))
        if max_document_length is not None:
            left = min(left, max_document_length)
        return _Prompts(head, frame.closing, left, is_query_cut=len(kept) < len(query_ids))

    def _cut(
        self,
        documents: Sequence[str],
        all_ids: Sequence[Int32s],
        prompts: _Prompts,
        settings: LongDocuments,
    ) -> Iterator[_Document]:
        """Cut every document to what fits, or into passages that do."""
        num_lead_chars = self.prompt.document.index("{document}")
        cutter = Cutter(settings=settings, num_lead_chars=num_lead_chars)
        for text, ids in zip(documents, all_ids, strict=True):
            is_long = len(ids) > prompts.room
            cut = None
            if is_long and settings.has_passages:
                cut = cutter.cut(text, ids, self._offsets(text), prompts.room)
            if cut is None:
                yield _Document([ids[: prompts.room]], [None], is_truncated=is_long)
            else:
                yield _Document(cut.parts, cut.spans, is_truncated=cut.is_truncated)

    def _offsets(self, text: str) -> Int32s:
        """Return where a document's tokens stand in its part of the prompt; [tokens, 2]."""
        offsets = self.cache.get_offsets(text)
        if offsets is None:
            part = self.prompt.document.format(document=text)
            offsets = token_offsets(self._tokenizer, part)
            self.cache.put_offsets(text, offsets)
        return offsets

    def _room(self, frame: _Frame, max_length: int) -> int:
        return self.prompt.room(max_length, len(frame.opening), len(frame.closing))

    def _make_frame(self, instruction: str | None) -> _Frame:
        prompt = self.prompt
        opening, joint, *closing = self._encode(
            [prompt.opening, prompt.joint, *prompt.closings(instruction)]
        )
        opening = np.concatenate((np.array(self._bos, np.int32), opening))
        return _Frame(opening, joint, np.concatenate(closing))

    def _encode(self, texts: Sequence[str]) -> list[Int32s]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _token_id(self, answer: str) -> int:
        [ids] = self._encode([answer])
        if len(ids) != 1:
            msg = (
                f"the model's tokenizer has no token {answer!r}, by whose logit such a reranker "
                "answers: it is not one of the rerankers that run here"
            )
            raise UnsupportedModelError(msg)
        return int(ids[0])


def _bos_token_id(tokenizer: Tokenizer, folder: Path) -> int | None:
    """Return the beginning-of-sequence token, None where there is none or it is the padding's."""
    config = read_tokenizer_config(folder)
    bos, pad = (_content(config.get(name)) for name in ("bos_token", "pad_token"))
    return None if bos is None or bos == pad else tokenizer.token_to_id(bos)


def _content(token: str | dict[str, str] | None) -> str | None:
    """Return a special token's text; transformers writes it bare or with its properties."""
    return token["content"] if isinstance(token, dict) else token
