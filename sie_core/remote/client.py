"""`SIEClient`: calls an SIE server from any number of threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, Final, Self, TypeVar, overload

import httpcore
import httpx

from sie_core.errors import ClientClosedError
from sie_core.remote.codec import ContentFormat
from sie_core.remote.endpoint import Call, CallArguments, EndpointClient
from sie_core.remote.plan import Broken, Pause, Plan, Send
from sie_core.remote.pool import (
    Cookies,
    GivenPool,
    Pool,
    is_plain,
    open_pool,
    to_headers,
    to_reply,
    to_request,
)
from sie_core.remote.transport import FOREIGN_ERRORS, Scope, broken, within
from sie_core.remote.wire import Health, Reply
from sie_core.settings import RemoteSettings
from sie_core.types import EncodeResult, Item, ScoreResult

_T = TypeVar("_T")

_NAP_SECONDS: Final = 0.1
"""Longest single sleep: how soon a pausing call notices that it was called off."""

_inherited: list[Pool] = []
"""Pools that a forked child got from its parent, never used nor closed: the parent's still are."""


class SIEClient(EndpointClient):
    """Score and encode on an SIE server.

    Safe to share between threads. Connections are kept and reused; a copy, an unpickled client and
    a forked child open their own. A pickle does not carry `api_key`: the process that unpickles it
    reads `SIE_API_KEY` anew.

    Args:
        base_url: Address, such as `http://localhost:8080`, or several, as a list or with commas
            between: each request goes to the one with the fewest under way, those that fail are
            left alone for a while. None means `SIE_BASE_URL`.
        api_key: Sent to that origin only; None means `SIE_API_KEY`.
        timeout_seconds: Bound on one whole call, retries and the server's loading included; None
            means the settings' 180.
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

    _pool: Pool | None
    _is_closed: bool

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
        transport: httpx.BaseTransport | None = None,
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

    def score(
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
        """Score `items` against `query`.

        Args:
            model: The model's name on the server.
            query: `Item(text=…)`; its id, if any, comes back as `query_id`.
            items: `Item(id=…, text=…)`; those without an id come back as `item-N`. Any number:
                a call with more than one request holds is split and put together again.
            instruction: Put before the query, for models trained with instructions.
            options: For the model, such as `{"profile": "…"}`.
            gpu: Instead of the client's, as are the two below; None means that one.
            wait_for_capacity: See the class.
            timeout_seconds: See the class.

        Returns:
            Scores, best first; equal scores keep the order of `items`.

        Raises:
            InvalidRequestError: An argument is wrong.
            InvalidResponseError: The reply cannot be trusted.
            DeadlineExceededError: Time ran out.
            SIEConnectionError: There is no server.
            SIEError: The server refused or failed.
        """
        arguments = CallArguments(
            instruction=instruction,
            options=options,
            gpu=gpu,
            wait_for_capacity=wait_for_capacity,
            timeout_seconds=timeout_seconds,
        )
        return self._run(self._endpoint.score(model, query, items, arguments))

    @overload
    def encode(
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
    def encode(
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

    def encode(
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
        """Turn items into embeddings.

        Args:
            model: The model's name on the server.
            items: One item, or a list of them.
            output_types: `dense`, `multivector`, `sparse`; None means the model's own.
            instruction: For models trained with instructions.
            output_dtype: `float32`, `float16`, `int8`, …; None means the model's own.
            is_query: Whether the texts are queries, where the model tells them from documents.
            options: For the model.
            gpu: See `score`, as for the two below.
            wait_for_capacity: See the class.
            timeout_seconds: See the class.

        Returns:
            For one item a map with `dense` ([dims]) and `multivector` ([num_tokens, token_dims])
            as numpy arrays, as far as asked for; for a list a list of them, in its order.

        Raises:
            SIEError: As for `score`.
        """
        arguments = CallArguments(
            instruction=instruction,
            options=options,
            gpu=gpu,
            wait_for_capacity=wait_for_capacity,
            timeout_seconds=timeout_seconds,
        )
        return self._run(
            self._endpoint.encode(
                model,
                items,
                arguments,
                output_types=output_types,
                output_dtype=output_dtype,
                is_query=is_query,
            )
        )

    def list_models(self, *, timeout_seconds: float | None = None) -> list[dict[str, Any]]:
        """Return what the server says of each of its models."""
        return self._run(self._endpoint.list_models(timeout_seconds))

    def get_model(self, model: str, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Return what the server says of one model.

        Raises:
            ModelNotFoundError: It has none of that name.
        """
        return self._run(self._endpoint.get_model(model, timeout_seconds))

    def health(self, *, timeout_seconds: float | None = None) -> Health:
        """Ask whether the server is alive, once; None means at most ten seconds.

        Raises:
            SIEError: It is not.
        """
        return self._run(self._endpoint.health(timeout_seconds))

    def close(self) -> None:
        """Close all connections; calls under way end. May be called twice."""
        self._is_closed = True
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._pid == os.getpid():
            pool.close()
        else:
            _inherited.append(pool)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self.close()

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
        # A copy within this process still has its key; an unpickled one looks for it.
        is_whole = endpoint.api_key is not None
        self._endpoint = endpoint if is_whole else endpoint.with_key_from_environment()
        self._transport = state["transport"]
        self._settle()

    def _settle(self) -> None:
        self._is_closed = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pool = None
        self._cookies = Cookies()

    def _run(self, call: Call[_T]) -> _T:
        """Carry out a call: its one request here, several in threads."""
        self._connections()
        if len(call.plans) <= 1:
            never = threading.Event()
            return call.merge([self._drive(plan, never) for plan in call.plans])
        return call.merge(self._run_parts(call.plans))

    def _run_parts(self, plans: list[Plan[Any]]) -> list[Any]:
        """Carry out plans at once, within the bound; the first to fail ends them all."""
        called_off = threading.Event()
        num_threads = min(len(plans), self._endpoint.settings.max_concurrency)
        with ThreadPoolExecutor(num_threads, thread_name_prefix="sie-remote") as threads:
            try:
                futures = [threads.submit(self._drive, plan, called_off) for plan in plans]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            finally:
                called_off.set()
                threads.shutdown(wait=False, cancel_futures=True)

    def _drive(self, plan: Plan[_T], called_off: threading.Event) -> _T:
        """Do what the plan says until it ends."""
        outcome: Reply | Broken | None = None
        try:
            while not called_off.is_set():
                step = plan.send(outcome)
                if isinstance(step, Send):
                    outcome = self._send(step, called_off)
                else:
                    self._pause(step, called_off)
                    outcome = None
        except StopIteration as end:
            answer: _T = end.value
            return answer
        plan.close()
        raise CancelledError

    def _send(self, step: Send, called_off: threading.Event) -> Reply | Broken:
        """Send one request and read the reply, no longer and no further than allowed."""
        pool = self._connections()
        left = max(step.moment - time.monotonic(), 0.001)
        scope = Scope(step.moment, lambda: self._is_closed or called_off.is_set())
        try:
            request = to_request(
                step,
                {**self._endpoint.authorization(), **self._cookies.header(step.url)},
                connect_seconds=min(self._endpoint.settings.connect_timeout_seconds, left),
                seconds=left,
            )
            with within(scope), closing(pool.handle_request(request)) as response:
                self._cookies.keep(step.url, response)
                reply = _read(response, step.request.max_reply_bytes, scope)
        except FOREIGN_ERRORS as exc:
            self._connections()  # if it was closed meanwhile, that is why
            return broken(exc)
        except RuntimeError:  # a transport's word for having been closed in another thread
            self._connections()
            raise
        self._note_version(reply)
        return reply

    def _pause(self, step: Pause, called_off: threading.Event) -> None:
        end = time.monotonic() + step.seconds
        while (left := end - time.monotonic()) > 0:
            called_off.wait(min(left, _NAP_SECONDS))
            self._connections()
            if called_off.is_set():
                return

    def _connections(self) -> Pool:
        """Return this process's connection pool, opening it at the first use.

        Raises:
            ClientClosedError: The client was closed.
        """
        if self._is_closed:
            msg = "this client is closed; make a new one"
            raise ClientClosedError(msg)
        if self._pid != os.getpid():
            self._leave_to_parent()
        pool = self._pool
        if pool is None:
            with self._lock:
                pool = self._pool = self._pool or self._open()
        return pool

    def _leave_to_parent(self) -> None:
        """After a fork: the sockets, and a lock that another thread may hold, are the parent's."""
        if self._pool is not None:
            _inherited.append(self._pool)
        self._lock, self._pool, self._pid = threading.Lock(), None, os.getpid()
        self._cookies = Cookies()  # theirs have a lock too

    def _open(self) -> Pool:
        if self._transport is not None:
            return GivenPool(self._transport)
        endpoint = self._endpoint
        return open_pool(endpoint.servers.addresses, endpoint.settings.keepalive_seconds)


def _read(response: httpcore.Response, max_bytes: int, scope: Scope) -> Reply:
    """Read a reply's body up to the limit; beyond it, the connection is dropped."""
    headers = to_headers(response)
    body = bytearray()
    for chunk in response.iter_stream() if is_plain(headers) else ():
        scope.left(httpcore.ReadTimeout)
        body += chunk
        if len(body) > max_bytes:
            break
    return to_reply(response, headers, body, max_bytes)
