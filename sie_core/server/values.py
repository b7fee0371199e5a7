"""How many values a body holds, found out without building them.

Two bytes can stand for a list: a body of 34 MB that is all lists takes half a minute and 2.5 GB to
decode, while everyone waits. Here its values are counted first, up to a number.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from sie_core.errors import InvalidRequestError

MAX_VALUES: Final = 250_000
"""Strings, numbers, lists and maps, names of fields included: 488 for each of 512 items."""

_TOKENS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
"""Strings, so that nothing in them counts, and what a value can stand behind.

A string without an end goes to the end of the body: nothing is ever looked at twice.
"""

_MIN_JSON_BYTES = 2
"""Of a value: itself, and what parts it from the next."""

_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes and texts: of how many bytes their length is."""

_EXTENSION_LENGTHS: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED: Final = (
    {0xC0: 0, 0xC1: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}
    | {0xCC + i: 2**i for i in range(4)}
    | {0xD0 + i: 2**i for i in range(4)}
    | {0xD4 + i: 1 + 2**i for i in range(5)}
)
"""Bytes behind the first one: of nil, booleans, numbers, and extensions of a fixed size."""

_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Lists and maps: of how many bytes their length is, and how many values each entry is."""


def check_values(body: bytes, *, is_msgpack: bool, max_values: int = MAX_VALUES) -> None:
    """Refuse a body of more values than a number. What is not well formed is left to its decoder.

    Raises:
        InvalidRequestError: It holds more.
    """
    if len(body) <= max_values or not (_has_more_msgpack if is_msgpack else _has_more_json)(
        body, max_values
    ):
        return
    msg = f"the body holds more than {max_values:,} values; send fewer items, or less metadata"
    raise InvalidRequestError(msg)


def _has_more_json(body: bytes, max_values: int) -> bool:
    """Count strings, and what any value but the first stands behind: at most two for each value."""
    if len(body) <= _MIN_JSON_BYTES * max_values:
        return False
    if 2 * sum(map(body.count, (b",", b"[", b"{"))) < max_values:  # names are values, too
        return False
    return any(islice(_TOKENS.finditer(body), 2 * max_values, None))


def _has_more_msgpack(body: bytes, max_values: int) -> bool:
    """Lists and maps say at their head how many values they hold."""
    position, num_bytes = 0, len(body)
    num_values = num_open = 1
    while num_open and position < num_bytes:
        first = body[position]
        position += 1
        num_open -= 1
        num_within = 0
        if first < 0x80 or first >= 0xE0:  # noqa: PLR2004  small numbers
            continue
        if first < 0x90:  # noqa: PLR2004
            num_within = 2 * (first & 0x0F)
        elif first < 0xA0:  # noqa: PLR2004
            num_within = first & 0x0F
        elif first < 0xC0:  # noqa: PLR2004
            position += first & 0x1F
        elif first in _FIXED:
            position += _FIXED[first]
        elif first in _CONTAINERS:
            size, per_entry = _CONTAINERS[first]
            num_within = per_entry * int.from_bytes(body[position : position + size])
            position += size
        else:
            is_extension = first in _EXTENSION_LENGTHS
            size = _EXTENSION_LENGTHS[first] if is_extension else _LENGTHS[first]
            position += size + is_extension + int.from_bytes(body[position : position + size])
        num_open += num_within
        num_values += num_within
        if num_values > max_values:
            return True
    return False
