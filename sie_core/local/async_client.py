"""`LocalAsyncClient`: `LocalClient` for asyncio. Nothing in it blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar, TypeVarTuple, overload

from sie_core.deadline import Deadline
from sie_core.local.client import LOCAL_CONCURRENT_STEPS, LocalClient, doing, source_with
from sie_core.local.model import Job
from sie_core.local.registry import LoadedModel
from sie_core.local.requests import (
    EncodeRequest,
    ScoreRequest,
    check_encode_request,
    check_score_request,
)
from sie_core.local.results import put_timing, to_encode_results, to_score_result
from sie_core.local.scheduler import Running, SchedulerStats
from sie_core.local.stopwatch import Stopwatch
from sie_core.steps import Outcome, Step, gather
from sie_core.types import EncodeResult, Item, ScoreResult

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_MOST_CHARACTERS_AT_ONCE = 2048
"""Of a request that is prepared on the event loop itself: less than a millisecond of tokenising."""


class LocalAsyncClient:
    """Score with a model that runs in this process, from coroutines.

    Works from any number of event loops. A task that is cancelled stops its own work and nobody
    else's.

    Args:
        client: The client whose models and settings are used; None makes one of defaults.
            For others: `LocalAsyncClient(LocalClient(device="cuda:1"))`.
    """

    def __init__(self, client: LocalClient | None = None) -> None:
        self._client = client or LocalClient()

    async def score(
        self,
        model: str,
        query: Item,
        items: Sequence[Item],
        *,
        instruction: str | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> ScoreResult:
        """Do what `LocalClient.score` does."""
        del gpu
        watch = Stopwatch()
        request = check_score_request(model, query, items, instruction, options)
        deadline = self._client.deadline(timeout_seconds)
        loaded = await self._load(model, deadline)
        with loaded.calls:
            loading = self._client.load_adapter(loaded, request)
            if loading is not None:  # shielded, because it is shared
                what = f"loading the adapter {request.lora}"
                shielded = asyncio.shield(asyncio.wrap_future(loading))
                request = replace(request, adapter=await _wait(shielded, deadline, what))
            with watch:
                job = await _in_thread_if_large(request, loaded.model.score_job, request)
            running = await self._run(loaded, job, request, deadline)
        finished = (request, job, running.result(), loaded.model)
        result = await _in_thread_if_large(request, to_score_result, *finished)
        result["timing"] = watch.read(running)
        result["source"] = source_with(loaded, request.adapter)
        return result

    async def score_many(self, steps: Sequence[Step]) -> list[Outcome]:
        """Do what `LocalClient.score_many` does."""
        return await gather(self._score_one, steps, LOCAL_CONCURRENT_STEPS)

    def source_of(self, model: str, lora: str | None = None) -> str | None:
        """Do what `LocalClient.source_of` does."""
        return self._client.source_of(model, lora)

    @overload
    async def encode(
        self,
        model: str,
        items: Item,
        *,
        output_types: Sequence[str] | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        is_query: bool | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> EncodeResult: ...

    @overload
    async def encode(
        self,
        model: str,
        items: Sequence[Item],
        *,
        output_types: Sequence[str] | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        is_query: bool | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> list[EncodeResult]: ...

    async def encode(
        self,
        model: str,
        items: Item | Sequence[Item],
        *,
        output_types: Sequence[str] | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        is_query: bool | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> EncodeResult | list[EncodeResult]:
        """Do what `LocalClient.encode` does."""
        del gpu
        watch = Stopwatch()
        request = check_encode_request(
            model,
            items,
            is_query=is_query,
            output_types=output_types,
            output_dtype=output_dtype,
            instruction=instruction,
            options=options,
        )
        deadline = self._client.deadline(timeout_seconds)
        loaded = await self._load(model, deadline)
        with loaded.calls:
            with watch:
                job = await _in_thread_if_large(request, loaded.model.encode_job, request)
            running = await self._run(loaded, job, request, deadline)
        finished = (request, job, running.result(), loaded.model)
        results = await _in_thread_if_large(request, to_encode_results, *finished)
        put_timing(results, watch.read(running))
        return results[0] if request.is_single else results

    async def warm_up(self, model: str, *, timeout_seconds: float | None = None) -> None:
        """Do what `LocalClient.warm_up` does."""
        deadline = self._client.deadline(timeout_seconds)
        loaded = await self._load(model, deadline)
        for running in loaded.warm_up():
            await _wait(asyncio.wrap_future(running), deadline, f"warming up {model}")

    def scheduler_stats(self, model: str) -> SchedulerStats | None:
        """Do what `LocalClient.scheduler_stats` does."""
        return self._client.scheduler_stats(model)

    async def swap(self, name: str, new: str) -> int:
        """Do what `LocalClient.swap` does."""
        return await asyncio.to_thread(self._client.swap, name, new)

    async def load_lora(
        self, model: str, lora: str, *, timeout_seconds: float | None = None
    ) -> None:
        """Do what `LocalClient.load_lora` does."""
        load = self._client.load_lora
        await asyncio.to_thread(load, model, lora, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        """Unload the models that no other client holds. May be called twice."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"LocalAsyncClient({self._client!r})"

    async def _run(
        self,
        loaded: LoadedModel,
        job: Job[Any],
        request: ScoreRequest | EncodeRequest,
        deadline: Deadline,
    ) -> Running:
        """Run a job to its end."""
        running = self._client.submit(loaded, job, request)
        try:
            await _wait(asyncio.wrap_future(running), deadline, doing(request))
        finally:
            running.cancel()  # without effect on an answer; drops the work of one who has left
        return running

    async def _score_one(self, step: Step) -> Outcome:
        try:
            return await self.score(
                step.model,
                step.query,
                step.items,
                timeout_seconds=step.timeout_seconds,
                **step.arguments,
            )
        except Exception as exc:  # noqa: BLE001  it stands in the place of the step's answer
            return exc

    async def _load(self, model: str, deadline: Deadline) -> LoadedModel:
        loading = self._client.load(model)
        if loading.done():
            return loading.result()
        # Shielded, because the load is shared: one cancelled task must not cancel it for others.
        shielded = asyncio.shield(asyncio.wrap_future(loading))
        return await _wait(shielded, deadline, f"loading {model}")


async def _in_thread_if_large(
    request: ScoreRequest | EncodeRequest,
    work: Callable[[*_Ts], _T],
    *arguments: *_Ts,
) -> _T:
    """Do a small request's work here: a thread for it would cost several times as much.

    What a request of more text takes, milliseconds and more, must not hold up the event loop.
    """
    if request.num_characters <= _MOST_CHARACTERS_AT_ONCE:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


async def _wait(future: Awaitable[_T], deadline: Deadline, what: str) -> _T:
    """Await `future`, at most until the deadline."""
    bound = asyncio.timeout(deadline.remaining_seconds(what))
    try:
        async with bound:
            return await future
    except TimeoutError as exc:
        if not bound.expired():
            raise
        raise deadline.exceeded(what) from exc
