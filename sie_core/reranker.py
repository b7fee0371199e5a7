"""`Reranker`: the one object that all three framework components hold.

It turns texts into items, asks a client for scores, and turns the reply into a `Ranking`. What is
pure stands in `_prepare` and `_to_ranking`; `rerank` and `arerank` differ only in how they call.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sie_core.deadline import check_timeout_seconds
from sie_core.errors import InvalidRequestError
from sie_core.fallback import LOCAL, AsyncFallbackClient, Backend, FallbackClient, open_backend
from sie_core.ranking import (
    Ranking,
    check_score_space,
    check_score_threshold,
    check_top_k,
    match_scores,
    rank,
)
from sie_core.settings import DEFAULT_MODEL, check_mode
from sie_core.types import AsyncScoringClient, Item, Mode, ScoreSpace, ScoringClient, Usage

Fallback = str | ScoringClient | AsyncScoringClient | Backend
"""`local`, `retrieval_order`, a server's address, or a client."""

_RUNTIME = ("_lock", "_opened", "_is_warm")
"""What belongs to one process and is made anew in a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One checked call: what is sent, and how the reply becomes a ranking."""

    query: Item
    items: list[Item]
    indices: list[int]
    num_documents: int
    arguments: dict[str, Any]
    top_k: int | None
    score_threshold: float | None


class Reranker:
    """Order documents by relevance to a query.

    With no `base_url` (and no `SIE_BASE_URL`) the model runs in this process and is shared with
    every other reranker here that uses the same one. Objects are safe to share between threads
    and event loops, can be copied and pickled, and load nothing before the first call. After
    `close()` the next call opens everything again. A pickle carries neither `api_key` nor `token`:
    the process that unpickles it reads `SIE_API_KEY` and `HF_TOKEN`.

    Args:
        model: Model name or folder.
        base_url: Address of an SIE server; None means `SIE_BASE_URL`, else in-process.
        api_key: Sent to that server only; None means `SIE_API_KEY`.
        client: A client to use instead, such as `LocalClient`; it stays the caller's to close.
        async_client: The same for `arerank`; without one, a given `client` runs in a thread.
        fallback: Who answers where that fails: `local`, `retrieval_order`, another address or
            client, or a list of them, asked in turn; None raises the error. See `Ranking.status`.
        hedge_after_ms: Ask the next of them too where there is no answer after this time.
        top_k: Keep at most this many documents; None keeps all.
        score_threshold: Keep documents with `score >= score_threshold`; None keeps all.
        instruction: Put before the query, for models trained with instructions.
        score_space: `raw` logits or `probability`; None means what the model's own config says.
            A server that does not say which it gave is refused.
        options: Passed on to the client's `score`, such as `{"max_length": 256}`.
        gpu: Machine profile on a remote cluster, such as `l4`; without meaning in-process.
        wait_for_capacity: Remote: wait while the cluster starts a machine.
        timeout_seconds: Bound on one whole call, loading and retries included; None means 180 on
            a server, and no bound in-process.
        device: In-process: `cuda`, `cuda:1`, `cpu`, `mps`, or a list of CUDA devices that share
            the work; None means CUDA if there, else CPU.
        mode: In-process: `exact` computes in float32, `fast` in half precision where that is
            faster; `auto` is fast where that can be had.
        dtype: In-process: `float32`, `float16`, `bfloat16`, instead of what the mode means.
        num_threads: In-process: cores used on the CPU; None means `SIE_NUM_THREADS`, else all that
            this process may use.
        max_length: Tokens per pair; None means the model's own maximum.
        batch_size: In-process: pairs per forward pass; None lets the token budget alone decide.
        lora: Adapter to score with: a folder, or a name on the hub or the server; None for the
            model as it is.
        revision: In-process: branch, tag or commit of the model on the hub.
        token: In-process: hub token for gated models.
        cache_dir: In-process: folder for weights; None means `SIE_CACHE_DIR`, else the platform's.

    Raises:
        InvalidRequestError: An argument is wrong, or two exclude each other.
    """

    _is_warm: bool

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: ScoringClient | None = None,
        async_client: AsyncScoringClient | None = None,
        fallback: Fallback | Sequence[Fallback] | None = None,
        hedge_after_ms: float | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        score_space: ScoreSpace | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool = False,
        timeout_seconds: float | None = None,
        device: str | Sequence[str] | None = None,
        mode: Mode = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        lora: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_top_k(top_k)
        check_score_threshold(score_threshold)
        check_score_space(score_space)
        check_timeout_seconds(timeout_seconds)
        check_mode(mode, dtype)
        _check_text(model=model, instruction=instruction, base_url=base_url, lora=lora)
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
        self.fallback = fallback
        self.hedge_after_ms = hedge_after_ms
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.instruction = instruction
        self.score_space = score_space
        self.options = dict(options or {})
        self.gpu = gpu
        self.timeout_seconds = timeout_seconds
        self.max_length = max_length
        self.batch_size = batch_size
        self.lora = lora
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
        if self.base_url is not None or fallback is not None:
            self._open(is_async=False)  # connects to nothing, but refuses a wrong address now

    def rerank(
        self,
        query: str,
        documents: Sequence[str | None],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        score_space: ScoreSpace | None = None,
    ) -> Ranking:
        """Order `documents` by relevance to `query`, best first.

        Args:
            query: What is looked for; must contain text.
            documents: Texts in retrieval order. Blank ones and None come last, unscored.
            top_k: Instead of the constructor's, as are the three below; None means that one.
            score_threshold: See the class.
            instruction: See the class.
            score_space: See the class.

        Raises:
            InvalidRequestError: An argument is wrong.
            SIEError: The model could not be had, loaded or run, or time ran out.
        """
        call = self._prepare(
            query,
            documents,
            top_k=top_k,
            score_threshold=score_threshold,
            instruction=instruction,
            score_space=score_space,
        )
        if not call.items:
            return self._to_ranking(call, None)
        reply = self._open(is_async=False).score(
            self.model, call.query, call.items, **call.arguments
        )
        return self._to_ranking(call, reply)

    async def arerank(
        self,
        query: str,
        documents: Sequence[str | None],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        score_space: ScoreSpace | None = None,
    ) -> Ranking:
        """Do what `rerank` does, without blocking the event loop."""
        call = self._prepare(
            query,
            documents,
            top_k=top_k,
            score_threshold=score_threshold,
            instruction=instruction,
            score_space=score_space,
        )
        if not call.items:
            return self._to_ranking(call, None)
        score = self._open(is_async=True).score
        reply = await score(self.model, call.query, call.items, **call.arguments)
        return self._to_ranking(call, reply)

    def warm_up(self) -> None:
        """Fetch and load an in-process model now, so that the first call does not pay for it.

        A server, or a client that was given, loads when it sees fit: for those it does nothing.
        """
        if not self._is_local or self._is_warm:
            return
        client = self._open(is_async=False)
        if isinstance(client, _CHAINS):
            client.score(self.model, Item(text="warm up"), [Item(text="warm up")])
        else:
            client.warm_up(self.model)
            if self.lora is not None:
                client.load_lora(self.model, self.lora)
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

    @property
    def circuit_states(self) -> dict[str, str]:
        """With a fallback: whether each backend is asked, rests, or is tried again.

        `closed`: asked; `open`: left alone after failures; `half-open`: one call may try it again.
        Sync and async calls count their failures apart; the worse state is shown.
        """
        chains = [client for client in self._opened.values() if isinstance(client, _CHAINS)]
        states: dict[str, str] = {}
        for chain in chains:
            for name, state in chain.states.items():
                if states.get(name) in (None, "closed"):
                    states[name] = state
        return states

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        where = "in-process" if self._is_local else self.base_url or "given client"
        return f"Reranker(model={self.model!r}, {where}, top_k={self.top_k})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out secrets, and what belongs to this process."""
        return {
            **{name: value for name, value in self.__dict__.items() if name not in _RUNTIME},
            "fallback": _without_secrets(self.fallback),
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

        Clients that were given are shared, as they stay the caller's.
        """
        twin = object.__new__(type(self))
        for given in (self._client, self._async_client):
            memo[id(given)] = given
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
        self._opened: dict[bool, Any] = {}
        self._is_warm = False

    @property
    def _is_local(self) -> bool:
        return self.base_url is None and self._client is None and self._async_client is None

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

    def _make_client(self, *, is_async: bool) -> Any:
        first, others = self._first_backend(is_async=is_async), self._fallback_backends()
        if others:
            kind = AsyncFallbackClient if is_async else FallbackClient
            return kind(
                [first, *others],
                hedge_after_ms=self.hedge_after_ms,
                timeout_seconds=self.timeout_seconds,
            )
        if isinstance(first.client, str):
            return open_backend(first, is_async)
        return _Given(first.client, is_async=is_async)

    def _first_backend(self, *, is_async: bool) -> Backend:
        if self._is_local:
            return self._backend(LOCAL)
        if self.base_url is not None:
            return Backend(client=self.base_url, arguments=self._remote_arguments)
        if is_async:
            return self._backend(self._async_client or self._client)
        if self._client is None:
            msg = "only async_client was given: call arerank, or pass client= for sync calls"
            raise InvalidRequestError(msg)
        return self._backend(self._client)

    def _fallback_backends(self) -> list[Backend]:
        if self.fallback is None:
            return []
        is_one = isinstance(self.fallback, str) or not isinstance(self.fallback, Sequence)
        others = [self.fallback] if is_one else list(self.fallback)  # type: ignore[arg-type]
        # Whoever moves from a server to this process by leaving out base_url may leave this as is.
        return [self._backend(other) for other in others if not (self._is_local and other == LOCAL)]

    def _backend(self, client: Any) -> Backend:
        if isinstance(client, Backend):
            return client
        return Backend(client=client, arguments=self._local_arguments if client == LOCAL else {})

    def _prepare(
        self,
        query: str,
        documents: Sequence[str | None],
        *,
        top_k: int | None,
        score_threshold: float | None,
        instruction: str | None,
        score_space: ScoreSpace | None,
    ) -> _Call:
        """Check one call's arguments and choose what is sent: blank documents are not."""
        check_top_k(top_k)
        check_score_threshold(score_threshold)
        check_score_space(score_space)
        _check_text(instruction=instruction)
        _check_documents(documents)
        indices = [i for i, text in enumerate(documents) if text is not None and text.strip()]
        if documents:
            _check_query(query)
        return _Call(
            query=Item(text=query),
            items=[Item(id=str(i), text=documents[i] or "") for i in indices],
            indices=indices,
            num_documents=len(documents),
            arguments=self._arguments(instruction, score_space),
            top_k=self.top_k if top_k is None else top_k,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
        )

    def _arguments(self, instruction: str | None, score_space: ScoreSpace | None) -> dict[str, Any]:
        """Collect the keyword arguments of the client's `score`, leaving out what was not set."""
        options = self.options | {
            name: value
            for name, value in (
                ("max_length", self.max_length),
                ("batch_size", self.batch_size),
                ("lora", self.lora),
                ("score_space", score_space or self.score_space),
            )
            if value is not None
        }
        arguments = {
            "instruction": instruction or self.instruction,
            "options": options or None,
            "gpu": self.gpu,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def _to_ranking(self, call: _Call, reply: Mapping[str, Any] | None) -> Ranking:
        """Match scores to documents through the ids sent, and order them."""
        reply = reply or {"scores": []}
        is_degraded = reply.get("status") == "degraded"
        scores: list[float | None] = [None] * call.num_documents
        if reply["scores"] or not is_degraded:  # retrieval order comes without scores
            found = match_scores(reply["scores"], [str(i) for i in call.indices])
            for index, score in zip(call.indices, found, strict=True):
                scores[index] = score
            self._check_score_space(call, reply)
        return Ranking(
            entries=rank(
                scores,
                top_k=call.top_k,
                # Another model's scores are not measured against the threshold of this one's.
                score_threshold=None if is_degraded else call.score_threshold,
            ),
            model=self.model,
            status="degraded" if is_degraded else "complete",
            served_by=reply.get("served_by") or self.base_url or LOCAL,
            reason=reply.get("reason"),
            score_space=reply.get("score_space"),
            usage=reply.get("usage") or Usage(),
        )

    def _check_score_space(self, call: _Call, reply: Mapping[str, Any]) -> None:
        wanted = call.arguments.get("options", {}).get("score_space")
        got = reply.get("score_space")
        if call.items and wanted is not None and got != wanted:
            msg = (
                f"score_space={wanted!r} was asked for, but the backend gave "
                f"{got or 'scores without saying which they are'}; leave score_space out to take "
                "them as they are"
            )
            raise InvalidRequestError(msg)


def _without_secrets(fallback: Any) -> Any:
    if isinstance(fallback, Backend):
        return fallback.without_secrets()
    if isinstance(fallback, Sequence) and not isinstance(fallback, str):
        return [_without_secrets(one) for one in fallback]
    return fallback


class _Given:
    """A client that the caller gave: used as it is, never closed. A sync one gets a thread."""

    def __init__(self, client: Any, *, is_async: bool) -> None:
        is_native = inspect.iscoroutinefunction(client.score)
        self.score = client.score if is_native or not is_async else _in_thread(client.score)


def _in_thread(score: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(*positional: Any, **named: Any) -> Any:
        return await asyncio.to_thread(score, *positional, **named)

    return call


_CHAINS = (FallbackClient, AsyncFallbackClient)


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


def _check_text(**values: object) -> None:
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            msg = f"{name} must be a string, but got {type(value).__name__}: {value!r}"
            raise InvalidRequestError(msg)


def _check_query(query: object) -> None:
    if not isinstance(query, str) or not query.strip():
        msg = f"query must be a string with text in it, but got {query!r}"
        raise InvalidRequestError(msg)


def _check_documents(documents: object) -> None:
    if isinstance(documents, str) or not isinstance(documents, Sequence):
        msg = f"documents must be a list of strings, but got {type(documents).__name__}"
        raise InvalidRequestError(msg)
    for index, text in enumerate(documents):
        if text is not None and not isinstance(text, str):
            msg = f"documents[{index}] must be a string or None, but got {type(text).__name__}"
            raise InvalidRequestError(msg)
