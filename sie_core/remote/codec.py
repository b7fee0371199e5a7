"""Bytes to values and back: msgpack and JSON, with limits on what a reply may unfold into.

A body that is small enough is written in one go. The items of a larger one are encoded singly, so
that their sizes are known and any run of them can be sent as one request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgpack
import numpy as np

from sie_core.errors import InvalidRequestError, InvalidResponseError

ContentFormat = Literal["msgpack", "json"]
"""How bodies travel. Errors always come back as JSON."""

MAX_ARRAY_ITEMS: Final = 1 << 16
"""Longest list in a reply, unless more items were sent. msgpack lists are allocated by the length
they claim, so an unlimited one is an attack of five bytes; the nesting is limited by the parser."""

_MAX_MAP_ITEMS: Final = 1 << 12
_MAX_DIMENSIONS: Final = 4
_BODY_BUFFER_BYTES: Final = 64 * 1024
_BUFFER_BYTES: Final = 8192  # grows at need; the default of 1 MiB costs more than it saves
_ARRAY_TYPES: Final = frozenset(
    f"{order}{kind}"
    for order in "<|="
    for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
)


class BodyFormat(Protocol):
    """One way to write a body: values first, then the containers around them."""

    name: ContentFormat
    content_type: str

    def encoder(self) -> Callable[[object], bytes]:
        """Make a function that encodes one value; not to be shared between threads."""
        ...

    def body(
        self, fields: Sequence[tuple[str, bytes]], items: Sequence[bytes], count: int
    ) -> bytes:
        """Put encoded values into a map: the fields by name, and `count` items as a list."""
        ...

    def whole(self, fields: Mapping[str, object], items: Sequence[object]) -> bytes:
        """Write the same body in one go, from values."""
        ...

    def whole_of_texts(
        self, fields: Mapping[str, object], ids: Sequence[str], texts: Sequence[str]
    ) -> bytes:
        """Write a body whose items are an id and a text each."""
        ...

    def array(self, value: object) -> object:
        """Return what stands for a numpy array or number in this format.

        Raises:
            TypeError: It is neither.
        """
        ...


class _Msgpack:
    name: ContentFormat = "msgpack"
    content_type = "application/msgpack"

    def array(self, value: object) -> object:
        return _array_to_map(value)

    def encoder(self) -> Callable[[object], bytes]:
        pack: Callable[[object], bytes] = msgpack.Packer(
            default=_array_to_map, buf_size=_BUFFER_BYTES
        ).pack
        return pack

    def body(
        self, fields: Sequence[tuple[str, bytes]], items: Sequence[bytes], count: int
    ) -> bytes:
        packer = msgpack.Packer(buf_size=_BUFFER_BYTES)
        chunks = [packer.pack_map_header(len(fields) + 1)]
        for name, value in fields:
            chunks += (packer.pack(name), value)
        chunks += (packer.pack("items"), packer.pack_array_header(count))
        chunks += items
        return b"".join(chunks)  # one copy: a body may be 33 MiB

    def whole(self, fields: Mapping[str, object], items: Sequence[object]) -> bytes:
        packer = msgpack.Packer(default=_array_to_map, buf_size=_BODY_BUFFER_BYTES)
        written: bytes = packer.pack({**fields, "items": items})
        return written

    def whole_of_texts(
        self, fields: Mapping[str, object], ids: Sequence[str], texts: Sequence[str]
    ) -> bytes:
        packer = msgpack.Packer(default=_array_to_map, buf_size=_BODY_BUFFER_BYTES, autoreset=False)
        pack = packer.pack
        packer.pack_map_header(len(fields) + 1)
        for name, value in fields.items():
            pack(name)
            pack(value)
        pack("items")
        packer.pack_array_header(len(texts))
        item: dict[str, str] = {}  # one for all: making hundreds costs as much as packing them
        for item_id, text in zip(ids, texts, strict=True):
            item["id"] = item_id
            item["text"] = text
            pack(item)
        written: bytes = packer.bytes()
        return written


class _Json:
    name: ContentFormat = "json"
    content_type = "application/json"

    def array(self, value: object) -> object:
        return _array_to_list(value)

    def encoder(self) -> Callable[[object], bytes]:
        encode = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_array_to_list
        ).encode
        return lambda value: encode(value).encode()

    def body(
        self,
        fields: Sequence[tuple[str, bytes]],
        items: Sequence[bytes],
        count: int,  # noqa: ARG002 - a JSON list ends itself
    ) -> bytes:
        named = b"".join(json.dumps(name).encode() + b":" + value + b"," for name, value in fields)
        return b'{%b"items":[%b]}' % (named, b",".join(items))

    def whole(self, fields: Mapping[str, object], items: Sequence[object]) -> bytes:
        return self.encoder()({**fields, "items": items})

    def whole_of_texts(
        self, fields: Mapping[str, object], ids: Sequence[str], texts: Sequence[str]
    ) -> bytes:
        pairs = zip(ids, texts, strict=True)
        return self.whole(fields, [{"id": item_id, "text": text} for item_id, text in pairs])


MSGPACK: Final[BodyFormat] = _Msgpack()
JSON: Final[BodyFormat] = _Json()
_FORMATS: Final[dict[str, BodyFormat]] = {"msgpack": MSGPACK, "json": JSON}


def body_format(name: str) -> BodyFormat:
    """Return the format of that name.

    Raises:
        InvalidRequestError: There is none.
    """
    found = _FORMATS.get(str(name))
    if found is None:
        msg = f"content_format must be 'msgpack' or 'json', but got {name!r}"
        raise InvalidRequestError(msg)
    return found


def encode(encoder: Callable[[object], bytes], value: object, what: str) -> bytes:
    """Encode one value of a request.

    Args:
        encoder: From `BodyFormat.encoder`.
        value: What to encode.
        what: Its name, for the error.

    Raises:
        InvalidRequestError: It holds something that cannot travel.
    """
    try:
        return encoder(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        # A UnicodeEncodeError spells out the whole text; its reason says enough.
        reason = exc.reason if isinstance(exc, UnicodeEncodeError) else exc
        msg = f"{what} holds a value that cannot be sent: {reason}"
        raise InvalidRequestError(msg) from exc


def decode(body: bytes, content_type: str, *, max_array_items: int = MAX_ARRAY_ITEMS) -> Any:
    """Decode a reply's body.

    Args:
        body: As it arrived.
        content_type: The reply's header; decides between msgpack and JSON.
        max_array_items: Longest list accepted.

    Raises:
        InvalidResponseError: It is neither, broken, or unfolds beyond the limits.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if "msgpack" in kind:
            return msgpack.unpackb(
                body,
                max_array_len=max(max_array_items, MAX_ARRAY_ITEMS),
                max_map_len=_MAX_MAP_ITEMS,
                max_ext_len=0,
            )
        if "json" in kind:
            return json.loads(body)
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
        msgpack.UnpackException,
    ) as exc:
        msg = f"the body is not the {kind} that it claims to be: {_brief(exc)}"
        raise InvalidResponseError(msg) from exc
    msg = f"the content type is {content_type!r}, but must be msgpack or JSON"
    raise InvalidResponseError(msg)


def to_array(values: object, what: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Read an array out of a decoded reply: msgpack's map with bytes keys, or nested lists.

    Raises:
        InvalidResponseError: It is neither, its parts contradict each other, or a number in it is
            not finite.
    """
    try:
        array = _from_map(values) if isinstance(values, dict) else _from_lists(values)
    except (ValueError, TypeError, OverflowError, KeyError, MemoryError) as exc:
        msg = f"{what} is not an array: {_brief(exc)}"
        raise InvalidResponseError(msg) from exc
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        msg = f"{what} holds numbers that are not finite"
        raise InvalidResponseError(msg)
    return array


def excerpt(body: bytes, *, max_chars: int = 160) -> str:
    """Show the start of a body in one printable line."""
    text = body[: 4 * max_chars].decode("utf-8", "replace")
    line = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(line.split())
    return line if len(line) <= max_chars else line[:max_chars] + "…"


def _array_to_map(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.str in _ARRAY_TYPES:
        return {
            b"nd": True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": list(value.shape),
            b"data": value.tobytes(),
        }
    msg = f"{type(value).__name__} is not a type that msgpack knows"
    raise TypeError(msg)


def _array_to_list(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    msg = f"{type(value).__name__} is not a type that JSON knows"
    raise TypeError(msg)


def _from_map(values: dict[Any, Any]) -> np.ndarray[Any, np.dtype[Any]]:
    parts = {key.encode() if isinstance(key, str) else key: part for key, part in values.items()}
    name, shape, data = parts[b"type"], parts[b"shape"], parts[b"data"]
    name = name.decode("ascii") if isinstance(name, bytes) else name
    if name not in _ARRAY_TYPES:
        msg = f"its type is {name!r:.40}"
        raise ValueError(msg)
    if not isinstance(data, bytes):
        msg = f"its data is {type(data).__name__}"
        raise TypeError(msg)
    is_shape = isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS
    if not is_shape or not all(type(size) is int and size >= 0 for size in shape):
        msg = f"its shape is {shape!r:.60}"
        raise ValueError(msg)
    # A copy, because an array over the reply's bytes could not be written to.
    return np.frombuffer(data, dtype=name).reshape(shape).copy()


def _from_lists(values: object) -> np.ndarray[Any, np.dtype[Any]]:
    if not isinstance(values, list):
        msg = f"it is {type(values).__name__}"
        raise TypeError(msg)
    array = np.array(values)
    if array.dtype.kind not in "fiub":
        msg = "it holds something other than numbers"
        raise ValueError(msg)
    return array


def _brief(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:160]
