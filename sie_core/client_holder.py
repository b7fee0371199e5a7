"""`ClientHolder`: which model answers, and where: what `Reranker` and `Embedder` share.

It opens the client at the first call, closes it, and leaves secrets and whatever belongs to one
process out of copies and pickles. What is asked of the client is its subclasses' affair.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from sie_core.deadline import check_timeout_seconds
from sie_core.errors import InvalidRequestError
from sie_core.fallback import LOCAL, Backend, open_backend
from sie_core.settings import RemoteSettings, check_mode
from sie_core.types import Mode

_RUNTIME = ("_lock", "_opened", "_is_warm", "_watch")
"""What belongs to one process and is made anew in a copy."""


class ClientHolder:
    """Hold the name of a model and the client that calls go to, made at the first of them.

    See `Reranker` for the arguments and for what holds for threads, copies, pickles and `close`.

    Raises:
        InvalidRequestError: An argument is wrong, or two exclude each other.
    """

    _client_method: ClassVar[str]
    """What is asked of the client: `score` or `encode`."""
    _async_method: ClassVar[str]
    """Its own method for coroutines, for an error."""

    _is_warm: bool

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str | None,
        client: Any,
        async_client: Any,
        instruction: str | None,
        options: Mapping[str, Any] | None,
        gpu: str | None,
        wait_for_capacity: bool,
        timeout_seconds: float | None,
        device: str | Sequence[str] | None,
        mode: Mode,
        dtype: str | None,
        num_threads: int | None,
        max_length: int | None,
        batch_size: int | None,
        revision: str | None,
        token: str | None,
        cache_dir: str | Path | None,
    ) -> None:
        check_timeout_seconds(timeout_seconds)
        check_mode(mode, dtype)
        check_text(model=model, instruction=instruction, base_url=base_url)
        is_given = client is not None or async_client is not None
        if is_given:
            _refuse_with_client(
                base_url=base_url,
                timeout_seconds=timeout_seconds,
                device=device,
                mode=None if mode == "auto" else mode,
                dtype=dtype,
                num_threads=num_threads,
            )
        self.model = model
        self.base_url = None if is_given else base_url or os.environ.get("SIE_BASE_URL") or None
        self.instruction = instruction
        self.options = dict(options or {})
        self.gpu = gpu
        self.timeout_seconds = timeout_seconds
        self.max_length = max_length
        self.batch_size = batch_size
        self._local_arguments = {
            "device": device,
            "mode": mode,
            "dtype": dtype,
            "num_threads": num_threads,
            "timeout_seconds": timeout_seconds,
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
        }
        self._remote_arguments = {
            "api_key": api_key,
            "timeout_seconds": timeout_seconds,
            "wait_for_capacity": wait_for_capacity,
        }
        self._client = client
        self._async_client = async_client
        self._settle()

    def warm_up(self) -> None:
        """Fetch and load an in-process model now, so that the first call does not pay for it.

        A server, or a client that was given, loads when it sees fit: for those it does nothing.
        """
        if not self.is_local or self._is_warm:
            return
        self._warm_up(self._open(is_async=False))
        self._is_warm = True

    async def awarm_up(self) -> None:
        """Do what `warm_up` does, without blocking the event loop."""
        await asyncio.to_thread(self.warm_up)

    def close(self) -> None:
        """Release the model, unless others in this process still hold it, and all connections.

        May be called twice.
        """
        opened = self._take_opened()
        for client in opened:
            closing = client.close()
            if inspect.isawaitable(closing):
                _finish(closing)

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        for client in self._take_opened():
            if inspect.iscoroutinefunction(client.close):
                await client.close()
            else:
                await asyncio.to_thread(client.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        where = "in-process" if self.is_local else self.base_url or "given client"
        return f"{type(self).__name__}(model={self.model!r}, {where}{self._shown()})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out secrets, and what belongs to this process."""
        return {
            **{name: value for name, value in self.__dict__.items() if name not in _RUNTIME},
            "_local_arguments": self._local_arguments | {"token": None},
            "_remote_arguments": self._remote_arguments | {"api_key": None},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._settle()

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Make another with the same settings, secrets included: it stays in this process.

        Clients and a hook that were given are shared, as they stay the caller's.
        """
        memo = sharing_given(self, memo)
        twin = object.__new__(type(self))
        twin.__setstate__(
            {
                name: copy.deepcopy(value, memo)
                for name, value in self.__dict__.items()
                if name not in _RUNTIME
            }
        )
        return twin

    def _settle(self) -> None:
        self._lock = threading.Lock()
        _holders.add(self)
        self._opened: dict[bool, Any] = {}
        self._is_warm = False

    @property
    def is_local(self) -> bool:
        """Whether the model runs in this process, with no client given."""
        return self.base_url is None and self._client is None and self._async_client is None

    @property
    def execution(self) -> str | None:
        """How an in-process model runs, and why so: its mode, format, workers; None before that."""
        for client in self._opened.values():
            if (loaded := getattr(client, "loaded", None)) is not None:
                return next(iter(loaded().values()), None)
        return None

    @property
    def _whole_timeout_seconds(self) -> float | None:
        """Seconds of one whole call, however many requests it takes; None bounds it nowhere."""
        if self.timeout_seconds is None and self.base_url is not None:
            return RemoteSettings().timeout_seconds
        return self.timeout_seconds

    def _open(self, *, is_async: bool) -> Any:
        """Return the client that calls go to; make it at the first call."""
        with self._lock:
            if is_async not in self._opened:
                self._opened[is_async] = self._make_client(is_async=is_async)
            return self._opened[is_async]

    def _take_opened(self) -> list[Any]:
        """Forget the clients made here, and return them to be closed. Given ones stay open."""
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
            self._is_warm = False
        return [client for client in opened if not isinstance(client, _Given)]

    def _shown(self) -> str:
        """Return what else a repr shows."""
        return ""

    def _warm_up(self, client: Any) -> None:
        client.warm_up(self.model)

    def _make_client(self, *, is_async: bool) -> Any:
        first = self._first_backend(is_async=is_async)
        if isinstance(first.client, str):
            return open_backend(first, is_async)
        return _Given(first.client, self._client_method, is_async=is_async)

    def _first_backend(self, *, is_async: bool) -> Backend:
        if self.is_local:
            return self._backend(LOCAL)
        if self.base_url is not None:
            return Backend(client=self.base_url, arguments=self._remote_arguments)
        if is_async:
            return self._backend(self._async_client or self._client)
        if self._client is None:
            msg = (
                f"only async_client was given: call {self._async_method}, "
                "or pass client= for sync calls"
            )
            raise InvalidRequestError(msg)
        return self._backend(self._client)

    def _backend(self, client: Any) -> Backend:
        if isinstance(client, Backend):
            return client
        return Backend(client=client, arguments=self._local_arguments if client == LOCAL else {})

    def _arguments(self, instruction: str | None = None, **options: Any) -> dict[str, Any]:
        """Collect what goes with every call to the client, leaving out what was not set."""
        options = {"max_length": self.max_length, "batch_size": self.batch_size, **options}
        given = {name: value for name, value in options.items() if value is not None}
        arguments = {
            "instruction": instruction or None,
            "options": self.options | given or None,
            "gpu": self.gpu,
        }
        return {name: value for name, value in arguments.items() if value is not None}


_GIVEN = ("client", "_client", "async_client", "_async_client", "on_rerank")
"""Where this class and components have what stays the caller's."""


def sharing_given(component: Any, memo: dict[int, Any] | None) -> dict[int, Any]:
    """Return a memo for a deep copy that has the same clients and the same hook.

    They stay the caller's, and may hold locks or sockets, which cannot be copied.
    """
    fallback: Any = getattr(component, "fallback", None)
    is_one = isinstance(fallback, str) or not isinstance(fallback, Sequence)
    members = [fallback] if is_one else fallback
    given = [getattr(component, name, None) for name in _GIVEN]
    given += [it.client if isinstance(it, Backend) else it for it in members]
    memo = {} if memo is None else memo
    memo.update((id(one), one) for one in given)
    return memo


_holders: weakref.WeakSet[ClientHolder] = weakref.WeakSet()


def _renew_locks_after_fork() -> None:
    """Let nobody in a forked child wait for a thread that opened a client and is not there."""
    for holder in list(_holders):
        holder._lock = threading.Lock()  # noqa: SLF001  it is of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks_after_fork)


class _Given:
    """A client that the caller gave: used as it is, never closed. A sync one gets a thread."""

    def __init__(self, client: Any, method: str, *, is_async: bool) -> None:
        call = getattr(client, method)
        is_native = inspect.iscoroutinefunction(call)
        setattr(self, method, call if is_native or not is_async else _in_thread(call))
        for name in ("base_url", "source_of", "scheduler_stats"):
            if hasattr(client, name):
                setattr(self, name, getattr(client, name))
        many = getattr(client, "score_many", None)
        if many is not None:
            self.score_many = many if is_native or not is_async else _in_thread(many)


def _in_thread(ask: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(ask)
    async def call(*positional: Any, **named: Any) -> Any:
        return await asyncio.to_thread(ask, *positional, **named)

    return call


def _finish(closing: Awaitable[None]) -> None:
    """Wait for an async close from sync code; inside a running loop it must do so by itself."""

    async def wait() -> None:
        await closing

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(wait())
        return
    task = loop.create_task(wait())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()
"""Held until done: the event loop itself holds tasks only weakly."""


def _refuse_with_client(**settings: object) -> None:
    given = [name for name, value in settings.items() if value is not None]
    if given:
        msg = f"{', '.join(given)} cannot be combined with a client: set it on the client"
        raise InvalidRequestError(msg)


def check_text(**values: object) -> None:
    """Raise InvalidRequestError unless each value is a string or None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            msg = f"{name} must be a string, but got {type(value).__name__}: {value!r}"
            raise InvalidRequestError(msg)
