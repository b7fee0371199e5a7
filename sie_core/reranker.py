"""`Reranker`: the one object that all three framework components hold.

It turns texts into items, asks a client for scores, and turns the reply into a `Ranking`. What is
pure stands in `_prepare` and `_to_ranking`; `rerank` and `arerank` differ only in how they call.
Whose client that is, and its life, is in `ClientHolder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sie_core.calibration import Calibration
from sie_core.client_holder import ClientHolder, check_text
from sie_core.errors import InvalidRequestError
from sie_core.fallback import LOCAL, AsyncFallbackClient, Backend, FallbackClient
from sie_core.fusion import check_retrieval_weight, fuse_scores
from sie_core.long_documents import Handling, LongDocuments, check_confirmed
from sie_core.ranking import (
    Ranking,
    check_score_space,
    check_score_threshold,
    check_top_k,
    match_scores,
    rank,
)
from sie_core.settings import DEFAULT_MODEL
from sie_core.types import AsyncScoringClient, Item, Mode, RerankSpace, ScoringClient, Usage

Fallback = str | ScoringClient | AsyncScoringClient | Backend
"""`local`, `retrieval_order`, a server's address, or a client."""


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
    calibration: Calibration | None
    retrieval_weight: float | None
    retrieval_scores: Sequence[float]


class Reranker(ClientHolder):
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
            A server that does not say which it gave is refused. `calibrated`: probabilities fitted
            on judged pairs by `sie calibrate`.
        calibration: For `calibrated`: the file, or the object; None means the one that was stored
            under the model's name.
        fuse_retrieval_score: Weight of the retrieval score, from 0 to 1, mixed with the model's by
            z-scores (`sie_core.fusion.fuse_scores`); None leaves it out. Each ranked entry's score
            is then the mix; the threshold is held against the score before it.
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
        long_documents: What is done with documents that are longer than the model reads:
            `truncate` cuts their end off; `max_passage` scores overlapping passages and takes the
            best, whose place is in `RankedEntry.span`; `error` refuses the call. A server that
            does not say that it did so is refused. None means `truncate`.
        passage_overlap: Tokens that neighbouring passages share; None means 64.
        max_passages: Passages of one document at most; None means 32.
        revision: In-process: branch, tag or commit of the model on the hub.
        token: In-process: hub token for gated models.
        cache_dir: In-process: folder for weights; None means `SIE_CACHE_DIR`, else the platform's.

    Raises:
        InvalidRequestError: An argument is wrong, or two exclude each other.
    """

    _client_method = "score"
    _async_method = "arerank"

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
        score_space: RerankSpace | None = None,
        calibration: str | Path | Calibration | None = None,
        fuse_retrieval_score: float | None = None,
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
        long_documents: Handling | None = None,
        passage_overlap: int | None = None,
        max_passages: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_top_k(top_k)
        check_score_threshold(score_threshold)
        check_score_space(score_space, spaces=RerankSpace)
        check_retrieval_weight(fuse_retrieval_score)
        check_text(lora=lora)
        super().__init__(
            model,
            base_url=base_url,
            api_key=api_key,
            client=client,
            async_client=async_client,
            instruction=instruction,
            options=options,
            gpu=gpu,
            wait_for_capacity=wait_for_capacity,
            timeout_seconds=timeout_seconds,
            device=device,
            mode=mode,
            dtype=dtype,
            num_threads=num_threads,
            max_length=max_length,
            batch_size=batch_size,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
        )
        self.fallback = fallback
        self.hedge_after_ms = hedge_after_ms
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.score_space = score_space
        self.fuse_retrieval_score = fuse_retrieval_score
        self.lora = lora
        self.long_documents = LongDocuments(
            how=long_documents, passage_overlap=passage_overlap, max_passages=max_passages
        )
        self._calibration = calibration
        self._cache_dir = cache_dir
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
        score_space: RerankSpace | None = None,
        retrieval_scores: Sequence[float | None] | None = None,
        fuse_retrieval_score: float | None = None,
        long_documents: Handling | None = None,
    ) -> Ranking:
        """Order `documents` by relevance to `query`, best first.

        Args:
            query: What is looked for; must contain text.
            documents: Texts in retrieval order. Blank ones and None come last, unscored.
            top_k: Instead of the constructor's, as are the three below; None means that one.
            score_threshold: See the class.
            instruction: See the class.
            score_space: See the class.
            retrieval_scores: The first stage's, one for each document, higher is better; needed
                with `fuse_retrieval_score` only.
            fuse_retrieval_score: Instead of the constructor's; None means that one.
            long_documents: The same.

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
            retrieval_scores=retrieval_scores,
            retrieval_weight=fuse_retrieval_score,
            long_documents=long_documents,
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
        score_space: RerankSpace | None = None,
        retrieval_scores: Sequence[float | None] | None = None,
        fuse_retrieval_score: float | None = None,
        long_documents: Handling | None = None,
    ) -> Ranking:
        """Do what `rerank` does, without blocking the event loop."""
        call = self._prepare(
            query,
            documents,
            top_k=top_k,
            score_threshold=score_threshold,
            instruction=instruction,
            score_space=score_space,
            retrieval_scores=retrieval_scores,
            retrieval_weight=fuse_retrieval_score,
            long_documents=long_documents,
        )
        if not call.items:
            return self._to_ranking(call, None)
        score = self._open(is_async=True).score
        reply = await score(self.model, call.query, call.items, **call.arguments)
        return self._to_ranking(call, reply)

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

    def __getstate__(self) -> dict[str, Any]:
        """Leave out secrets, and what belongs to this process."""
        return super().__getstate__() | {"fallback": _without_secrets(self.fallback)}

    def _shown(self) -> str:
        return f", top_k={self.top_k}"

    def _warm_up(self, client: Any) -> None:
        if isinstance(client, _CHAINS):
            client.score(self.model, Item(text="warm up"), [Item(text="warm up")])
        else:
            super()._warm_up(client)
            if self.lora is not None:
                client.load_lora(self.model, self.lora)

    def _make_client(self, *, is_async: bool) -> Any:
        others = self._fallback_backends()
        if not others:
            return super()._make_client(is_async=is_async)
        kind = AsyncFallbackClient if is_async else FallbackClient
        return kind(
            [self._first_backend(is_async=is_async), *others],
            hedge_after_ms=self.hedge_after_ms,
            timeout_seconds=self.timeout_seconds,
        )

    def _fallback_backends(self) -> list[Backend]:
        if self.fallback is None:
            return []
        is_one = isinstance(self.fallback, str) or not isinstance(self.fallback, Sequence)
        others = [self.fallback] if is_one else list(self.fallback)  # type: ignore[arg-type]
        # Whoever moves from a server to this process by leaving out base_url may leave this as is.
        return [self._backend(other) for other in others if not (self.is_local and other == LOCAL)]

    def _prepare(
        self,
        query: str,
        documents: Sequence[str | None],
        *,
        top_k: int | None,
        score_threshold: float | None,
        instruction: str | None,
        score_space: RerankSpace | None,
        retrieval_scores: Sequence[float | None] | None,
        retrieval_weight: float | None,
        long_documents: Handling | None,
    ) -> _Call:
        """Check one call's arguments and choose what is sent: blank documents are not."""
        check_top_k(top_k)
        check_score_threshold(score_threshold)
        check_score_space(score_space, spaces=RerankSpace)
        check_text(instruction=instruction)
        _check_documents(documents)
        indices = [i for i, text in enumerate(documents) if text is not None and text.strip()]
        if documents:
            _check_query(query)
        check_retrieval_weight(retrieval_weight)
        handling = self.long_documents
        if long_documents is not None:
            handling = replace(handling, how=long_documents)
        weight = self.fuse_retrieval_score if retrieval_weight is None else retrieval_weight
        space: RerankSpace | None = score_space or self.score_space
        calibration = self._find_calibration() if space == "calibrated" else None
        if calibration is not None:
            space = calibration.score_space
        return _Call(
            query=Item(text=query),
            items=[Item(id=str(i), text=documents[i] or "") for i in indices],
            indices=indices,
            num_documents=len(documents),
            arguments=self._arguments(
                instruction or self.instruction,
                score_space=space,
                lora=self.lora,
                **handling.as_options(),
            ),
            top_k=self.top_k if top_k is None else top_k,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
            calibration=calibration,
            retrieval_weight=weight,
            retrieval_scores=()
            if weight is None
            else _check_retrieval_scores(retrieval_scores, indices, len(documents)),
        )

    def _find_calibration(self) -> Calibration:
        """Return the calibration; a file is read at the first call that needs it."""
        if not isinstance(self._calibration, Calibration):
            cache_dir = None if self._cache_dir is None else Path(self._cache_dir)
            self._calibration = (
                Calibration.find(self.model, cache_dir=cache_dir)
                if self._calibration is None
                else Calibration.load(Path(self._calibration))
            )
        return self._calibration

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
            check_confirmed(call.arguments.get("options", {}), reply)
        space: RerankSpace | None = reply.get("score_space")
        shown, order_by = scores, scores
        if call.calibration is not None and space == call.calibration.score_space:
            probability = call.calibration.probability
            shown = [None if score is None else probability(score) for score in scores]
            space = "calibrated"
        if call.retrieval_weight is not None:
            order_by = _fused(shown, call, call.retrieval_weight)
        entries = rank(
            shown,
            order_by=order_by,
            top_k=call.top_k,
            # Another model's scores are not measured against the threshold of this one's.
            score_threshold=None if is_degraded else call.score_threshold,
        )
        if call.retrieval_weight is not None:
            entries = tuple(replace(entry, score=order_by[entry.index]) for entry in entries)
        spans = _read_spans(reply)
        if spans:
            entries = tuple(replace(entry, span=spans.get(entry.index)) for entry in entries)
        if order_by is not scores or shown is not scores:
            entries = tuple(replace(entry, model_score=scores[entry.index]) for entry in entries)
        return Ranking(
            entries=entries,
            model=self.model,
            status="degraded" if is_degraded else "complete",
            served_by=reply.get("served_by") or self.base_url or LOCAL,
            reason=reply.get("reason"),
            score_space=space,
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


def _read_spans(reply: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """Return the best passage of each document that was scored by passages."""
    if reply.get("long_documents") != "max_passage":
        return {}
    return {
        int(entry["item_id"]): (entry["span"][0], entry["span"][1])
        for entry in reply["scores"]
        if entry.get("span") is not None
    }


def _fused(scores: Sequence[float | None], call: _Call, weight: float) -> list[float | None]:
    """Mix the model's scores with the retrieval scores; what has no score gets none."""
    fused: list[float | None] = [None] * len(scores)
    model_scores = [scores[index] for index in call.indices]
    known = [score for score in model_scores if score is not None]
    if len(known) != len(model_scores):  # retrieval order: there is nothing to mix
        return fused
    mixed = fuse_scores(known, call.retrieval_scores, retrieval_weight=weight)
    for index, score in zip(call.indices, mixed, strict=True):
        fused[index] = score
    return fused


def _check_retrieval_scores(
    scores: Sequence[float | None] | None, indices: Sequence[int], num_documents: int
) -> list[float]:
    """Return the retrieval scores of the documents that are sent.

    Raises:
        InvalidRequestError: One is missing, or no finite number.
    """
    if scores is None or len(scores) != num_documents:
        got = "none" if scores is None else f"{len(scores)}"
        msg = (
            f"fuse_retrieval_score needs a retrieval score for each of {num_documents} documents, "
            f"but got {got}; leave it None to order by the reranker alone"
        )
        raise InvalidRequestError(msg)
    found: list[float] = []
    for index in indices:
        score = scores[index]
        if score is None or not math.isfinite(score):
            msg = (
                f"fuse_retrieval_score needs every document's retrieval score, but document "
                f"{index} has {score!r}; leave it None to order by the reranker alone"
            )
            raise InvalidRequestError(msg)
        found.append(float(score))
    return found


def _without_secrets(fallback: Any) -> Any:
    if isinstance(fallback, Backend):
        return fallback.without_secrets()
    if isinstance(fallback, Sequence) and not isinstance(fallback, str):
        return [_without_secrets(one) for one in fallback]
    return fallback


_CHAINS = (FallbackClient, AsyncFallbackClient)


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
