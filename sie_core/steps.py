"""`Step`: one scoring request, and the two ways to send some at the same time.

A plan (see `sie_core.rerank_plan`) says what to ask and does no I/O; `run` and `arun` do what it
says, with a client that blocks and with one that is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

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
        context: What is traced, so that what the client does belongs to it; None: not traced.
    """

    model: str
    query: Item
    items: Sequence[Item]
    arguments: Mapping[str, Any] = field(default_factory=dict)
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


def _score_all(client: Any, steps: Sequence[Step]) -> list[Outcome]:
    def ask(step: Step) -> Outcome:
        try:
            with within(step.context):
                reply: Reply = client.score(step.model, step.query, step.items, **step.arguments)
        except Exception as exc:  # noqa: BLE001  the plan decides what it means
            return exc
        return reply

    if len(steps) == 1:
        return [ask(steps[0])]
    with ThreadPoolExecutor(MAX_CONCURRENT_STEPS, thread_name_prefix="sie-step") as pool:
        return list(pool.map(ask, steps))


async def _score_all_async(client: Any, steps: Sequence[Step]) -> list[Outcome]:
    room = asyncio.Semaphore(MAX_CONCURRENT_STEPS)

    async def ask(step: Step) -> Outcome:
        try:
            async with room:
                with within(step.context):
                    asking: Awaitable[Reply] = client.score(
                        step.model, step.query, step.items, **step.arguments
                    )
                    return await asking
        except Exception as exc:  # noqa: BLE001  the plan decides what it means
            return exc

    if len(steps) == 1:
        return [await ask(steps[0])]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(step)) for step in steps]
    return [task.result() for task in tasks]
