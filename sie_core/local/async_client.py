"""`LocalAsyncClient`: `LocalClient` for asyncio. Nothing in it blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Self, TypeVar

from sie_core.deadline import Deadline
from sie_core.local.client import LocalClient, check_request, encode, to_result
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
        # Shielded, because the load is shared: one cancelled task must not cancel it for others.
        loading = asyncio.shield(asyncio.wrap_future(client.load(model)))
        loaded = await _wait(loading, deadline, f"loading {model}")
        encoded = await asyncio.to_thread(encode, request, loaded.encoder)
        scoring = asyncio.wrap_future(client.submit(loaded, encoded, request))
        logits = await _wait(scoring, deadline, f"scoring {len(items)} items with {model}")
        return to_result(request, encoded, logits, loaded.encoder)

    async def warm_up(self, model: str, *, timeout_seconds: float | None = None) -> None:
        """Do what `LocalClient.warm_up` does."""
        query = Item(text="warm up")
        await self.score(model, query, [query], timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        """Unload the models that no other client holds. May be called twice."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"LocalAsyncClient({self._client!r})"


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
