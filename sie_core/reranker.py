"""`Reranker`: the one object that all three framework components hold.

It turns texts into items, asks a client for scores, and turns the reply into a `Ranking`. What is
pure stands in `_prepare` and `_to_ranking`; `rerank` and `arerank` differ only in how they call.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sie_core.errors import InvalidRequestError
from sie_core.ranking import (
    Ranking,
    check_score_space,
    check_score_threshold,
    check_top_k,
    match_scores,
    rank,
)
from sie_core.settings import DEFAULT_MODEL
from sie_core.types import Item, ScoreSpace, Usage

if TYPE_CHECKING:
    from types import ModuleType

    from sie_core.local import LocalClient
    from sie_core.types import AsyncScoringClient, ScoringClient


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
    `close()` the next call opens everything again.

    Args:
        model: Model name or folder.
        base_url: Address of an SIE server; None means `SIE_BASE_URL`, else in-process.
        client: A client to use instead, such as `LocalClient`; it stays the caller's to close.
        async_client: The same for `arerank`; without one, a given `client` runs in a thread.
        top_k: Keep at most this many documents; None keeps all.
        score_threshold: Keep documents with `score >= score_threshold`; None keeps all.
        instruction: Put before the query, for models trained with instructions.
        score_space: `raw` logits or `probability`; None means what the model's own config says.
        options: Passed on to the client's `score`, such as `{"max_length": 256}`.
        gpu: Machine profile on a remote cluster, such as `l4`; without meaning in-process.
        timeout_seconds: Bound on one whole call, loading included; None waits.
        device: In-process: `cuda`, `cuda:1`, `cpu` or `mps`; None means CUDA if there, else CPU.
        dtype: In-process: `float32`, `float16`, `bfloat16`; None: float16 on CUDA, else float32.
        max_length: Tokens per pair; None means the model's own maximum.
        batch_size: Pairs per forward pass at most; None lets the token budget alone decide.
        revision: Branch, tag or commit of the model on the hub.
        token: Hub token for gated models.
        cache_dir: Folder for weights; None means `SIE_CACHE_DIR`, else the platform's.

    Raises:
        InvalidRequestError: An argument is wrong, or two exclude each other.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        base_url: str | None = None,
        client: ScoringClient | None = None,
        async_client: AsyncScoringClient | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        score_space: ScoreSpace | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_top_k(top_k)
        check_score_threshold(score_threshold)
        check_score_space(score_space)
        _check_text(model=model, instruction=instruction, base_url=base_url)
        self.model = model
        self.base_url = base_url
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.instruction = instruction
        self.score_space = score_space
        self.options = dict(options or {})
        self.gpu = gpu
        self.timeout_seconds = timeout_seconds
        self.max_length = max_length
        self.batch_size = batch_size
        self._local_settings = {
            "device": device,
            "dtype": dtype,
            "timeout_seconds": timeout_seconds,
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
        }
        self._lock = threading.Lock()
        self._local: LocalClient | None = None
        self._client = client
        self._async_client = async_client
        if client is not None or async_client is not None:
            self._refuse_with_client(
                base_url=base_url, timeout_seconds=timeout_seconds, device=device, dtype=dtype
            )
        elif base_url or os.environ.get("SIE_BASE_URL"):
            address = base_url or os.environ["SIE_BASE_URL"]
            msg = (
                f"base_url is {address!r}, but calling a server is not supported yet; leave out "
                "base_url and unset SIE_BASE_URL to run the model in this process"
            )
            raise InvalidRequestError(msg)

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
        reply = self._sync().score(self.model, call.query, call.items, **call.arguments)
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
        client = self._async()
        if client is None:  # only a sync client was given: it gets a thread
            score = self._sync().score
            reply = await asyncio.to_thread(
                score, self.model, call.query, call.items, **call.arguments
            )
        else:
            reply = await client.score(self.model, call.query, call.items, **call.arguments)
        return self._to_ranking(call, reply)

    def warm_up(self) -> None:
        """Fetch and load the model now, so that the first call does not pay for it.

        A given client decides for itself when to load: for it this does nothing.
        """
        if self._client is None and self._async_client is None:
            self._open_local().warm_up(self.model)

    async def awarm_up(self) -> None:
        """Do what `warm_up` does, without blocking the event loop."""
        await asyncio.to_thread(self.warm_up)

    def close(self) -> None:
        """Release the model, unless others in this process still hold it. May be called twice."""
        with self._lock:
            local, self._local = self._local, None
        if local is not None:
            local.close()

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        is_given = self._client is not None or self._async_client is not None
        where = "given client" if is_given else "in-process"
        return f"Reranker(model={self.model!r}, {where}, top_k={self.top_k})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: a copy opens its own."""
        return {**self.__dict__, "_lock": None, "_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _sync(self) -> ScoringClient:
        if self._client is not None:
            return self._client
        if self._async_client is not None:
            msg = "only async_client was given: call arerank, or pass client= for sync calls"
            raise InvalidRequestError(msg)
        return self._open_local()

    def _async(self) -> AsyncScoringClient | None:
        if self._async_client is not None or self._client is not None:
            return self._async_client
        client: AsyncScoringClient = _local().LocalAsyncClient(self._open_local())
        return client

    def _open_local(self) -> LocalClient:
        with self._lock:
            if self._local is None:
                self._local = _local().LocalClient(**self._local_settings)
            return self._local

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
        scores: list[float | None] = [None] * call.num_documents
        reply = reply or {"scores": []}
        found = match_scores(reply["scores"], [str(i) for i in call.indices])
        for index, score in zip(call.indices, found, strict=True):
            scores[index] = score
        return Ranking(
            entries=rank(scores, top_k=call.top_k, score_threshold=call.score_threshold),
            model=self.model,
            score_space=reply.get("score_space"),
            usage=reply.get("usage") or Usage(),
        )

    @staticmethod
    def _refuse_with_client(**settings: object) -> None:
        given = [name for name, value in settings.items() if value is not None]
        if given:
            msg = f"{', '.join(given)} cannot be combined with a client: set it on the client"
            raise InvalidRequestError(msg)


def _local() -> ModuleType:
    """Import the engine at first use: importing sie must not import torch."""
    return importlib.import_module("sie_core.local")


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
