"""A client made of clients: the first that answers wins.

    chain = FallbackClient(["http://gpu:8080", "local", "retrieval_order"])
    result = chain.score(model, query, items)
    result["served_by"], result["status"], result.get("reason")

Who is asked, when, and what a call returns is decided by `_Race`, which asks nobody itself;
`FallbackClient` and `AsyncFallbackClient` do what it says. A `Breaker` per backend keeps calls
away from one that fails, and lets a single call probe it again after a while.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import importlib
import inspect
import logging
import math
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NotRequired, Self
from urllib.parse import urlsplit

from sie_core.breaker import Breaker, CircuitState
from sie_core.deadline import Deadline, check_timeout_seconds
from sie_core.errors import (
    CircuitOpenError,
    ClientClosedError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelError,
    SIEError,
)
from sie_core.ranking import match_scores
from sie_core.score_cache import source_of
from sie_core.settings import BreakerSettings
from sie_core.types import Item, ScoreResult

_logger = logging.getLogger(__name__)

RETRIEVAL_ORDER: Final = "retrieval_order"
"""The last resort: the candidates as they came, unscored, and marked as degraded."""

LOCAL: Final = "local"
"""The model in this process."""

_NOT_A_FAILURE: Final = (ClientClosedError, TypeError, AttributeError, NameError)
"""Mistakes in the calling program: no other backend should hide them."""

_OPTIONAL_ARGUMENTS: Final = ("gpu", "wait_for_capacity", "timeout_seconds")
"""Left out for a client whose `score` does not take them; all others it must take."""


class ChainResult(ScoreResult):
    """A `ScoreResult` that says who gave it.

    `status` is `degraded` where the order is not the requested model's: then `scores` is another
    model's, or, in retrieval order, empty. `reason` says why earlier backends did not answer.
    """

    status: NotRequired[Literal["complete", "degraded"]]
    served_by: NotRequired[str]
    reason: NotRequired[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One member of a chain.

    Attributes:
        client: A client, the address of a server, `local`, or `retrieval_order`.
        arguments: For the constructor of the client that an address or `local` stands for.
        model: What it is asked for instead of the caller's model; its answers are degraded.
        name: How it is called in `served_by`; None means its address or kind.
    """

    client: Any
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold a key
    model: str | None = None
    name: str | None = None

    def without_secrets(self) -> Backend:
        """Return what may be pickled: key and token are left to the other process's environment."""
        kept = {k: v for k, v in self.arguments.items() if k not in ("api_key", "token")}
        return replace(self, arguments=kept)


@dataclass(slots=True)
class _Link:
    """A backend made ready. What is named by a string is made at its first use, not before."""

    name: str
    model: str | None
    breaker: Breaker
    is_last_resort: bool
    make: Callable[[], Any] | None
    made: Any = None
    takes: frozenset[str] = frozenset()
    lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> Any:
        """Return the client.

        Raises:
            MissingDependencyError: Its extra is not installed.
        """
        with self.lock:
            if self.made is None and self.make is not None:
                self.made = self.make()
                self.takes = _parameters(self.made.score)
            return self.made

    def arguments(self, call: _ChainCall) -> dict[str, Any]:
        """Return the keyword arguments for this client; no time left is an error."""
        given = dict(call.arguments)
        left = call.deadline.remaining_seconds(f"asking {self.name}")
        if left is not None:
            given["timeout_seconds"] = left
        return {
            name: value
            for name, value in given.items()
            if name not in _OPTIONAL_ARGUMENTS or name in self.takes
        }


@dataclass(frozen=True, slots=True)
class _ChainCall:
    """One call's arguments; those that the caller left out are not passed on."""

    model: str
    query: Item
    items: Sequence[Item]
    arguments: dict[str, Any]
    deadline: Deadline
    is_hurried: bool = False
    """Whether this call had less time than others: running out of it is not a backend's fault."""


@dataclass(slots=True)
class _Race:
    """Who is asked when. `next_start` and `wait_seconds` say what to do, `finished` hears of it."""

    links: Sequence[_Link]
    call: _ChainCall
    hedge_seconds: float | None
    clock: Callable[[], float] = time.monotonic
    result: ChainResult | None = None
    running: set[int] = field(default_factory=set)
    position: int = 0
    last_start: float = 0.0
    errors: dict[int, BaseException] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def next_start(self) -> int | None:
        """Return the backend to ask now, None to wait or to stop; raise if all have failed."""
        if self.result is not None:
            return None
        if self.running and not self._is_hedge_due():
            return None
        while self.position < len(self.links):
            link = self.links[self.position]
            if link.is_last_resort:
                if self.running:  # a slow answer is still better than none
                    return None
                self.result = self._degraded(link)
                return None
            self.position += 1
            if link.breaker.admits():
                self.running.add(self.position - 1)
                self.last_start = self.clock()
                return self.position - 1
            self.skipped[self.position - 1] = f"not asked after {link.breaker.last_error}"
        if not self.running:
            self._raise()
        return None

    def wait_seconds(self) -> float | None:
        """Return how long to wait for who is running, before another is asked; None: till then."""
        has_more = any(not link.is_last_resort for link in self.links[self.position :])
        if self.hedge_seconds is None or not has_more:
            return None
        return max(self.last_start + self.hedge_seconds - self.clock(), 0.0)

    def finished(self, index: int, outcome: Mapping[str, Any] | BaseException) -> None:
        """Take an answer or a failure; the caller's own mistakes are raised."""
        self.running.discard(index)
        if isinstance(outcome, BaseException):
            is_callers = isinstance(outcome, InvalidRequestError) and index == 0
            if is_callers or not _is_failure(outcome):
                raise outcome
            self.errors[index] = outcome
            _logger.warning("%s did not answer: %s", self.links[index].name, outcome)
        elif self.result is None:
            self.result = self._answered(self.links[index], outcome)

    def _is_hedge_due(self) -> bool:
        wait = self.wait_seconds()
        return wait is not None and wait <= 0

    def _answered(self, link: _Link, reply: Mapping[str, Any]) -> ChainResult:
        is_other = link.model is not None and link.model != self.call.model
        lora = (self.call.arguments.get("options") or {}).get("lora")
        source = reply.get("source") or source_of(link.client(), self.call.model, lora)
        result: ChainResult = {
            **reply,  # type: ignore[typeddict-item]
            "status": "degraded" if is_other else "complete",
            "served_by": link.name,
        }
        if source is not None:
            result["source"] = source
        reason = self._reason()
        if is_other:
            reason = "; ".join(filter(None, [reason, f"scored with {link.model}"]))
        if reason:
            result["reason"] = reason
        return result

    def _degraded(self, link: _Link) -> ChainResult:
        return ChainResult(
            model=self.call.model,
            query_id=self.call.query.get("id"),
            scores=[],
            status="degraded",
            served_by=link.name,
            reason=self._reason() or "no other backend",
        )

    def _reason(self) -> str:
        """Say what became of each backend that did not answer."""
        said = {i: f"{type(error).__name__}: {error}" for i, error in self.errors.items()}
        said |= self.skipped
        return "; ".join(f"{self.links[i].name}: {said[i]}" for i in sorted(said))

    def _raise(self) -> None:
        """Raise what the first backend asked said, with notes on the others."""
        if not self.errors:
            msg = f"no backend is asked now, because each failed repeatedly: {self._reason()}"
            raise CircuitOpenError(msg)
        first = min(self.errors)
        error = self.errors[first]
        for index in sorted({*self.errors, *self.skipped} - {first}):
            what = self.skipped.get(index) or f"{type(self.errors[index]).__name__}"
            detail = f": {self.errors[index]}" if index in self.errors else ""
            error.add_note(f"{self.links[index].name}: {what}{detail}")
        raise error


def _is_failure(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, _NOT_A_FAILURE)


def _is_unwell(error: BaseException) -> bool:
    """Tell whether a failure speaks of the backend's health, rather than of this one request."""
    return _is_failure(error) and not isinstance(error, InvalidRequestError | ModelError)


def _report(link: _Link, error: BaseException, call: _ChainCall) -> None:
    if call.is_hurried and isinstance(error, DeadlineExceededError):
        link.breaker.abandoned()
    elif _is_unwell(error):
        link.breaker.failed(error)
    elif isinstance(error, InvalidRequestError | ModelError):
        link.breaker.succeeded()  # it is there, and it answered
    else:
        link.breaker.abandoned()


def _checked(reply: object, items: Sequence[Item], name: str) -> Mapping[str, Any]:
    """Trust no client: every item must be scored exactly once, and finitely.

    Raises:
        InvalidResponseError: It is not so.
    """
    if not isinstance(reply, Mapping) or not isinstance(reply.get("scores"), list):
        msg = f"{name} answered with no list of scores: {reply!r:.80}"
        raise InvalidResponseError(msg)
    ids = [item.get("id") or f"item-{i}" for i, item in enumerate(items)]
    if len(set(ids)) == len(ids):
        match_scores(reply["scores"], ids)
    elif len(reply["scores"]) != len(ids):
        msg = f"{name} gave {len(reply['scores'])} scores for {len(ids)} items"
        raise InvalidResponseError(msg)
    return reply


class _Chain:
    """What both kinds of chain share: their backends, and how they are copied."""

    _is_async: bool

    def __init__(
        self,
        backends: Sequence[Any],
        *,
        hedge_after_ms: float | None = None,
        timeout_seconds: float | None = None,
        breaker: BreakerSettings | None = None,
    ) -> None:
        if isinstance(backends, str | Mapping) or not isinstance(backends, Sequence):
            msg = f"backends must be a list of clients, addresses or names, but got {backends!r}"
            raise InvalidRequestError(msg)
        check_timeout_seconds(timeout_seconds)
        check_timeout_seconds(hedge_after_ms, name="hedge_after_ms")
        self._given = [
            backend if isinstance(backend, Backend) else Backend(client=backend)
            for backend in backends
        ]
        _check_backends(self._given)
        self.hedge_after_ms = hedge_after_ms
        self.timeout_seconds = timeout_seconds
        self._breaker = breaker or BreakerSettings()
        self._owns_all = False
        self._settle()

    @property
    def states(self) -> dict[str, CircuitState]:
        """The state of each backend's circuit breaker."""
        return {link.name: link.breaker.state for link in self._links if not link.is_last_resort}

    def scheduler_stats(self, model: str) -> Any | None:
        """Count what the model does in this process, if a backend has it there; see LocalClient."""
        for link in self._links:
            read = getattr(link.made, "scheduler_stats", None)
            stats = None if read is None else read(link.model or model)
            if stats is not None:
                return stats
        return None

    def source_of(self, model: str, lora: str | None) -> str | None:
        """Say whose scores the backend that is asked first would give; see `score_cache`."""
        first = next((it for it in self._links if it.breaker.state != "open"), self._links[0])
        is_other = first.model is not None and first.model != model
        if is_other or first.is_last_resort:
            return None
        try:
            return source_of(first.client(), model, lora)
        except SIEError:  # an extra is not installed: the call will say so, or ask the next
            return None

    def __repr__(self) -> str:
        names = ", ".join(repr(link.name) for link in self._links)
        return f"{type(self).__name__}([{names}])"

    def __getstate__(self) -> dict[str, Any]:
        """Keep what was asked for; a copy makes its own backends and has no failures to count."""
        kept = ("hedge_after_ms", "timeout_seconds", "_breaker")
        given = [backend.without_secrets() for backend in self._given]
        return {name: self.__dict__[name] for name in kept} | {"_given": given}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Make another chain with the same settings, secrets included: it stays in this process."""
        twin = object.__new__(type(self))
        given = [copy.deepcopy(backend, memo) for backend in self._given]
        twin.__setstate__(self.__getstate__() | {"_given": given})
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._owns_all = True  # the copies of given clients are nobody else's
        self._settle()

    def _settle(self) -> None:
        self._is_closed = False
        self._links: list[_Link] = []
        taken: set[str] = set()
        for backend in self._given:
            name = backend.name or name_of(backend.client)
            while name in taken:
                name += "'"
            taken.add(name)
            given = backend.client
            is_named = isinstance(given, str)
            link = _Link(
                name=name,
                model=backend.model,
                breaker=Breaker(self._breaker),
                is_last_resort=is_named and given == RETRIEVAL_ORDER,
                make=functools.partial(open_backend, backend, self._is_async) if is_named else None,
                made=None if is_named else given,
                takes=frozenset() if is_named else _parameters(given.score),
            )
            self._links.append(link)

    def _owned(self) -> list[Any]:
        """Return the clients that are the chain's to close."""
        own = (link for link in self._links if link.make is not None or self._owns_all)
        return [link.made for link in own if link.made is not None]

    def _race(
        self, model: str, query: Item, items: Sequence[Item], arguments: dict[str, Any]
    ) -> _Race:
        if self._is_closed:
            msg = "this chain is closed; make a new one"
            raise ClientClosedError(msg)
        own_seconds, timeout_seconds = arguments.pop("timeout_seconds"), self.timeout_seconds
        is_hurried = own_seconds is not None and own_seconds < (timeout_seconds or math.inf)
        call = _ChainCall(
            model,
            query,
            items,
            {name: value for name, value in arguments.items() if value is not None},
            Deadline.after(timeout_seconds if own_seconds is None else own_seconds),
            is_hurried,
        )
        hedge_ms = self.hedge_after_ms
        return _Race(self._links, call, None if hedge_ms is None else hedge_ms / 1000)


class FallbackClient(_Chain):
    """Ask backends in order until one answers.

    A backend that fails repeatedly is left alone for a while; see `states`. What the first one says
    of a wrong argument is raised at once: no other would find it right. If none answers, the first
    one's error is raised, with notes on the others.

    Args:
        backends: Clients, addresses of servers, `local`, and last `retrieval_order`; or `Backend`,
            for another model or name. Addresses are called with `SIE_API_KEY`; pass a client for
            other settings. Clients given stay the caller's to close.
        hedge_after_ms: Ask the next backend too where one has not answered after this time, and
            take the first answer; None waits for each. Never hedged with `retrieval_order`.
        timeout_seconds: Bound on one whole call; None leaves it to the backends' own.
        breaker: When a failing backend is left alone.

    Raises:
        InvalidRequestError: An argument is wrong.
    """

    _is_async = False

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
    ) -> ChainResult:
        """Score `items` against `query` with the first backend that can; see `SIEClient.score`.

        Returns:
            The answer with `status`, `served_by` and, if a backend did not answer, `reason`. In
            retrieval order `scores` is empty.
        """
        arguments = {
            "instruction": instruction,
            "options": options,
            "gpu": gpu,
            "wait_for_capacity": wait_for_capacity,
            "timeout_seconds": timeout_seconds,
        }
        race = self._race(model, query, items, arguments)
        return self._run_inline(race) if race.hedge_seconds is None else self._run_hedged(race)

    def close(self) -> None:
        """Close the backends that the chain made itself. May be called twice."""
        self._is_closed = True
        for client in self._owned():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_inline(self, race: _Race) -> ChainResult:
        while (index := race.next_start()) is not None:
            race.finished(index, _ask(race.links[index], race.call))
        return _result(race)

    def _run_hedged(self, race: _Race) -> ChainResult:
        """Ask in threads. Who lost the race ends by itself, within its own time."""
        done: queue.SimpleQueue[tuple[int, Mapping[str, Any] | BaseException]] = queue.SimpleQueue()

        context = contextvars.copy_context()  # so that what is traced belongs to the caller's

        def ask(index: int) -> None:
            done.put((index, context.copy().run(_ask, race.links[index], race.call)))

        while race.result is None:
            index = race.next_start()
            if index is not None:
                name = f"sie-hedge-{race.links[index].name}"
                threading.Thread(target=ask, args=(index,), name=name, daemon=True).start()
            elif race.running:
                try:
                    finished = done.get(timeout=race.wait_seconds())
                except queue.Empty:
                    continue
                race.finished(*finished)
        return _result(race)


class AsyncFallbackClient(_Chain):
    """`FallbackClient` for asyncio. Synchronous clients among the backends run in threads."""

    _is_async = True

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
    ) -> ChainResult:
        """Score `items` against `query`; see `FallbackClient.score`."""
        arguments = {
            "instruction": instruction,
            "options": options,
            "gpu": gpu,
            "wait_for_capacity": wait_for_capacity,
            "timeout_seconds": timeout_seconds,
        }
        race = self._race(model, query, items, arguments)
        tasks: dict[asyncio.Task[Mapping[str, Any] | BaseException], int] = {}
        try:
            while race.result is None:
                index = race.next_start()
                if index is not None:
                    tasks[asyncio.create_task(_ask_async(race.links[index], race.call))] = index
                elif race.running:
                    done, _ = await asyncio.wait(
                        tasks, timeout=race.wait_seconds(), return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        race.finished(tasks.pop(task), task.result())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return _result(race)

    async def close(self) -> None:
        """Close the backends that the chain made itself. May be called twice."""
        self._is_closed = True
        for client in self._owned():
            closing = client.close()
            if inspect.isawaitable(closing):
                await closing

    aclose = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def open_backend(backend: Backend, is_async: bool) -> Any:
    """Make the client that a string names; a chain needs its own members' dependencies only."""
    if backend.client == LOCAL:
        local = importlib.import_module("sie_core.local")
        client = local.LocalClient(**backend.arguments)
        return local.LocalAsyncClient(client) if is_async else client
    remote = importlib.import_module("sie_core.remote")
    kind = remote.SIEAsyncClient if is_async else remote.SIEClient
    return kind(backend.client, **backend.arguments)


def _prepare(link: _Link, call: _ChainCall) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the backend's `score` and its keyword arguments; failing here is not its fault."""
    try:
        return link.client().score, link.arguments(call)
    except BaseException:
        link.breaker.abandoned()
        raise


def _ask(link: _Link, call: _ChainCall) -> Mapping[str, Any] | BaseException:
    """Ask one backend, and tell its breaker how it went."""
    try:
        score, arguments = _prepare(link, call)
    except SIEError as exc:  # no time left, or an extra that is not installed
        return exc
    ask = functools.partial(score, link.model or call.model, call.query, call.items, **arguments)
    try:
        is_bounded = "timeout_seconds" in arguments
        reply = ask() if is_bounded else call.deadline.run(ask, f"asking {link.name}")
        checked = _checked(reply, call.items, link.name)
    except BaseException as exc:  # noqa: BLE001 -- the race decides whether to raise it
        _report(link, exc, call)
        return exc
    link.breaker.succeeded()
    return checked


async def _ask_async(link: _Link, call: _ChainCall) -> Mapping[str, Any] | BaseException:
    """Do what `_ask` does; cancelling it cancels the call."""
    try:
        score, arguments = _prepare(link, call)
    except SIEError as exc:
        return exc
    ask = score if inspect.iscoroutinefunction(score) else _in_thread(score)
    left = call.deadline.left_seconds
    is_bounded = "timeout_seconds" in arguments or math.isinf(left)
    bound = asyncio.timeout(None if is_bounded else left)
    try:
        async with bound:
            reply = await ask(link.model or call.model, call.query, call.items, **arguments)
        checked = _checked(reply, call.items, link.name)
    except asyncio.CancelledError:
        link.breaker.abandoned()
        raise
    except BaseException as exc:  # noqa: BLE001 -- the race decides whether to raise it
        error = call.deadline.exceeded(f"asking {link.name}") if bound.expired() else exc
        _report(link, error, call)
        return error
    link.breaker.succeeded()
    return checked


def _in_thread(score: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    def call(*positional: Any, **named: Any) -> Awaitable[Any]:
        return asyncio.to_thread(score, *positional, **named)

    return call


def _result(race: _Race) -> ChainResult:
    if race.result is None:  # `next_start` raises where nobody is left
        msg = "the race ended without a result"
        raise SIEError(msg)
    return race.result


def _check_backends(backends: Sequence[Backend]) -> None:
    if not backends:
        msg = "backends must name at least one client"
        raise InvalidRequestError(msg)
    for position, backend in enumerate(backends):
        client = backend.client
        if client == RETRIEVAL_ORDER and position < len(backends) - 1:
            msg = "'retrieval_order' always answers: put it last"
            raise InvalidRequestError(msg)
        is_address = isinstance(client, str) and client.startswith(("http://", "https://"))
        if is_address and "@" in urlsplit(client).netloc:  # it would show in served_by and states
            msg = "a backend's address must not hold credentials: set SIE_API_KEY, or pass a client"
            raise InvalidRequestError(msg)
        is_known = is_address or client in (LOCAL, RETRIEVAL_ORDER)
        if isinstance(client, str) and not is_known:
            msg = f"a backend must be an address, 'local' or 'retrieval_order', but got {client!r}"
            raise InvalidRequestError(msg)
        if not isinstance(client, str) and not callable(getattr(client, "score", None)):
            msg = f"a backend must have a method `score`, but got {type(client).__name__}"
            raise InvalidRequestError(msg)


def name_of(given: Any) -> str:
    """Return a client's address, if it is one of ours and shows it, or its kind."""
    if isinstance(given, str):
        return given.rstrip("/")
    base_url = getattr(given, "base_url", None)
    is_local = type(given).__name__ in ("LocalClient", "LocalAsyncClient")
    return LOCAL if is_local else str(base_url or type(given).__name__)


def _parameters(score: Callable[..., Any]) -> frozenset[str]:
    """Return which of the optional arguments a client's `score` takes."""
    parameters = inspect.signature(score).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return frozenset(_OPTIONAL_ARGUMENTS if takes_all else parameters)
