"""Requests and replies of the SIE protocol, as plain values: nothing here reads or writes a socket.

A call becomes one or more `Request`s. Items are encoded once; a call with more of them than a
server takes, or with more bytes, is split into parts, and their answers are put together again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import Any, Final, NotRequired, TypedDict, cast, get_args
from urllib.parse import quote

import numpy as np

from sie_core.errors import InputTooLongError, InvalidRequestError, InvalidResponseError
from sie_core.ranking import match_scores
from sie_core.remote.codec import BodyFormat, decode, encode, to_array
from sie_core.types import (
    COUNTS,
    EncodeResult,
    Item,
    ScoreEntry,
    ScoreResult,
    ScoreSpace,
    SparseVector,
    Timing,
    Usage,
)

PROTOCOL_VERSION: Final = "0.10.1"
"""The server version whose protocol this is; servers compare it with their own."""

_MIB: Final = 1024 * 1024
_SMALL_REPLY_BYTES: Final = 4 * _MIB
_SCORE_ENTRY_BYTES: Final = 1024
_MAX_BYTES_PER_CHAR: Final = 6  # an escape in JSON


class Health(TypedDict):
    """What a server says of itself when asked whether it is alive."""

    status: str
    server_version: NotRequired[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, without address and credentials."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Callable[[], bytes] | None = field(default=None, repr=False)
    max_reply_bytes: int = _SMALL_REPLY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP reply: header names in lower case; a body over the limit is cut and says so."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    is_cut: bool = False

    @property
    def content_type(self) -> str:
        """Return the header, empty where there is none."""
        return self.headers.get("content-type", "")


def automatic_ids(count: int) -> list[str]:
    """Return the names of items without ids: `item-0` and so on."""
    if count <= len(_AUTOMATIC_IDS):
        return _AUTOMATIC_IDS[:count]
    return [f"item-{i}" for i in range(count)]


_AUTOMATIC_IDS: Final = [f"item-{i}" for i in range(512)]
"""Those of a call that fits into one request: made once."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Which ids travel and which the caller sees.

    The caller's own travel only where all are given and unique: otherwise one of them could be
    the same as another, or as one that the server makes up.
    """

    sent: list[str]
    shown: list[str]
    given: list[str | None]

    @classmethod
    def of(cls, items: Sequence[Item]) -> Ids:
        """Choose the ids for a call's items."""
        given = [item.get("id") for item in items]
        if given.count(None) == len(given):
            return cls.automatic(len(given))
        shown = [f"item-{i}" if own is None else own for i, own in enumerate(given)]
        has_all = None not in given and len(set(given)) == len(given)
        return cls(shown if has_all else automatic_ids(len(given)), shown, given)

    @classmethod
    def automatic(cls, count: int) -> Ids:
        """Name items of which none has an id."""
        made = automatic_ids(count)
        return cls(made, made, [None] * count)


@dataclass(frozen=True, slots=True)
class Batch:
    """A call's items, checked, and the ids under which they travel."""

    items: Sequence[Item]
    ids: Ids
    texts: list[str] | None = field(default=None, repr=False)
    """Given where each item is a text and nothing else, as most are."""

    @classmethod
    def of(cls, items: object) -> Batch:
        """Check a call's items and choose their ids.

        Raises:
            InvalidRequestError: They are no list of items; the message says where.
        """
        texts = _bare_texts(items)
        if texts is not None:
            return cls(cast("Sequence[Item]", items), Ids.automatic(len(texts)), texts)
        checked = check_items(items)
        return cls(checked, Ids.of(checked))

    def with_ids(self) -> list[Mapping[str, object]]:
        """Return the items as they travel."""
        sent = self.ids.sent
        if sent == self.ids.given:
            return list(self.items)
        return [{**item, "id": item_id} for item, item_id in zip(self.items, sent, strict=True)]


def _bare_texts(items: object) -> list[str] | None:
    """Return the texts of items that have no other field; None: look closer."""
    if not isinstance(items, list | tuple):
        return None
    try:
        if set(map(dict.__len__, items)) != {1}:
            return None
        texts = list(map(_TEXT, items))
    except (KeyError, TypeError):
        return None
    return texts if set(map(type, texts)) == {str} else None


_TEXT: Final = itemgetter("text")


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a call's items, in a row, that fit into one request.

    `items` holds them as encoded singly; it is empty where the whole body was encoded at once.
    """

    start: int
    stop: int
    items: Sequence[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PartScores:
    """The scores of one part in the order of its items, and what came with them."""

    scores: list[float]
    model: str
    usage: Usage
    score_space: ScoreSpace | None
    entries: list[ScoreEntry] | None = field(default=None, repr=False)
    """The reply's own entries in that order, where the caller may have them."""
    timing: Timing = field(default_factory=Timing)
    spans: Sequence[list[int] | None] | None = field(default=None, repr=False)
    """The best passage of each item, where the reply has any."""
    long_documents: str | None = None
    """What the server says it did with long documents."""
    truncated: Sequence[int] = ()
    """Positions of the items that lost their end, where the reply names them."""


def check_items(items: object) -> Sequence[Item]:
    """Return `items` if it is a list of items.

    Raises:
        InvalidRequestError: It is something else; the message says where.
    """
    if isinstance(items, Mapping | str | bytes) or not isinstance(items, Sequence):
        msg = f"items must be a list of Item(text=…), but got {type(items).__name__}"
        raise InvalidRequestError(msg)
    if not _are_plain(items):
        for index, item in enumerate(items):
            check_item(item, f"items[{index}]")
    return items


def _are_plain(items: Sequence[Any]) -> bool:
    """Recognise the usual items quickly; `check_item` judges the others."""
    if not set(map(type, items)) <= {dict} or any("multivector" in item for item in items):
        return False
    texts, ids = [item.get("text") for item in items], [item.get("id") for item in items]
    return set(map(type, texts)) <= {str} and set(map(type, ids)) <= {str, type(None)}


def check_item(item: object, name: str) -> None:
    """Raise InvalidRequestError unless `item` is a mapping whose id and text are strings.

    Vectors are refused: the protocol has no field for them, and a server would miss the text.
    """
    if not isinstance(item, Mapping):
        msg = f"{name} must be an Item(text=…), but got {type(item).__name__}"
        raise InvalidRequestError(msg)
    if item.get("multivector") is not None:
        msg = (
            f"{name} holds a multivector, which servers do not take; send its text, or score kept "
            "vectors by a model in this process (LocalClient)"
        )
        raise InvalidRequestError(msg)
    for key in ("id", "text"):
        value = item.get(key)
        if value is not None and not isinstance(value, str):
            msg = f"the {key} of {name} must be a string, but got {type(value).__name__}"
            raise InvalidRequestError(msg)


def encode_item(
    encoder: Callable[[object], bytes], item: Item, name: str, max_item_bytes: int
) -> bytes:
    """Encode one item as it is.

    Raises:
        InputTooLongError: It is over the server's limit.
        InvalidRequestError: It holds something that cannot be sent.
    """
    encoded = encode(encoder, item_fields(item), name)
    if len(encoded) > max_item_bytes:
        _check_text_size(encoder, item, name, max_item_bytes)
    return encoded


def encode_whole(
    body_format: BodyFormat, fields: Mapping[str, object], batch: Batch
) -> bytes | None:
    """Encode a call's body at once; None where its values have to be looked at singly."""
    try:
        if batch.texts is not None:
            return body_format.whole_of_texts(fields, batch.ids.sent, batch.texts)
        return body_format.whole(fields, batch.with_ids())
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def item_fields(item: Item) -> dict[str, object]:
    """Return what travels of an item that is not in a list: all but an id of None."""
    return {key: value for key, value in item.items() if key != "id" or value is not None}


def encode_items(
    encoder: Callable[[object], bytes],
    items: Sequence[Item],
    sent_ids: Sequence[str],
    *,
    max_item_bytes: int,
) -> list[bytes]:
    """Encode a call's items with the ids that travel.

    Raises:
        InputTooLongError: One is over the server's limit.
        InvalidRequestError: One holds something that cannot be sent.
    """
    encoded: list[bytes] = []
    for item, item_id in zip(items, sent_ids, strict=True):
        # The loop of large calls: an item's name is only made up for an error.
        try:
            encoded.append(encoder({**item, "id": item_id}))
        except (TypeError, ValueError, OverflowError, RecursionError):
            encode(encoder, item, f"items[{len(encoded)}]")
            raise
        if len(encoded[-1]) > max_item_bytes:
            _check_text_size(encoder, item, f"items[{len(encoded) - 1}]", max_item_bytes)
    return encoded


def _check_text_size(
    encoder: Callable[[object], bytes], item: Item, name: str, max_bytes: int
) -> None:
    """Count as the server does: the text's UTF-8 and the encoded metadata."""
    num_bytes = len((item.get("text") or "").encode())
    if item.get("metadata"):
        num_bytes += len(encode(encoder, item.get("metadata"), name))
    if num_bytes > max_bytes:
        msg = (
            f"{name} holds {num_bytes} bytes of text and metadata, but a server takes at most "
            f"{max_bytes} per item; split it into passages"
        )
        raise InputTooLongError(msg)


def split(
    items: Sequence[bytes], *, max_items: int, max_bytes: int, max_concurrency: int = 1
) -> list[Part]:
    """Cut encoded items into parts of nearly equal length.

    A server's queue holds as many items as one request may have. What does not fit into one request
    is therefore cut into parts so small that those under way fit into the queue together: with
    larger ones, a call's own parts keep each other out and wait for Retry-After.

    Args:
        items: Each at most `max_bytes` long.
        max_items: Items per request, and in a server's queue.
        max_bytes: Bytes per part, separators included.
        max_concurrency: Parts under way at a time.
    """
    if not items:
        return []
    sizes = [len(item) + 1 for item in items]
    if len(items) <= max_items and sum(sizes) <= max_bytes:
        return [Part(0, len(items), list(items))]
    num_parts = -(-len(items) // max(max_items // max_concurrency, 1))
    target = -(-len(items) // num_parts)
    parts: list[Part] = []
    start = 0
    while start < len(items):
        stop = min(start + target, len(items))
        if sum(sizes[start:stop]) > max_bytes:
            room = sum(total <= max_bytes for total in accumulate(sizes[start:stop]))
            stop = start + max(room, 1)
        parts.append(Part(start, stop, list(items[start:stop])))
        start = stop
    return parts


def model_path(prefix: str, model: object) -> str:
    """Return the path of a model's route; slashes in its name stay as they are.

    Raises:
        InvalidRequestError: The name is blank or no string.
    """
    if not isinstance(model, str) or not model.strip():
        msg = f"model must be a model's name, but got {model!r}"
        raise InvalidRequestError(msg)
    try:
        return f"{prefix}/{quote(model, safe='/:@')}"
    except UnicodeEncodeError as exc:
        msg = f"model must be a model's name, but got {model!r}"
        raise InvalidRequestError(msg) from exc


def routing_headers(gpu: str | None, pool: str | None) -> dict[str, str]:
    """Return the headers that choose machines: `gpu` may be `l4` or, with its pool, `pool/l4`.

    Raises:
        InvalidRequestError: A name is no string, or cannot stand in a header.
    """
    for name, value in (("gpu", gpu), ("pool", pool)):
        is_text = isinstance(value, str) and value.isascii() and value.isprintable()
        if value is not None and not (is_text and value.strip()):
            msg = f"{name} must be a name in plain ASCII, but got {value!r}"
            raise InvalidRequestError(msg)
    own_pool, slash, profile = (gpu or "").rpartition("/")
    chosen = own_pool if slash else pool
    headers = {"X-SIE-MACHINE-PROFILE": profile, "X-SIE-Pool": chosen or ""}
    return {name: value.strip() for name, value in headers.items() if value.strip()}


def body_headers(body_format: BodyFormat) -> dict[str, str]:
    """Return the headers of a request with a body."""
    return {
        "Content-Type": body_format.content_type,
        "Accept": body_format.content_type,
        "X-SIE-SDK-Version": PROTOCOL_VERSION,
    }


def check_options(options: object, name: str = "options") -> dict[str, Any]:
    """Return `options` as a dictionary.

    Raises:
        InvalidRequestError: It is no mapping with string keys.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        msg = f"{name} must be a mapping with string keys, but got {options!r:.80}"
        raise InvalidRequestError(msg)
    return dict(options)


def max_score_reply_bytes(sent_ids: Sequence[str]) -> int:
    """Return what a reply with these ids may take: an entry for each, with room to spare."""
    num_chars = sum(map(len, sent_ids))
    entries = len(sent_ids) * _SCORE_ENTRY_BYTES + num_chars * _MAX_BYTES_PER_CHAR
    return _SMALL_REPLY_BYTES + entries


def read_scores(reply: Reply, ids: Sequence[str], *, are_shown: bool = False) -> PartScores:
    """Read the reply to one part of a score call.

    Args:
        reply: As it came.
        ids: Those sent.
        are_shown: Whether the caller sees the same ids, and so may be given the reply's entries.

    Raises:
        InvalidResponseError: An id is missing, doubled or unknown, a score is not finite, or the
            reply is no score reply at all.
    """
    content = _read_map(reply)
    found = content.get("scores")
    matched = _match_entries(found, ids)
    entries, scores = (None, _match_scores(found, ids)) if matched is None else matched
    model = content.get("model")
    if not isinstance(model, str):
        msg = f"'model' must be a string, but got {model!r:.80}"
        raise InvalidResponseError(msg)
    space = content.get("score_space")
    handling = _read_handling(content)
    return PartScores(
        scores,
        model,
        _read_usage(content),
        space if space in get_args(ScoreSpace) else None,
        entries if are_shown else None,
        read_timing(reply, content),
        _read_spans(found, ids) if handling == "max_passage" else None,
        handling,
        _read_truncated(content, ids),
    )


_ID: Final = itemgetter("item_id")
_SCORE: Final = itemgetter("score")


def _match_entries(found: Any, ids: Sequence[str]) -> tuple[list[ScoreEntry], list[float]] | None:
    """Put a reply's entries in the order of `ids`, if all is well with them; None: look closer."""
    try:
        by_id = dict(zip(map(_ID, found), found, strict=True))
        entries = [by_id[item_id] for item_id in ids]
        scores = list(map(_SCORE, entries))
        is_whole = len(found) == len(by_id) == len(ids)
    except (KeyError, TypeError):
        return None
    # A sum is finite only if all its terms are.
    is_sound = set(map(type, scores)) == {float} and math.isfinite(sum(scores))
    return (entries, scores) if is_whole and is_sound else None


def _match_scores(found: Any, ids: Sequence[str]) -> list[float]:
    """Read scores one by one, naming what is wrong with them."""
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        msg = f"'scores' must be a list of entries, but got {found!r:.80}"
        raise InvalidResponseError(msg)
    try:
        return match_scores(found, ids)
    except (OverflowError, TypeError) as exc:  # an integer beyond floats; an id like [] or {}
        msg = f"the scores cannot be read: {exc}"
        raise InvalidResponseError(msg) from exc


def _read_spans(found: Any, ids: Sequence[str]) -> list[list[int] | None] | None:
    """Put the best passages' places in the order of `ids`; None where the reply has none.

    Raises:
        InvalidResponseError: One is no place in a text.
    """
    spans = {entry["item_id"]: entry["span"] for entry in found if entry.get("span") is not None}
    if not spans:
        return None
    for item_id, span in spans.items():
        is_pair = isinstance(span, list | tuple) and list(map(type, span)) == [int, int]
        if not is_pair or not 0 <= span[0] <= span[1]:
            msg = f"the best passage of {item_id!r} must be [start, end], but got {span!r:.80}"
            raise InvalidResponseError(msg)
    return [None if (span := spans.get(item_id)) is None else list(span) for item_id in ids]


def _read_truncated(content: Mapping[str, Any], ids: Sequence[str]) -> list[int]:
    """Find the items that a reply says lost their end; most replies say nothing.

    Raises:
        InvalidResponseError: It names an item that was not sent.
    """
    named = content.get("truncated")
    if named is None:
        return []
    position_of = {item_id: position for position, item_id in enumerate(ids)}
    try:
        if not isinstance(named, list):
            raise TypeError(named)  # noqa: TRY301 - one message for all that is wrong
        return sorted(position_of[item_id] for item_id in named)
    except (KeyError, TypeError) as exc:
        msg = f"'truncated' must hold ids that were sent, but got {named!r:.80}"
        raise InvalidResponseError(msg) from exc


def _read_handling(content: Mapping[str, Any]) -> str | None:
    handling = content.get("long_documents")
    return handling if isinstance(handling, str) else None


def merge_scores(
    parts: Sequence[PartScores], *, model: str, query_id: str | None, shown_ids: Sequence[str]
) -> ScoreResult:
    """Put the parts' scores together into one result, best first; ties keep the items' order."""
    result = ScoreResult(
        model=parts[0].model if parts else model,
        query_id=query_id,
        scores=_handed_on(parts) or _made(parts, shown_ids),
    )
    usage = _add_usage([part.usage for part in parts])
    if usage:
        result["usage"] = usage
    spaces = {part.score_space for part in parts}
    space = spaces.pop() if len(spaces) == 1 else None
    if space is not None:
        result["score_space"] = space
    handlings = {part.long_documents for part in parts}
    handling = handlings.pop() if len(handlings) == 1 else None
    if handling is not None:
        result["long_documents"] = handling
    timing = _slowest([part.timing for part in parts])
    if timing:
        result["timing"] = timing
    truncated = _truncated(parts, shown_ids)
    if truncated:
        result["truncated"] = truncated
    return result


def _truncated(parts: Sequence[PartScores], shown_ids: Sequence[str]) -> list[str]:
    """Name the items that lost their end as the caller knows them."""
    truncated, start = [], 0
    for part in parts:
        truncated += [shown_ids[start + position] for position in part.truncated]
        start += len(part.scores)
    return truncated


def _handed_on(parts: Sequence[PartScores]) -> list[ScoreEntry] | None:
    """Order the replies' own entries; None where they are not the caller's, or hold too much."""
    entries: list[ScoreEntry] = []
    for part in parts:
        if part.entries is None:
            return None
        entries += part.entries
    entries.sort(key=_SCORE, reverse=True)  # stable both ways
    for position, entry in enumerate(entries):
        entry["rank"] = position
    return entries if set(map(len, entries)) == {3} else None  # item_id, score, rank


def _made(parts: Sequence[PartScores], shown_ids: Sequence[str]) -> list[ScoreEntry]:
    """Make entries out of scores."""
    scores = [score for part in parts for score in part.scores]
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)  # stable both ways
    entries: list[ScoreEntry] = [
        {"item_id": shown_ids[index], "score": scores[index], "rank": position}
        for position, index in enumerate(order)
    ]
    if any(part.spans for part in parts):
        spans = [span for part in parts for span in part.spans or [None] * len(part.scores)]
        for entry, index in zip(entries, order, strict=True):
            if (span := spans[index]) is not None:
                entry["span"] = span
    return entries


def read_embeddings(reply: Reply, ids: Ids, part: Part) -> list[EncodeResult]:
    """Read the reply to one part of an encode call, in the order of its items.

    Items are matched by the ids sent. A server that does not echo ids answers in order; then no
    item may carry an id other than the caller's own at that place.

    Raises:
        InvalidResponseError: Items are missing, doubled or unknown, or no numbers.
    """
    content = _read_map(reply)
    items = content.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        msg = f"'items' must be a list of maps, but got {items!r:.80}"
        raise InvalidResponseError(msg)
    sent = ids.sent[part.start : part.stop]
    if len(items) != len(sent):
        msg = f"the reply has {len(items)} items, but {len(sent)} were sent"
        raise InvalidResponseError(msg)
    own_ids = ids.given[part.start : part.stop]
    results = [
        _to_result(item, own_id, position)
        for position, (item, own_id) in enumerate(
            zip(_in_order(items, sent, own_ids), own_ids, strict=True)
        )
    ]
    timing = read_timing(reply, content)
    if timing:
        for result in results:
            result["timing"] = timing.copy()
    return results


def _in_order(
    items: list[dict[str, Any]], sent: Sequence[str], own_ids: Sequence[str | None]
) -> list[dict[str, Any]]:
    found = {item["id"]: item for item in items if isinstance(item.get("id"), str)}
    if len(found) == len(items) and set(found) == set(sent):
        return [found[item_id] for item_id in sent]
    for item, own_id in zip(items, own_ids, strict=True):
        if item.get("id") not in (None, own_id):
            msg = f"the reply has an item {item.get('id')!r:.80} that was not sent, or not there"
            raise InvalidResponseError(msg)
    return items


def _to_result(item: dict[str, Any], own_id: str | None, position: int) -> EncodeResult:
    result = EncodeResult()
    if own_id is not None:
        result["id"] = own_id
    dense, multivector, sparse = (
        item.get("dense"),
        item.get("multivector"),
        item.get("sparse"),
    )
    what = f"item {position} of the reply"
    if dense is not None:
        result["dense"] = _read_vectors(dense, f"'dense' of {what}", ("dims",))
    if multivector is not None:
        names = ("num_tokens", "token_dims")
        result["multivector"] = _read_vectors(multivector, f"'multivector' of {what}", names)
    if sparse is not None:
        result["sparse"] = _read_sparse(sparse, f"'sparse' of {what}")
    if dense is None and multivector is None and sparse is None:
        msg = f"{what} holds no embedding"
        raise InvalidResponseError(msg)
    return result


def _read_vectors(
    value: object, what: str, dimensions: tuple[str, ...]
) -> np.ndarray[Any, np.dtype[Any]]:
    """Read an array and hold its shape against the dimensions that the reply states."""
    if not isinstance(value, dict):
        msg = f"{what} must be a map, but got {type(value).__name__}"
        raise InvalidResponseError(msg)
    values = value.get("values")
    array = to_array(values, what)
    if array.ndim != len(dimensions):
        msg = f"{what} must have {len(dimensions)} dimensions, but has the shape {array.shape}"
        raise InvalidResponseError(msg)
    is_packed = value.get("dtype") in ("binary", "ubinary")  # eight dimensions to the byte
    for size, name in zip(array.shape, dimensions, strict=True):
        if not is_packed and value.get(name) not in (None, size):
            msg = f"{what} states {name}={value.get(name)!r:.40}, but has the shape {array.shape}"
            raise InvalidResponseError(msg)
    if isinstance(values, list) and value.get("dtype") in ("float32", "float16", "int8", "uint8"):
        return array.astype(value["dtype"])  # JSON does not carry the type of its numbers
    return array


def _read_sparse(value: object, what: str) -> SparseVector:
    if not isinstance(value, dict):
        msg = f"{what} must be a map, but got {type(value).__name__}"
        raise InvalidResponseError(msg)
    indices = to_array(value.get("indices"), f"the indices of {what}")
    values = to_array(value.get("values"), f"the values of {what}")
    if indices.ndim != 1 or indices.shape != values.shape:
        msg = f"{what} has {indices.shape} indices for {values.shape} values"
        raise InvalidResponseError(msg)
    return SparseVector(indices=indices, values=values)


def read_models(reply: Reply) -> list[dict[str, Any]]:
    """Read the list of models.

    Raises:
        InvalidResponseError: It is none.
    """
    models = _read_map(reply).get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        msg = f"'models' must be a list of maps, but got {models!r:.80}"
        raise InvalidResponseError(msg)
    return models


def read_model(reply: Reply) -> dict[str, Any]:
    """Read what the server says of one model.

    Raises:
        InvalidResponseError: It has no name.
    """
    content = _read_map(reply)
    if not isinstance(content.get("name"), str):
        msg = f"'name' must be a string, but got {content.get('name')!r:.80}"
        raise InvalidResponseError(msg)
    return content


def read_health(reply: Reply) -> Health:
    """Read a liveness reply: the word `ok`.

    Raises:
        InvalidResponseError: It says something else, as another kind of server would.
    """
    if reply.body.strip().lower() != b"ok":
        msg = "an SIE server answers 'ok' here; is this the address of something else?"
        raise InvalidResponseError(msg)
    health = Health(status="ok")
    version = reply.headers.get("x-sie-server-version")
    if version:
        health["server_version"] = version
    return health


def _read_map(reply: Reply) -> dict[str, Any]:
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        msg = f"the body is compressed ({encoding}), which was not asked for"
        raise InvalidResponseError(msg)
    content = decode(reply.body, reply.content_type)
    if not isinstance(content, dict):
        msg = f"the reply must be a map, but is {type(content).__name__}"
        raise InvalidResponseError(msg)
    return content


def _read_usage(content: Mapping[str, Any]) -> Usage:
    """Keep the counts that are counts: a wrong one must not spoil a right answer."""
    usage = Usage()
    given = content.get("usage")
    for name in COUNTS:
        count = given.get(name) if isinstance(given, dict) else None
        if type(count) is int and count >= 0:
            usage[name] = count
    return usage


_TIMES: Final = {
    "total_ms": "x-total-time",
    "queue_ms": "x-queue-time",
    "tokenization_ms": "x-tokenization-time",
    "inference_ms": "x-inference-time",
}
"""Where a reply says how long what took: the names in its body, and its headers."""


def read_timing(reply: Reply, content: Mapping[str, Any]) -> Timing:
    """Read where a reply's time went, from its body or else its headers, as far as it is said.

    A time that is no time is left out: it must not spoil a right answer.
    """
    said = content.get("timing")
    given: Mapping[str, Any] = said if isinstance(said, dict) else {}
    timing: dict[str, float] = {}
    for name, header in _TIMES.items():
        milliseconds = _read_milliseconds(given.get(name))
        if milliseconds is None:
            milliseconds = _read_milliseconds(reply.headers.get(header))
        if milliseconds is not None:
            timing[name] = milliseconds
    return cast("Timing", timing)


def _read_milliseconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        milliseconds = float(value)
    except (OverflowError, ValueError):
        return None
    return milliseconds if 0 <= milliseconds < math.inf else None


def _slowest(timings: Sequence[Timing]) -> Timing:
    """Return the longest of each of the parts' times: they are under way side by side."""
    slowest: dict[str, float] = {}
    for timing in timings:
        for name, milliseconds in cast("Mapping[str, float]", timing).items():
            slowest[name] = max(milliseconds, slowest.get(name, 0.0))
    return cast("Timing", slowest)


def _add_usage(usages: Sequence[Usage]) -> Usage:
    total = Usage()
    for usage in usages:
        for name in COUNTS:
            if name in usage:
                total[name] = total.get(name, 0) + usage[name]
    return total
