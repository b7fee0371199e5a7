"""Counting a body's values without building them, against building them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sie_core.errors import InvalidRequestError
from sie_core.server.values import MAX_VALUES, check_values

TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.text(alphabet='{}[],:"\\', max_size=40),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=60,
)


def count(tree: Any) -> int:
    """Count the values of a tree, names of fields included."""
    if isinstance(tree, dict):
        return 1 + sum(1 + count(value) for value in tree.values())
    return 1 + sum(map(count, tree)) if isinstance(tree, list) else 1


def is_taken(body: bytes, *, is_msgpack: bool, max_values: int) -> bool:
    """Say whether a body passes."""
    try:
        check_values(body, is_msgpack=is_msgpack, max_values=max_values)
    except InvalidRequestError:
        return False
    return True


@given(TREES, st.integers(1, 80))
def test_msgpack_is_counted_exactly(tree: Any, max_values: int) -> None:
    """Its heads say how many follow; a body of fewer bytes than values cannot be too many."""
    body = msgspec.msgpack.encode(tree)
    is_few = count(tree) <= max_values
    assert is_taken(body, is_msgpack=True, max_values=max_values) is is_few


@given(TREES, st.integers(1, 80), st.booleans())
def test_json_is_counted_within_a_factor_of_two(
    tree: Any, max_values: int, is_spaced: bool
) -> None:
    """No body that is within the number is refused, and none of twice as many is taken."""
    body = json.dumps(tree, indent=1 if is_spaced else None).encode()
    num_values = count(tree)
    taken = is_taken(body, is_msgpack=False, max_values=max_values)
    if num_values <= max_values:
        assert taken
    if num_values > 2 * max_values + 1:
        assert not taken


@given(st.binary(max_size=300), st.booleans())
def test_what_is_not_well_formed_is_left_to_the_decoder(body: bytes, is_msgpack: bool) -> None:
    """Counting ends, and either refuses or does not."""
    is_taken(body, is_msgpack=is_msgpack, max_values=5)


EXTENSIONS = [
    b"\xd4\x01a",
    b"\xd5\x01ab",
    b"\xd6\x01abcd",
    b"\xd7\x01abcdefgh",
    b"\xd8\x01" + b"a" * 16,
    b"\xc7\x05\x01abcde",
    b"\xc8\x00\x05\x01abcde",
    b"\xc9\x00\x00\x00\x05\x01abcde",
    b"\xc4\x02ab",
    b"\xc5\x00\x02ab",
    b"\xc6\x00\x00\x00\x02ab",
]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extensions_and_bytes_are_one_value(extension: bytes) -> None:
    """Their length is stepped over: what stands behind them is counted."""
    body = b"\x93" + extension + b"\x91\x01" + b"\x01"
    assert is_taken(body, is_msgpack=True, max_values=5)
    assert not is_taken(body, is_msgpack=True, max_values=4)


def test_the_largest_request_in_good_faith_is_taken() -> None:
    """512 items with ids, texts full of punctuation, and 100 fields of metadata each."""
    item = {"id": "i", "text": '{"a": [1, 2]}, ' * 100, "metadata": {str(i): i for i in range(100)}}
    body = {"query": {"text": "q"}, "items": [item] * 512}
    assert is_taken(json.dumps(body).encode(), is_msgpack=False, max_values=MAX_VALUES)
    assert is_taken(msgspec.msgpack.encode(body), is_msgpack=True, max_values=MAX_VALUES)
