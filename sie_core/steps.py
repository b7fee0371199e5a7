"""`Step`: one scoring request, and the two ways to send some at the same time.

A plan (see `sie_core.rerank_plan`) says what to ask and does no I/O; `run` and `arun` do what it
says, with a client that blocks and with one that is awaited.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request for scores.

    Attributes:
        model: Who is to score.
        query: What is looked for.
        items: What is scored; ids are unique.
        arguments: Named arguments of the client's `score`.
        timeout_seconds: Bound on this step; None leaves it to the client.
        context: What is traced, so that what the client does belongs to it; None: not traced.
    """

    model: str
    query: Item
    items: Sequence[Item]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None
    context: Any = None


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
        outcomes: Sequence[Outcome] = score_many(steps)
        return outcomes
    with ThreadPoolExecutor(MAX_CONCURRENT_STEPS, thread_name_prefix="sie-step") as pool:
        return list(pool.map(functools.partial(_ask, client), steps))


def _ask(client: Any, step: Step) -> Outcome:
    try:
        if step.timeout_seconds is None:
            return _call(client, step)
        if _takes_timeout(client.score):
            return _call(client, step, timeout_seconds=step.timeout_seconds)
        return _call_in_thread(client, step, step.timeout_seconds)
    except Exception as exc:  # noqa: BLE001  the plan decides what it means
        return exc


def _call(client: Any, step: Step, **more: Any) -> Reply:
    with within(step.context):
        reply: Reply = client.score(step.model, step.query, step.items, **step.arguments, **more)
    return reply


def _call_in_thread(client: Any, step: Step, seconds: float) -> Reply:
    """Bound a client that takes no bound: its call goes on in a thread, and nobody waits for it."""
    future: Future[Reply] = Future()

    def call() -> None:
        try:
            future.set_result(_call(client, step))
        except BaseException as exc:  # noqa: BLE001  it is raised where it is waited for
            future.set_exception(exc)

    threading.Thread(target=call, name="sie-step", daemon=True).start()
    try:
        return future.result(seconds)
    except FutureTimeoutError as exc:
        if future.done():
            raise
        raise _exceeded(step) from exc


async def _score_all_async(client: Any, steps: Sequence[Step]) -> Sequence[Outcome]:
    if len(steps) == 1:
        return [await _ask_async(client, steps[0])]
    score_many = getattr(client, "score_many", None)
    if score_many is not None:
        outcomes: Sequence[Outcome] = await score_many(steps)
        return outcomes
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
    bound = asyncio.timeout(step.timeout_seconds)
    takes_bound = step.timeout_seconds is not None and _takes_timeout(client.score)
    more = {"timeout_seconds": step.timeout_seconds} if takes_bound else {}
    try:
        async with bound:  # it also cuts what a client does before it looks at the time
            with within(step.context):
                asking: Awaitable[Reply] = client.score(
                    step.model, step.query, step.items, **step.arguments, **more
                )
                return await asking
    except TimeoutError as exc:
        return _exceeded(step) if bound.expired() else exc
    except Exception as exc:  # noqa: BLE001  the plan decides what it means
        return exc


def _takes_timeout(score: Callable[..., Any]) -> bool:
    parameters = inspect.signature(score).parameters
    return "timeout_seconds" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _exceeded(step: Step) -> DeadlineExceededError:
    seconds, num_items = step.timeout_seconds or 0.0, len(step.items)
    msg = f"{seconds:g} s passed while scoring {num_items} items with {step.model}"
    return DeadlineExceededError(msg)
