"""`SIEAsyncClient`: calls an SIE server from any number of event loops."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeVar, overload

import httpcore
import httpx

from sie_core.errors import ClientClosedError
from sie_core.remote.codec import ContentFormat
from sie_core.remote.endpoint import Call, CallArguments, EndpointClient
from sie_core.remote.plan import Broken, Plan, Send
from sie_core.remote.pool import (
    AsyncPool,
    Cookies,
    GivenAsyncPool,
    is_plain,
    open_async_pool,
    to_headers,
    to_reply,
    to_request,
)
from sie_core.remote.transport import FOREIGN_ERRORS, Route, broken
from sie_core.remote.wire import Health, Reply
from sie_core.settings import RemoteSettings
from sie_core.types import EncodeResult, Item, ScoreResult

_T = TypeVar("_T")

_CLOSE_SECONDS = 2.0
"""How long `close` waits for other threads' event loops to close their connections."""

_inherited: list[object] = []
"""Pools that a forked child got from its parent, never used nor closed: the parent's still are."""


class _Pool:
    """One event loop's connections. They are closed with the loop, if not before."""

    def __init__(self, connections: AsyncPool) -> None:
        self.connections = connections
        self._closed = threading.Event()
        self._keeper = self._keep(connections, self._closed)

    async def open(self) -> None:
        """Let the loop know: it finishes its asynchronous generators before it closes (PEP 525)."""
        await anext(self._keeper)

    async def close(self) -> None:
        """Close the connections. May be called twice."""
        await self._keeper.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether they are closed, or about to be."""
        return self._closed.is_set()

    @staticmethod  # a reference to the pool would be a circle, and keep a lost one alive
    async def _keep(connections: AsyncPool, closed: threading.Event) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            closed.set()
            await connections.aclose()


class SIEAsyncClient(EndpointClient):
    """Score and encode on an SIE server, for asyncio.

    One client serves any number of event loops, in turn or at once: each has connections of its
    own, which are closed with it. See `SIEClient` for what the arguments and calls mean.

    Args:
        base_url: Address, such as `http://localhost:8080`, or several, as a list or with commas
            between: each request goes to the one with the fewest under way, those that fail are
            left alone for a while. None means `SIE_BASE_URL`.
        api_key: Sent to that origin only; None means `SIE_API_KEY`.
        timeout_seconds: Bound on one whole call; None means the settings' 180.
        timeout_s: The same, by the name that other packages use.
        connect_timeout_seconds: How long a server that does not answer at all is waited for.
        gpu: Machine profile, such as `l4`, or `pool/l4`.
        pool: Pool of machines, where `gpu` names none.
        options: Sent with every call; a call's own options win.
        wait_for_capacity: Wait while the cluster starts a machine.
        provision_timeout_seconds: Own budget for that wait, on top of `timeout_seconds`; None means
            that it counts against `timeout_seconds`.
        max_concurrency: Parts of one large call that are under way at a time.
        content_format: `msgpack` or `json`.
        settings: All numbers; the arguments above win.
        transport: Used instead of real connections, such as httpx.MockTransport in tests.

    Raises:
        InvalidRequestError: An argument is wrong.
    """

    def __init__(
        self,
        base_url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float | None = None,
        timeout_s: float | None = None,
        connect_timeout_seconds: float | None = None,
        gpu: str | None = None,
        pool: str | None = None,
        options: Mapping[str, Any] | None = None,
        wait_for_capacity: bool = False,
        provision_timeout_seconds: float | None = None,
        max_concurrency: int | None = None,
        content_format: ContentFormat = "msgpack",
        settings: RemoteSettings | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(
            base_url,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            timeout_s=timeout_s,
            connect_timeout_seconds=connect_timeout_seconds,
            gpu=gpu,
            pool=pool,
            options=options,
            wait_for_capacity=wait_for_capacity,
            provision_timeout_seconds=provision_timeout_seconds,
            max_concurrency=max_concurrency,
            content_format=content_format,
            settings=settings,
        )
        self._transport = transport
        self._settle()

    async def score(
        self,
        model: str,
        query: Item,
        items: Sequence[Item],
        *,
        instruction: str | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> ScoreResult:
        """Score `items` against `query`; see `SIEClient.score`."""
        arguments = CallArguments(
            instruction=instruction,
            options=options,
            gpu=gpu,
            wait_for_capacity=wait_for_capacity,
            timeout_seconds=timeout_seconds,
        )
        return await self._run(self._endpoint.score(model, query, items, arguments))

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
        wait_for_capacity: bool | None = None,
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
        wait_for_capacity: bool | None = None,
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
        wait_for_capacity: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> EncodeResult | list[EncodeResult]:
        """Turn items into embeddings; see `SIEClient.encode`."""
        arguments = CallArguments(
            instruction=instruction,
            options=options,
            gpu=gpu,
            wait_for_capacity=wait_for_capacity,
            timeout_seconds=timeout_seconds,
        )
        return await self._run(
            self._endpoint.encode(
                model,
                items,
                arguments,
                output_types=output_types,
                output_dtype=output_dtype,
                is_query=is_query,
            )
        )

    async def list_models(self, *, timeout_seconds: float | None = None) -> list[dict[str, Any]]:
        """Return what the server says of each of its models."""
        return await self._run(self._endpoint.list_models(timeout_seconds))

    async def get_model(
        self, model: str, *, timeout_seconds: float | None = None
    ) -> dict[str, Any]:
        """Return what the server says of one model; see `SIEClient.get_model`."""
        return await self._run(self._endpoint.get_model(model, timeout_seconds))

    async def health(self, *, timeout_seconds: float | None = None) -> Health:
        """Ask whether the server is alive, once; see `SIEClient.health`."""
        return await self._run(self._endpoint.health(timeout_seconds))

    async def close(self) -> None:
        """Close all connections, those of other running event loops too. May be called twice."""
        self._is_closed = True
        with self._lock:
            pools = list(self._pools.items())
            self._pools.clear()
        if self._pid != os.getpid():
            _inherited.append(pools)
            return
        elsewhere = []
        for loop, pool in pools:
            if loop is asyncio.get_running_loop():
                await pool.close()
            elif loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(pool.close(), loop)
                elsewhere.append(asyncio.wrap_future(closing))
        if elsewhere:
            await asyncio.wait(elsewhere, timeout=_CLOSE_SECONDS)

    aclose = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        pools = getattr(self, "_pools", None)
        if not pools or self._pid != os.getpid():
            _inherited.extend(pools.items() if pools else ())
            return
        if any(not pool.is_closed for pool in pools.values()):
            msg = f"{self!r} was not closed: use `async with`, or `await client.close()`"
            warnings.warn(msg, ResourceWarning, source=self, stacklevel=2)

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        """Make another client for the same server, with connections of its own."""
        twin = object.__new__(type(self))
        twin.__setstate__({"endpoint": self._endpoint, "transport": self._transport})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the key and the connections."""
        return {"endpoint": self._endpoint.without_key(), "transport": self._transport}

    def __setstate__(self, state: dict[str, Any]) -> None:
        endpoint = state["endpoint"]
        is_whole = endpoint.api_key is not None
        self._endpoint = endpoint if is_whole else endpoint.with_key_from_environment()
        self._transport = state["transport"]
        self._settle()

    def _settle(self) -> None:
        self._is_closed = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._routes: dict[str, Route] | None = None
        self._cookies = Cookies()
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = (
            weakref.WeakKeyDictionary()
        )

    async def _run(self, call: Call[_T]) -> _T:
        """Carry out a call: its one request here, several in tasks."""
        self._check_open()
        if len(call.plans) <= 1:
            return call.merge([await self._drive(plan) for plan in call.plans])
        places = asyncio.Semaphore(self._endpoint.settings.max_concurrency)

        async def drive(plan: Plan[Any]) -> Any:
            async with places:
                return await self._drive(plan)

        tasks = [asyncio.create_task(drive(plan)) for plan in call.plans]
        try:
            return call.merge(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, plan: Plan[_T]) -> _T:
        """Do what the plan says until it ends."""
        outcome: Reply | Broken | None = None
        try:
            while True:
                step = plan.send(outcome)
                if isinstance(step, Send):
                    outcome = await self._send(step)
                else:
                    await asyncio.sleep(step.seconds)
                    outcome = None
        except StopIteration as end:
            answer: _T = end.value
            return answer

    async def _send(self, step: Send) -> Reply | Broken:
        """Send one request and read the reply, no longer and no further than allowed."""
        pool = await self._connections()
        left = max(step.moment - time.monotonic(), 0.001)
        try:
            request = to_request(
                step,
                {**self._endpoint.authorization(), **self._cookies.header(step.url)},
                connect_seconds=min(self._endpoint.settings.connect_timeout_seconds, left),
                seconds=left,
            )
            async with asyncio.timeout(left):
                response = await pool.handle_async_request(request)
                async with aclosing(response):
                    self._cookies.keep(step.url, response)
                    reply = await _read(response, step.request.max_reply_bytes)
        except FOREIGN_ERRORS as exc:
            self._check_open()  # if it was closed meanwhile, that is why
            return broken(exc)
        except RuntimeError:  # a transport's word for having been closed by another task
            self._check_open()
            raise
        self._note_version(reply)
        return reply

    def _check_open(self) -> None:
        if self._is_closed:
            msg = "this client is closed; make a new one"
            raise ClientClosedError(msg)

    async def _connections(self) -> AsyncPool:
        """Return the running loop's connection pool, opening it at the first use."""
        self._check_open()
        if self._pid != os.getpid():
            _inherited.append(self._pools)
            self._settle()
        loop = asyncio.get_running_loop()
        with self._lock:
            pool = self._pools.get(loop)
            is_new = pool is None or pool.is_closed
            if pool is None or is_new:
                pool = self._pools[loop] = _Pool(self._open())
        if is_new:
            await pool.open()
        return pool.connections

    def _open(self) -> AsyncPool:
        if self._transport is not None:
            return GivenAsyncPool(self._transport)
        if self._routes is None:
            self._routes = {it: Route.to(it) for it in self._endpoint.servers.addresses}
        return open_async_pool(self._routes, self._endpoint.settings.keepalive_seconds)


async def _read(response: httpcore.Response, max_bytes: int) -> Reply:
    """Read a reply's body up to the limit; beyond it, the connection is dropped."""
    headers = to_headers(response)
    body = bytearray()
    if is_plain(headers):
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > max_bytes:
                break
    return to_reply(response, headers, body, max_bytes)
