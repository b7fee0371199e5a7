"""`PromptTokenizer`: a query and its documents to prompts of token ids, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sie_core.errors import InvalidRequestError, UnsupportedModelError
from sie_core.local.prefix import DecoderSequence, Prefix
from sie_core.local.prompts import Prompt
from sie_core.local.token_cache import TokenCache
from sie_core.local.tokenization import Int32s, read_tokenizer, read_tokenizer_config

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
        """Make a prompt of the query and each document, of at most `max_length` tokens.

        Of a document at most `max_document_length` are kept, where that is given. Only documents
        that the cache does not have are tokenised, all in one call, with the query.
        Several documents share what stands before them; one has nobody to share it with.
        """
        known = self.cache.get_many(documents)
        new = [text for text, ids in zip(documents, known, strict=True) if ids is None]
        texts = [self.prompt.document.format(document=text) for text in new]
        query_ids, *new_ids = self._encode([self.prompt.head(query, instruction), *texts])
        self.cache.put_many(new, new_ids)
        coming = iter(new_ids)
        document_ids = [next(coming) if ids is None else ids for ids in known]
        frame = self._frame if not instruction else self._make_frame(instruction)
        return self._put_together(frame, query_ids, document_ids, max_length, max_document_length)

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
        all_document_ids: Sequence[Int32s],
        max_length: int,
        max_document_length: int | None,
    ) -> list[DecoderSequence]:
        room = self._room(frame, max_length)
        share = self.prompt.query_share
        kept = query_ids[: room * share.numerator // share.denominator]
        head = np.concatenate((frame.opening, kept, frame.joint))
        left = max(0, min(room, max_length - len(head) - len(frame.closing)))
        if max_document_length is not None:
            left = min(left, max_document_length)
        prefix = Prefix(head) if len(all_document_ids) > 1 else None
        begin = [] if prefix else [head]
        return [
            DecoderSequence(
                prefix,
                np.concatenate((*begin, document_ids[:left], frame.closing)),
                len(kept) < len(query_ids) or len(document_ids) > left,
            )
            for document_ids in all_document_ids
        ]

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
