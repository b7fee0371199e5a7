"""`Step`: one scoring request, and the two ways to send some at the same time.

A plan (see `sie_core.rerank_plan`) says what to ask and does no I/O; `run` and `arun` do what it
says, with a client that blocks and with one that is awaited.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import math
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sie_core.deadline import Deadline
from sie_core.errors import DeadlineExceededError
from sie_core.telemetry.otel import within
from sie_core.types import Item

T = TypeVar("T")

Reply = Mapping[str, Any]
"""What a client's `score` returned."""

Outcome = Reply | Exception
"""A reply, or the error that came instead."""

Plan = Generator[Sequence["Step"], Sequence[Outcome], T]
"""Yields steps that may run at the same time, is sent an outcome for each, and returns its answer.

It raises what an outcome means for the caller. It is not resumed after its client was interrupted.
"""

MAX_CONCURRENT_STEPS: Final = 8
"""Steps that are under way at a time, where a client takes one at a time."""

_NEARLY_ALL: Final = 0.99
"""While this part of a call's timeout is left, the client's own, which is as long, holds: a backend
that lets it pass is unwell, while one that had less of it need not be."""

_LEAST_SECONDS: Final = 1e-6
"""Given to a client where nothing is left: it says in its own way that this is not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request for scores.

    Attributes:
        model: Who is to score.
        query: What is looked for.
        items: What is scored; ids are unique.
        arguments: Named arguments of the client's `score`.
        deadline: When it is left as it is, whatever the client does.
        timeout: When the client is to end it: its call's timeout, or what earlier steps left of it.
        context: What is traced, so that what the client does belongs to it; None: not traced.
    """

    model: str
    query: Item
    items: Sequence[Item]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    deadline: Deadline = Deadline.never
    timeout: Deadline = Deadline.never
    context: Any = None

    @property
    def timeout_seconds(self) -> float | None:
        """What the client is given, if the step begins now; None leaves it to the client."""
        rests = [self.deadline.left_seconds]
        whole = self.timeout.budget_seconds
        if whole is not None and self.timeout.left_seconds < _NEARLY_ALL * whole:
            rests.append(self.timeout.left_seconds)
        least = min(rests)
        return None if math.isinf(least) else max(least, _LEAST_SECONDS)

    @property
    def doing(self) -> str:
        """Say what it is, for an error."""
        return f"scoring {len(self.items)} items with {self.model}"


def run(plan: Plan[T], open_client: Callable[[], Any]) -> T:
    """Do what a plan says, and return its answer.

    Args:
        plan: A plan that has not begun.
        open_client: Returns the client; called where there is something to ask.
    """
    try:
        steps = next(plan)
        while True:
            steps = plan.send(_score_all(open_client(), steps))
    except StopIteration as end:
        answer: T = end.value
        return answer
    finally:
        plan.close()


async def arun(plan: Plan[T], open_client: Callable[[], Any]) -> T:
    """Do what `run` does, with a client whose `score` is awaited."""
    try:
        steps = next(plan)
        while True:
            steps = plan.send(await _score_all_async(open_client(), steps))
    except StopIteration as end:
        answer: T = end.value
        return answer
    finally:
        plan.close()


def together(plans: Sequence[Plan[T]], *, return_exceptions: bool) -> Plan[list[T | Exception]]:
    """Make one plan of many: their steps go out at the same time, their answers come in order.

    Args:
        plans: Plans that have not begun.
        return_exceptions: What a plan raised stands in the place of its answer; otherwise the first
            error is raised, and the other plans end where they are.
    """
    answers: list[T | Exception] = [_UNANSWERED] * len(plans)
    waiting: dict[int, Sequence[Step]] = {}

    def resume(position: int, outcomes: Sequence[Outcome] | None) -> None:
        plan = plans[position]
        try:
            waiting[position] = next(plan) if outcomes is None else plan.send(outcomes)
        except StopIteration as end:
            answers[position] = end.value
        except Exception as exc:
            if not return_exceptions:
                raise
            answers[position] = exc

    try:
        for position in range(len(plans)):
            resume(position, None)
        while waiting:
            asked, waiting = waiting, {}
            outcomes = iter((yield [step for steps in asked.values() for step in steps]))
            for position, steps in asked.items():
                resume(position, list(itertools.islice(outcomes, len(steps))))
    finally:
        for plan in plans:
            plan.close()
    return answers


def failed(error: Exception) -> Plan[Any]:
    """Make a plan that asks nothing and raises `error`."""
    yield from ()
    raise error


_UNANSWERED: Final = RuntimeError("this plan did not end")


def _score_all(client: Any, steps: Sequence[Step]) -> Sequence[Outcome]:
    if len(steps) == 1:
        return [_ask(client, steps[0])]
    score_many = getattr(client, "score_many", None)
    if score_many is not None:
        return list(map(_named, steps, score_many(steps)))
    with ThreadPoolExecutor(MAX_CONCURRENT_STEPS, thread_name_prefix="sie-step") as pool:
        return list(pool.map(functools.partial(_ask, client), steps))


def _ask(client: Any, step: Step) -> Outcome:
    """Ask a client; one that is elsewhere is left behind at the deadline, whatever it does then."""
    ask = functools.partial(_call, client, step)
    is_here = hasattr(client, "score_many")  # a model in this process, which ends in time itself
    try:
        return ask() if is_here else step.deadline.run(ask, step.doing)
    except Exception as exc:  # noqa: BLE001  the plan decides what it means
        return _named(step, exc)


def _call(client: Any, step: Step) -> Reply:
    with within(step.context):
        reply: Reply = client.score(
            step.model, step.query, step.items, **step.arguments, **_bound(client, step)
        )
    return reply


def _bound(client: Any, step: Step) -> dict[str, float]:
    """Return the timeout that a client is given, if there is one and it takes one."""
    seconds = step.timeout_seconds
    if seconds is None or not _takes_timeout(client.score):
        return {}
    return {"timeout_seconds": seconds}


def _named(step: Step, outcome: Outcome) -> Outcome:
    """Let an error name the timeout of the whole call, where that is over, not the step's part."""
    if not isinstance(outcome, DeadlineExceededError) or step.timeout.left_seconds > 0:
        return outcome
    error = step.timeout.exceeded(step.doing)
    error.__cause__ = outcome
    return error


async def _score_all_async(client: Any, steps: Sequence[Step]) -> Sequence[Outcome]:
    if len(steps) == 1:
        return [await _ask_async(client, steps[0])]
    score_many = getattr(client, "score_many", None)
    if score_many is not None:
        return list(map(_named, steps, await score_many(steps)))
    return await gather(functools.partial(_ask_async, client), steps, MAX_CONCURRENT_STEPS)


async def gather(
    ask: Callable[[Step], Awaitable[Outcome]], steps: Sequence[Step], num_at_once: int
) -> list[Outcome]:
    """Await `ask`, which raises nothing, for all steps, so many at a time."""
    room = asyncio.Semaphore(num_at_once)

    async def wait_and_ask(step: Step) -> Outcome:
        async with room:
            return await ask(step)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait_and_ask(step)) for step in steps]
    return [task.result() for task in tasks]


async def _ask_async(client: Any, step: Step) -> Outcome:
    try:
        bound = asyncio.timeout(step.deadline.remaining_seconds(step.doing))
    except DeadlineExceededError as exc:
        return exc
    try:
        async with bound:  # it also cuts what a client does before it looks at the time
            with within(step.context):
                asking: Awaitable[Reply] = client.score(
                    step.model, step.query, step.items, **step.arguments, **_bound(client, step)
                )
                return await asking
    except Exception as exc:  # noqa: BLE001  the plan decides what it means
        return step.deadline.exceeded(step.doing) if bound.expired() else _named(step, exc)


def _takes_timeout(score: Callable[..., Any]) -> bool:
    parameters = inspect.signature(score).parameters
    return "timeout_seconds" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
