"""Plans are run alike by a client that blocks and by one that is awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sie_core.steps import Plan, Step, arun, run
from sie_core.types import Item


class Meeting:
    """A client whose calls wait for each other: it answers only where two run at a time."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=30)

    def score(self, model: str, query: Item, items: Sequence[Item], **_: Any) -> Mapping[str, Any]:
        del items
        self._barrier.wait()
        return {"model": model, "query": query["text"]}

    def as_async(self) -> Any:
        return _Awaited(self)


class _Awaited:
    def __init__(self, client: Meeting) -> None:
        self._client = client

    async def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:
        return await asyncio.to_thread(self._client.score, *positional, **named)


def _step(query: str) -> Step:
    return Step(model="m", query=Item(text=query), items=[Item(id="0", text="a")])


def _two_at_once() -> Plan[list[str]]:
    outcomes = yield [_step("first"), _step("second")]
    return [outcome["query"] for outcome in outcomes if not isinstance(outcome, Exception)]


async def test_steps_of_one_list_run_at_the_same_time_and_come_back_in_order() -> None:
    """Both ways of running a plan start all steps before they wait for one."""
    client = Meeting()
    in_thread = asyncio.to_thread(run, _two_at_once(), lambda: client)
    assert await in_thread == ["first", "second"]
    assert await arun(_two_at_once(), client.as_async) == ["first", "second"]


class Refusing:
    """A client that fails."""

    def score(self, *_: Any, **__: Any) -> Mapping[str, Any]:
        msg = "no"
        raise ValueError(msg)


def test_an_error_is_sent_to_the_plan_which_may_go_on() -> None:
    """What a failure means is the plan's to decide."""

    def plan() -> Plan[str]:
        [outcome] = yield [_step("q")]
        return f"{outcome!r}"

    assert run(plan(), Refusing) == "ValueError('no')"


def test_a_plan_with_nothing_to_ask_opens_no_client() -> None:
    """A call that needs no scores loads and connects to nothing."""

    def plan() -> Plan[int]:
        yield from ()
        return 3

    def opened() -> Any:
        pytest.fail("a client was opened")

    assert run(plan(), opened) == 3
