"""`Reranker`: the one object that all three framework components hold.

It checks a call's arguments and lets a plan be run (`sie_core.rerank_plan`), which says what is
asked and makes a `Ranking` of the replies; `rerank` and `arerank` differ only in how it is run.
Whose client is asked, and its life, is in `ClientHolder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from sie_core.calibration import Calibration
from sie_core.cascade import Stage, to_stages
from sie_core.client_holder import ClientHolder, check_text
from sie_core.deadline import Deadline, check_timeout_seconds
from sie_core.errors import InvalidRequestError
from sie_core.fallback import LOCAL, AsyncFallbackClient, Backend, FallbackClient, name_of
from sie_core.fusion import check_retrieval_weight
from sie_core.long_documents import Handling, LongDocuments
from sie_core.ranking import Ranking, check_score_space, check_score_threshold, check_top_k
from sie_core.rerank_plan import (
    CallOverrides,
    CallSettings,
    RerankCall,
    check_drop_duplicates,
    rerank_plan,
    to_pairs,
)
from sie_core.rerank_watch import OnRerank, RerankWatch, check_hook
from sie_core.score_cache import ScoreCache, source_of
from sie_core.settings import DEFAULT_MODEL
from sie_core.stage_plan import STABLE_TOP_K, Keeping, Patience
from sie_core.steps import Plan, arun, failed, run, together
from sie_core.telemetry import RerankStats
from sie_core.types import AsyncScoringClient, Item, Mode, RerankSpace, ScoringClient

Fallback = str | ScoringClient | AsyncScoringClient | Backend
"""`local`, `retrieval_order`, a server's address, or a client."""


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
        max_latency_ms: Return after this time with what is scored by then, best first; the rest
            follows in retrieval order, unscored, and the status is `partial`. It holds for loading,
            for a server and for a fallback too, and takes the place of a longer `timeout_seconds`.
        score_cache: Keep scores, and do not compute them again: the bytes to keep, or a
            `ScoreCache` that several rerankers share; None keeps none. A server's scores are kept
            by its address and the model's name: clear the cache when it gets other weights.
        cascade: Cheaper models that score before this one, each with the part, or the number, of
            documents that go on: `[Stage("cross-encoder/ms-marco-TinyBERT-L2-v2", keep=0.3)]`, or
            pairs. What does not go on stands behind, in that model's order, without a score of this
            one; a `score_threshold` leaves it out.
        stop_when_stable: Stop after so many batches in a row that left the top `top_k` (or 10) as
            it was; the rest follows unscored. A heuristic: a better document may be further down.
            A batch is `batch_size` documents, or 16.
        drop_duplicates: Leave out documents whose text, as it is ranked, one before them in
            retrieval order has; `Ranking.num_duplicates` counts them.
        gpu: Machine profile on a remote cluster, such as `l4`; without meaning in-process.
        wait_for_capacity: Remote: wait while the cluster starts a machine.
        timeout_seconds: Bound on one whole call, loading, retries and all stages included, and in
            `rank_many` on each request; None means 180 on a server, and no bound in-process.
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
        passage_length: Tokens of the document in a passage; None means as many as the model reads.
        passage_overlap: Tokens that neighbouring passages share; None means 64.
        max_passages: Passages of one document at most; None means 32.
        revision: In-process: branch, tag or commit of the model on the hub, and of those in
            `cascade`.
        token: In-process: hub token for gated models.
        cache_dir: In-process: folder for weights; None means `SIE_CACHE_DIR`, else the platform's.
        on_rerank: Told of each call that has ended, by a `RerankEvent`, in the thread that made it.
            What it raises is logged once and fails no call. Copies call it too; pickles leave it
            behind.
        trace_content: Whether queries and documents are written on OpenTelemetry's spans, if the
            program traces; None means `SIE_TRACE_CONTENT`, else no.

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
        max_latency_ms: float | None = None,
        score_cache: ScoreCache | Mapping[str, Any] | int | None = None,
        cascade: Sequence[Stage | tuple[str, float] | Mapping[str, Any]] | None = None,
        stop_when_stable: int | None = None,
        drop_duplicates: bool = False,
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
        passage_length: int | None = None,
        passage_overlap: int | None = None,
        max_passages: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        on_rerank: OnRerank | None = None,
        trace_content: bool | None = None,
    ) -> None:
        check_top_k(top_k)
        check_score_threshold(score_threshold)
        check_score_space(score_space, spaces=RerankSpace)
        check_retrieval_weight(fuse_retrieval_score)
        check_text(lora=lora)
        check_hook(on_rerank)
        self.on_rerank = on_rerank
        self.trace_content = trace_content
        check_timeout_seconds(max_latency_ms, name="max_latency_ms")
        check_top_k(stop_when_stable, name="stop_when_stable")
        check_drop_duplicates(drop_duplicates)
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
            how=long_documents,
            passage_length=passage_length,
            passage_overlap=passage_overlap,
            max_passages=max_passages,
        )
        self.max_latency_ms = max_latency_ms
        self.score_cache = ScoreCache.of(score_cache)
        self.cascade = to_stages(cascade)
        self.stop_when_stable = stop_when_stable
        self.drop_duplicates = drop_duplicates
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
        max_latency_ms: float | None = None,
        long_documents: Handling | None = None,
        drop_duplicates: bool | None = None,
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
            max_latency_ms: The same.
            long_documents: The same.
            drop_duplicates: The same.

        Raises:
            InvalidRequestError: An argument is wrong.
            SIEError: The model could not be had, loaded or run, or time ran out.
        """
        settings = CallSettings(
            top_k=top_k,
            score_threshold=score_threshold,
            instruction=instruction,
            score_space=score_space,
            fuse_retrieval_score=fuse_retrieval_score,
            max_latency_ms=max_latency_ms,
            long_documents=long_documents,
            drop_duplicates=drop_duplicates,
        )
        call = self._call(query, documents, retrieval_scores, settings, is_async=False)
        return run(self._plan(call), lambda: self._open(is_async=False))

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
        max_latency_ms: float | None = None,
        long_documents: Handling | None = None,
        drop_duplicates: bool | None = None,
    ) -> Ranking:
        """Do what `rerank` does, without blocking the event loop."""
        settings = CallSettings(
            top_k=top_k,
            score_threshold=score_threshold,
            instruction=instruction,
            score_space=score_space,
            fuse_retrieval_score=fuse_retrieval_score,
            max_latency_ms=max_latency_ms,
            long_documents=long_documents,
            drop_duplicates=drop_duplicates,
        )
        call = self._call(query, documents, retrieval_scores, settings, is_async=True)
        return await arun(self._plan(call), lambda: self._open(is_async=True))

    @overload
    def rank_many(
        self,
        queries: Sequence[tuple[str, Sequence[str | None]]],
        *,
        retrieval_scores: Sequence[Sequence[float | None]] | None = None,
        return_exceptions: Literal[False] = False,
        **settings: Unpack[CallOverrides],
    ) -> list[Ranking]: ...

    @overload
    def rank_many(
        self,
        queries: Sequence[tuple[str, Sequence[str | None]]],
        *,
        retrieval_scores: Sequence[Sequence[float | None]] | None = None,
        return_exceptions: bool,
        **settings: Unpack[CallOverrides],
    ) -> list[Ranking | Exception]: ...

    def rank_many(
        self,
        queries: Sequence[tuple[str, Sequence[str | None]]],
        *,
        retrieval_scores: Sequence[Sequence[float | None]] | None = None,
        return_exceptions: bool = False,
        **settings: Unpack[CallOverrides],
    ) -> Sequence[Ranking | Exception]:
        """Rerank the documents of several queries at once, so that they share batches.

        Args:
            queries: Pairs of a query and its documents.
            retrieval_scores: A list for each query; see `rerank`.
            return_exceptions: An error stands in the place of its query's ranking, and the others
                are ranked; otherwise the first one is raised.
            settings: What `rerank` takes, for each query; `max_latency_ms` is of all together.

        Returns:
            A ranking for each query, in their order.

        Raises:
            SIEError: As for `rerank`. A wrong argument is found before anything is computed.
        """
        plan = self._plan_many(
            queries,
            retrieval_scores,
            CallSettings.of(settings),
            is_async=False,
            return_exceptions=return_exceptions,
        )
        return run(plan, lambda: self._open(is_async=False))

    @overload
    async def arank_many(
        self,
        queries: Sequence[tuple[str, Sequence[str | None]]],
        *,
        retrieval_scores: Sequence[Sequence[float | None]] | None = None,
        return_exceptions: Literal[False] = False,
        **settings: Unpack[CallOverrides],
    ) -> list[Ranking]: ...

    @overload
    async def arank_many(
        self,
        queries: Sequence[tuple[str, Sequence[str | None]]],
        *,
        retrieval_scores: Sequence[Sequence[float | None]] | None = None,
        return_exceptions: bool,
        **settings: Unpack[CallOverrides],
    ) -> list[Ranking | Exception]: ...

    async def arank_many(
        self,
        queries: Sequence[tuple[str, Sequence[str | None]]],
        *,
        retrieval_scores: Sequence[Sequence[float | None]] | None = None,
        return_exceptions: bool = False,
        **settings: Unpack[CallOverrides],
    ) -> Sequence[Ranking | Exception]:
        """Do what `rank_many` does, without blocking the event loop."""
        plan = self._plan_many(
            queries,
            retrieval_scores,
            CallSettings.of(settings),
            is_async=True,
            return_exceptions=return_exceptions,
        )
        return await arun(plan, lambda: self._open(is_async=True))

    def stats(self) -> RerankStats:
        """Count what this reranker's calls came to since it was made; copies count anew."""
        cache = None if self.score_cache is None else self.score_cache.stats()
        return self._watch.stats(engine=self._scheduler_stats(), cache=cache)

    @property
    def score_settings(self) -> dict[str, Any]:
        """What scores and the cut depend on, as JSON can hold it: for what is kept of them.

        Of a model it is the name: other weights under the same one are not told apart.
        """
        settings: dict[str, Any] = {
            "model": self.model,
            "base_url": self.base_url,
            "instruction": self.instruction,
            "options": self.options,
            "max_length": self.max_length,
            **{name: self._local_arguments[name] for name in ("mode", "dtype", "revision")},
            "lora": self.lora,
            "score_space": self.score_space,
            "calibration": None if self._calibration is None else str(self._calibration),
            "long_documents": _set_fields(self.long_documents),
            "cascade": [_set_fields(stage) for stage in self.cascade],
            "stop_when_stable": self.stop_when_stable,
            "drop_duplicates": self.drop_duplicates or None,
            "top_k": self.top_k,
            "score_threshold": self.score_threshold,
        }
        return {name: value for name, value in settings.items() if value not in (None, {}, [])}

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
        state = super().__getstate__() | {"fallback": _without_secrets(self.fallback)}
        return state | {"on_rerank": None}  # a function need not be one that can be pickled

    def _settle(self) -> None:
        super()._settle()
        self._watch = RerankWatch()

    @property
    def _where(self) -> str:
        """Say who is asked, where a reply does not: an address, `local`, or what kind of client."""
        given = self._client if self._client is not None else self._async_client
        return self.base_url or (LOCAL if given is None else name_of(given))

    @property
    def _whole_timeout_seconds(self) -> float | None:
        """As it is; a chain's members have their own defaults, one after the other."""
        return self.timeout_seconds if self.fallback else super()._whole_timeout_seconds

    @property
    def _engine(self) -> str:
        """Name how a model in this process is to run, for its pace."""
        if not self.is_local:
            return ""
        named = ("device", "mode", "dtype", "num_threads")
        return " ".join(str(self._local_arguments[name]) for name in named)

    def _scheduler_stats(self) -> Any | None:
        """Return what the scheduler of the model in this process counts, if there is one."""
        for client in self._opened.values():
            read = getattr(client, "scheduler_stats", None)
            if read is not None and (stats := read(self.model)) is not None:
                return stats
        return None

    def _shown(self) -> str:
        return f", top_k={self.top_k}"

    def _warm_up(self, client: Any) -> None:
        if isinstance(client, _CHAINS):
            client.score(self.model, Item(text="warm up"), [Item(text="warm up")])
        else:
            super()._warm_up(client)
            for stage in self.cascade:
                client.warm_up(stage.model)
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

    def _plan_many(
        self,
        queries: Sequence[tuple[str, Sequence[str | None]]],
        retrieval_scores: Sequence[Sequence[float | None]] | None,
        settings: CallSettings,
        *,
        is_async: bool,
        return_exceptions: bool,
    ) -> Plan[list[Ranking | Exception]]:
        """Check all calls, and make one plan of theirs."""
        pairs = to_pairs(queries)
        if retrieval_scores is not None and len(retrieval_scores) != len(pairs):
            msg = f"retrieval_scores has {len(retrieval_scores)} lists for {len(pairs)} queries"
            raise InvalidRequestError(msg)
        patience = self._patience(settings, num_together=len(pairs))
        plans: list[Plan[Ranking]] = []
        for position, (query, documents) in enumerate(pairs):
            scores = None if retrieval_scores is None else retrieval_scores[position]
            try:
                call = self._call(query, documents, scores, settings, is_async=is_async)
            except InvalidRequestError as exc:
                if not return_exceptions:
                    exc.add_note(f"in queries[{position}]")
                    raise
                plans.append(failed(exc))
            else:
                plans.append(self._plan(replace(call, patience=patience)))
        return together(plans, return_exceptions=return_exceptions)

    def _call(
        self,
        query: str,
        documents: Sequence[str | None],
        retrieval_scores: Sequence[float | None] | None,
        settings: CallSettings,
        *,
        is_async: bool,
    ) -> RerankCall:
        """Check one call's arguments; what it leaves out is the constructor's."""
        space: RerankSpace | None = settings.score_space or self.score_space
        calibration = self._find_calibration() if space == "calibrated" else None
        if calibration is not None:
            space = calibration.score_space
        handling = self.long_documents
        if settings.long_documents is not None:
            handling = replace(handling, how=settings.long_documents)
        weight, threshold = settings.fuse_retrieval_score, settings.score_threshold
        return RerankCall(
            model=self.model,
            backend=self._where,
            engine=self._engine,
            query=query,
            documents=documents,
            arguments=self._arguments(
                self.instruction if settings.instruction is None else settings.instruction,
                score_space=space,
                lora=self.lora,
                **handling.as_options(),
            ),
            top_k=self.top_k if settings.top_k is None else settings.top_k,
            score_threshold=self.score_threshold if threshold is None else threshold,
            calibration=calibration,
            retrieval_weight=self.fuse_retrieval_score if weight is None else weight,
            retrieval_scores=retrieval_scores,
            drop_duplicates=(
                self.drop_duplicates
                if settings.drop_duplicates is None
                else settings.drop_duplicates
            ),
            sends_once=self.base_url is not None,
            cascade=self.cascade,
            patience=self._patience(settings),
            keeping=Keeping(
                cache=self.score_cache,
                source_of=lambda model, lora: source_of(self._open(is_async=is_async), model, lora),
            ),
        )

    def _patience(self, settings: CallSettings, *, num_together: int = 1) -> Patience:
        """Start the clock of one call."""
        top_k = self.top_k if settings.top_k is None else settings.top_k
        latency_ms = settings.max_latency_ms or self.max_latency_ms
        seconds = None if latency_ms is None else latency_ms / 1000
        return Patience.of(
            seconds if seconds is None else min(seconds, self.timeout_seconds or seconds),
            timeout=Deadline.after(self._whole_timeout_seconds if num_together == 1 else None),
            num_together=num_together,
            stop_when_stable=self.stop_when_stable,
            top_k=top_k or STABLE_TOP_K,
        )

    def _plan(self, call: RerankCall) -> Plan[Ranking]:
        return self._watch.over(
            rerank_plan(call), call, on_rerank=self.on_rerank, trace_content=self.trace_content
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


def _set_fields(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value}


def _without_secrets(fallback: Any) -> Any:
    if isinstance(fallback, Backend):
        return fallback.without_secrets()
    if isinstance(fallback, Sequence) and not isinstance(fallback, str):
        return [_without_secrets(one) for one in fallback]
    return fallback


_CHAINS = (FallbackClient, AsyncFallbackClient)
