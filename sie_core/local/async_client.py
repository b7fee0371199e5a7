"""`LocalAsyncClient`: `LocalClient` for asyncio. Nothing in it blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Self, TypeVar

from sie_core.deadline import Deadline
from sie_core.local.client import (
    LocalClient,
    check_request,
    encode,
    to_result,
    warm_up_workers,
)
from sie_core.local.registry import LoadedModel
from sie_core.types import Item, ScoreResult

_T = TypeVar("_T")


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
        client = self._client
        request = check_request(model, query, items, instruction, options)
        deadline = client.deadline(timeout_seconds)
        loaded = await self._load(model, deadline)
        encoded = await asyncio.to_thread(encode, request, loaded.encoder)
        scoring = client.submit(loaded, encoded, request)
        try:
            doing = f"scoring {len(items)} items with {model}"
            logits = await _wait(asyncio.wrap_future(scoring), deadline, doing)
        finally:
            scoring.cancel()  # without effect on an answer; drops the work of one who has left
        return to_result(request, encoded, logits, loaded.encoder)

    async def warm_up(self, model: str, *, timeout_seconds: float | None = None) -> None:
        """Do what `LocalClient.warm_up` does."""
        deadline = self._client.deadline(timeout_seconds)
        loaded = await self._load(model, deadline)
        for running in warm_up_workers(loaded):
            await _wait(asyncio.wrap_future(running), deadline, f"warming up {model}")

    async def close(self) -> None:
        """Unload the models that no other client holds. May be called twice."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"LocalAsyncClient({self._client!r})"

    async def _load(self, model: str, deadline: Deadline) -> LoadedModel:
        # Shielded, because the load is shared: one cancelled task must not cancel it for others.
        loading = asyncio.shield(asyncio.wrap_future(self._client.load(model)))
        return await _wait(loading, deadline, f"loading {model}")


async def _wait(future: Awaitable[_T], deadline: Deadline, doing: str) -> _T:
    """Await `future`, at most until the deadline."""
    bound = asyncio.timeout(deadline.remaining_seconds(doing))
    try:
        async with bound:
            return await future
    except TimeoutError as exc:
        if not bound.expired():
            raise
        raise deadline.exceeded(doing) from exc
