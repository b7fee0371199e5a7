"""The callers of the server's benchmarks: each gets its own reply, and none may go wrong unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

if TYPE_CHECKING:
    from callers import Round

MODEL = "test/tiny-bert"


def run(url: str, model: str, check: Callable[[int, bytes], None] | None = None) -> Round:
    """Let four callers ask for half a second."""
    from callers import run_callers, score_request

    requests = [
        score_request(url, model, "river", ["museum"] * (number + 1), content_format="json")
        for number in range(5)
    ]
    return run_callers(url, requests, num_callers=4, seconds=0.5, check=check)


def test_every_call_is_counted_and_checked_with_its_own_reply(sie_server: str) -> None:
    """The number of scores tells which request a reply is to."""
    seen: list[int] = []

    def check(number: int, body: bytes) -> None:
        assert len(msgspec.json.decode(body)["scores"]) == number + 1
        seen.append(number)

    found = run(sie_server, MODEL, check)
    assert len(found.milliseconds) == len(seen)
    assert set(seen) == set(range(5))
    assert found.seconds >= 0.5
    assert 0 < found.p50 < 1e3 * found.seconds


def test_what_a_check_finds_ends_the_round(sie_server: str) -> None:
    """As does a reply that is an error."""
    from callers import CallError

    def refuse(number: int, _: bytes) -> None:
        msg = f"reply {number} is wrong"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="is wrong"):
        run(sie_server, MODEL, refuse)
    with pytest.raises(CallError, match="404"):
        run(sie_server, "no/such-model")
