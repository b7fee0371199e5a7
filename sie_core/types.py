"""The shapes that callers, clients and the wire share.

They are typed dictionaries, as in the SIE protocol itself: `Item(text="…")` is a plain `dict`,
travels as msgpack or JSON unchanged, and a result is read with `result["scores"]`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict, get_args

if TYPE_CHECKING:
    import numpy as np

ScoreSpace = Literal["raw", "probability"]
"""`raw`: the model's logit. `probability`: its sigmoid, between 0 and 1."""

RerankSpace = Literal["raw", "probability", "calibrated"]
"""What a reranker's scores are; `calibrated`: probabilities fitted on judged pairs."""

Mode = Literal["auto", "exact", "fast"]
"""`exact`: float32. `fast`: half precision, where that is faster. `auto`: fast, else exact."""

MODES: tuple[Mode, ...] = get_args(Mode)


_HALVES_OF_PAIRS = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    r"""Put U+FFFD in the place of each half of a surrogate pair, such as `\ud83d`.

    Texts cut in the middle of a character, as JSON may hold them, have such halves: neither a
    tokenizer nor a server takes them. The length stays, and so does every place in the text.
    """
    return text if text.isascii() else _HALVES_OF_PAIRS.sub("\ufffd", text)


class Item(TypedDict, total=False):
    """What is scored or encoded: a text, with an id by which its score is found again.

    In place of the text, or beside it, `multivector` holds what a late-interaction model in this
    process made of it ([num_tokens, token_dims], float32 or float16): scoring by that model then
    need not encode it again. Servers do not take vectors.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    multivector: np.ndarray[Any, np.dtype[Any]]


class ScoreEntry(TypedDict):
    """The score of one item. Rank 0 is the best.

    `span` is there where the item was longer than the model reads and scored by passages: where the
    best passage begins and ends, in characters of the item's text.
    """

    item_id: str
    score: float
    rank: int
    span: NotRequired[list[int]]


class Usage(TypedDict, total=False):
    """What a call consumed.

    `input_tokens` counts tokens over all pairs, special tokens included; `truncated_items` counts
    the items that were longer than the model's maximum length and lost their end. Where long
    documents are scored by passages, `passages` counts those of all items, and an item is truncated
    if it had more of them than were allowed.
    """

    input_tokens: int
    truncated_items: int
    passages: int


COUNTS: tuple[Literal["input_tokens", "truncated_items", "passages"], ...] = (
    "input_tokens",
    "truncated_items",
    "passages",
)
"""The fields of `Usage`; those of several calls add up."""


class Timing(TypedDict, total=False):
    """Where a call's time went, in milliseconds, as measured by who computed it.

    `total_ms` is the whole call, the loading of a model included; `queue_ms` from the moment at
    which all was ready until a first batch took some of it; `tokenization_ms` the making of tokens;
    `inference_ms` from the beginning of its first batch to the end of its last. A server says what
    it measured, and in a call of several requests each is that of the slowest.
    """

    total_ms: float
    queue_ms: float
    tokenization_ms: float
    inference_ms: float


class ScoreResult(TypedDict):
    """Scores of one query against its items, best first.

    `long_documents` is there where a call asked for it: what was done with long items.
    `source` names the very weights that gave the scores, where they are known: another name means
    that scores may differ. `truncated` holds the ids of the items that were longer than the model
    reads, where there are such, and the server, if one was asked, names them.
    """

    model: str
    query_id: str | None
    scores: list[ScoreEntry]
    usage: NotRequired[Usage]
    score_space: NotRequired[ScoreSpace]
    long_documents: NotRequired[str]
    timing: NotRequired[Timing]
    source: NotRequired[str]
    truncated: NotRequired[list[str]]


class SparseVector(TypedDict):
    """The entries of a sparse embedding that are not zero."""

    indices: np.ndarray[Any, np.dtype[Any]]
    values: np.ndarray[Any, np.dtype[Any]]


class EncodeResult(TypedDict, total=False):
    """Embeddings of one item: `dense` is [dims], `multivector` is [num_tokens, token_dims].

    `timing` and `usage` are those of the call, or of the request to a server, which the item was
    in; servers do not always tell.
    """

    id: str
    dense: np.ndarray[Any, np.dtype[Any]]
    multivector: np.ndarray[Any, np.dtype[Any]]
    sparse: SparseVector
    timing: Timing
    usage: Usage


class ScoringClient(Protocol):
    """Anything that scores items against a query: `LocalClient`, `SIEClient`, a chain of them."""

    @property
    def score(self) -> Callable[..., Mapping[str, Any]]:
        """The function `score(model, query, items, **options)`; it returns a `ScoreResult`."""
        ...


class AsyncScoringClient(Protocol):
    """The same for asyncio: `LocalAsyncClient`, `SIEAsyncClient`."""

    @property
    def score(self) -> Callable[..., Awaitable[Mapping[str, Any]]]:
        """The coroutine function `score(model, query, items, **options)`."""
        ...


class EncodingClient(Protocol):
    """Anything that turns items into embeddings: `LocalClient`, `SIEClient`."""

    @property
    def encode(self) -> Callable[..., Any]:
        """The function `encode(model, items, **options)`; it returns a list of `EncodeResult`."""
        ...


class AsyncEncodingClient(Protocol):
    """The same for asyncio: `LocalAsyncClient`, `SIEAsyncClient`."""

    @property
    def encode(self) -> Callable[..., Awaitable[Any]]:
        """The coroutine function `encode(model, items, **options)`."""
        ...
