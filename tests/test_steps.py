"""Plans are run alike by a client that blocks and by one that is awaited."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sie_core.deadline import Deadline
from sie_core.errors import DeadlineExceededError
from sie_core.steps import MAX_CONCURRENT_STEPS, Outcome, Plan, Step, arun, run
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
    def __init__(self, client: Any) -> None:
        self._client = client

    async def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:
        reply: Mapping[str, Any] = await asyncio.to_thread(self._client.score, *positional, **named)
        return reply


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


class Hanging:
    """A client that needs all the time that it is given, and says then that it was not enough."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def score(self, *_: Any, timeout_seconds: float) -> Mapping[str, Any]:
        self.given.append(timeout_seconds)
        threading.Event().wait(timeout_seconds)
        msg = "not enough"
        raise DeadlineExceededError(msg)


def _all(steps: Sequence[Step]) -> Plan[Sequence[Outcome]]:
    return (yield steps)


@pytest.mark.parametrize("is_async", [False, True])
def test_steps_that_wait_for_their_turn_have_no_deadline_of_their_own(is_async: bool) -> None:
    """Of 40, as many as may run at a time use up the time of all; the others are not begun."""
    client = Hanging()
    deadline = Deadline.after(0.2)
    steps = [
        Step(model="m", query=Item(text=f"{i}"), items=[Item(id="0", text="a")], deadline=deadline)
        for i in range(40)
    ]
    if is_async:
        outcomes = asyncio.run(arun(_all(steps), lambda: _Awaited(client)))
    else:
        outcomes = run(_all(steps), lambda: client)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError] * 40
    assert len(client.given) <= 2 * MAX_CONCURRENT_STEPS
    assert sum(client.given) <= MAX_CONCURRENT_STEPS * 0.21


def test_a_client_that_ignores_its_deadline_is_left_behind() -> None:
    """Whatever it says of timeouts, nobody waits for it."""
    released = threading.Event()

    class Stubborn:
        def score(self, *_: Any, **__: Any) -> Mapping[str, Any]:
            released.wait(30)
            return {}

    step = Step(
        model="m",
        query=Item(text="q"),
        items=[Item(id="0", text="a")],
        deadline=Deadline.after(0.02),
    )
    try:
        [outcome] = run(_all([step]), Stubborn)
    finally:
        released.set()
    assert isinstance(outcome, DeadlineExceededError)
    assert "scoring 1 items with m" in str(outcome)


def test_a_later_step_has_what_is_left_of_the_calls_timeout() -> None:
    """While nearly all of it is left the client's own holds, which is as long."""

    def seconds(left: float) -> float | None:
        timeout = Deadline(10.0, time.monotonic() + left)
        return Step(model="m", query=Item(text="q"), items=[], timeout=timeout).timeout_seconds

    assert seconds(10.0) is None
    assert seconds(4.0) == pytest.approx(4.0, abs=1.0)
    assert seconds(-1.0) == pytest.approx(1e-6)
    assert Step(model="m", query=Item(text="q"), items=[]).timeout_seconds is None
    assert math.isinf(Deadline.never.left_seconds)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_timeout_that_is_over_is_named_whole(is_async: bool) -> None:
    """Not the moment that was left for the last step."""
    client = Hanging()
    timeout = Deadline(10.0, time.monotonic() - 1)
    steps = [Step(model="m", query=Item(text="q"), items=[], timeout=timeout)]
    if is_async:
        [outcome] = asyncio.run(arun(_all(steps), lambda: _Awaited(client)))
    else:
        [outcome] = run(_all(steps), lambda: client)
    assert isinstance(outcome, DeadlineExceededError)
    assert "timeout of 10 s passed while scoring" in str(outcome)
