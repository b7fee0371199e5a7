"""`SIERanker`: Haystack documents to texts, and a ranking back to new Haystack documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from haystack import Document, component
from haystack.utils import ComponentDevice, Secret

from haystack_integrations.common.sie.component import API_KEY, HUB_TOKEN, SIEComponent
from sie_core.cascade import Stage, to_stages
from sie_core.document_text import DocumentText
from sie_core.errors import InvalidRequestError
from sie_core.long_documents import Handling
from sie_core.ranking import (
    BEST_PASSAGE_KEY,
    MODEL_SCORE_KEY,
    STAGE_SCORES_KEY,
    STALE_KEYS,
    check_score_space,
)
from sie_core.rerank_plan import CallSettings
from sie_core.rerank_watch import OnRerank
from sie_core.reranker import Fallback, Reranker
from sie_core.score_cache import ScoreCache
from sie_core.settings import DEFAULT_MODEL
from sie_core.telemetry import RerankStats
from sie_core.types import AsyncScoringClient, Mode, RerankSpace, ScoreSpace, ScoringClient

if TYPE_CHECKING:
    from sie_core.ranking import RankedEntry, Ranking

_SCORE_SPACES: dict[bool | None, ScoreSpace | None] = {
    True: "probability",
    False: "raw",
    None: None,
}


@component
class SIERanker(SIEComponent):
    """Order documents by relevance to a query, best first.

    Documents come back as copies with the ranker's score; documents without text come last with
    the score None. Nothing is loaded before `warm_up` or the first run. Where a `fallback` gave
    another order than the model's, or not all documents were scored, every document says so in its
    meta: `rerank_status`, `rerank_served_by` and `rerank_reason`. A copy of the component keeps its
    secrets; a pickle keeps the names of environment variables, which are read again, and no values.

    Args:
        base_url: Address of an SIE server; None means `SIE_BASE_URL`, else in this process.
        model: Model name or folder.
        top_k: Keep at most this many documents; None keeps all.
        gpu: Machine profile on a remote cluster, such as `l4`.
        options: Passed on to the client's `score`, such as `{"max_length": 256}`.
        timeout_s: Another name for `timeout_seconds`.
        timeout_seconds: Bound on one whole call, retries and loading included; None means 180 on
            a server, and no bound in-process.
        api_key: Sent to the server at `base_url` only; read when the component is made.
        fallback: Who answers where that fails: `local`, `retrieval_order`, another address or
            client, or a list of them, asked in turn; None raises the error. One with clients
            cannot be serialised.
        hedge_after_ms: Ask the next of them too where there is no answer after this time.
        wait_for_capacity: Remote: wait while the cluster starts a machine.
        device: In-process: a `ComponentDevice`, or `cuda`, `cuda:1`, `cpu`, `mps`, or a list of
            CUDA devices that share the work; None means CUDA if there, else CPU.
        token: Hub token for gated models, read when the component is made.
        query_prefix: Put before the query.
        query_suffix: Put after the query.
        document_prefix: Put before each document's text.
        document_suffix: Put after each document's text.
        meta_fields_to_embed: Metadata fields whose values are scored with the content; what a
            document does not have is left out. A document with such a value and no content is
            scored too.
        meta_template: How each of them is written, such as `"{name}: {value}"`.
        embedding_separator: Stands between those values and the content.
        scale_score: True: probabilities; False: raw logits; None: what the model's config says.
        score_space: `raw`, `probability`, or `calibrated` by what `sie calibrate` fitted, where
            `scale_score` is None.
        calibration: For `calibrated`: a file; None means the one stored under the model's name.
        fuse_retrieval_score: Weight of the documents' own scores, from 0 to 1, which are mixed with
            the model's; None leaves them out. A document's score is then the mix, and the model's
            is in `meta["model_score"]`.
        score_threshold: Keep documents with `score >= score_threshold`; None keeps all.
        instruction: Put before the query, for models trained with instructions.
        model_kwargs: `dtype` (or `torch_dtype`) and `revision`, as other rankers take them.
        tokenizer_kwargs: `model_max_length`, the same as `max_length`.
        batch_size: Pairs per forward pass at most; None lets the token budget alone decide.
        mode: In-process: `exact` computes in float32, `fast` in half precision where that is
            faster; `auto` is fast where that can be had.
        dtype: In-process: `float32`, `float16`, `bfloat16`, instead of what the mode means.
        num_threads: In-process: cores used on the CPU; None means `SIE_NUM_THREADS`, else all that
            this process may use.
        max_length: Tokens per pair; None means the model's own maximum.
        lora: Adapter to score with: a folder, or a name on the hub or the server.
        long_documents: What is done with documents that are longer than the model reads: `truncate`
            cuts their end off; `max_passage` takes the best of overlapping passages, and
            `meta["best_passage"]` says where it is, `[start, end]` in the characters of the
            content; `error` refuses the call. None means `truncate`.
        passage_length: Tokens of the document in a passage; None means as many as the model reads.
        passage_overlap: Tokens that neighbouring passages share; None means 64.
        max_passages: Passages of one document at most; None means 32.
        max_latency_ms: Return after this time with what is scored by then; the rest follows in
            retrieval order.
        score_cache: Bytes of scores to keep, or a `sie_core.ScoreCache` that several share; what is
            serialised are its settings.
        cascade: Cheaper models that score before, each with the part of the documents that go on: a
            list of `sie_core.Stage`, or of pairs such as `("…/ms-marco-TinyBERT-L2-v2", 0.3)`.
        stop_when_stable: Stop after so many batches in a row that left the top as it was: a
            heuristic.
        drop_duplicates: Leave out documents whose text, as it is ranked, one before them has. Of
            those with the same id one is kept in any case.
        revision: Branch, tag or commit of the model on the hub.
        cache_dir: Folder for weights; None means `SIE_CACHE_DIR`, else the platform's.
        client: A client to use instead, also one of SIE's own package; it stays the caller's to
            close, and cannot be serialised.
        async_client: The same for `run_async`; without one, a given `client` runs in a thread.
        on_rerank: Told of each run that has ended, by a `sie_core.RerankEvent`; it is not
            serialised. What it raises is logged once and fails no run.

    Raises:
        InvalidRequestError: (a ValueError) An argument is wrong, or two contradict each other.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | Path = DEFAULT_MODEL,
        *,
        top_k: int | None = 10,
        gpu: str | None = None,
        options: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        timeout_seconds: float | None = None,
        api_key: Secret | None = API_KEY,
        fallback: Fallback | Sequence[Fallback] | None = None,
        hedge_after_ms: float | None = None,
        wait_for_capacity: bool = False,
        device: ComponentDevice | str | Sequence[str] | None = None,
        token: Secret | None = HUB_TOKEN,
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        meta_fields_to_embed: Sequence[str] | None = None,
        embedding_separator: str = "\n",
        meta_template: str = "{value}",
        scale_score: bool | None = None,
        score_space: RerankSpace | None = None,
        calibration: str | Path | None = None,
        fuse_retrieval_score: float | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        mode: Mode = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
        lora: str | None = None,
        long_documents: Handling | None = None,
        passage_length: int | None = None,
        passage_overlap: int | None = None,
        max_passages: int | None = None,
        max_latency_ms: float | None = None,
        score_cache: ScoreCache | Mapping[str, Any] | int | None = None,
        cascade: Sequence[Stage | tuple[str, float] | Mapping[str, Any]] | None = None,
        stop_when_stable: int | None = None,
        drop_duplicates: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        client: ScoringClient | None = None,
        async_client: AsyncScoringClient | None = None,
        on_rerank: OnRerank | None = None,
    ) -> None:
        check_score_space(score_space, spaces=RerankSpace)
        self._take_backend(
            base_url=base_url,
            model=model,
            gpu=gpu,
            options=options,
            timeout_s=timeout_s,
            timeout_seconds=timeout_seconds,
            api_key=api_key,
            wait_for_capacity=wait_for_capacity,
            device=device,
            token=token,
            model_kwargs=model_kwargs,
            tokenizer_kwargs=tokenizer_kwargs,
            batch_size=batch_size,
            mode=mode,
            dtype=dtype,
            num_threads=num_threads,
            max_length=max_length,
            revision=revision,
            cache_dir=cache_dir,
            client=client,
            async_client=async_client,
        )
        self.top_k = top_k
        self.fallback = fallback
        self.hedge_after_ms = hedge_after_ms
        self.query_prefix = query_prefix
        self.query_suffix = query_suffix
        self.document_prefix = document_prefix
        self.document_suffix = document_suffix
        self.meta_fields_to_embed = list(meta_fields_to_embed or [])
        self.embedding_separator = embedding_separator
        self.meta_template = meta_template
        self.scale_score = scale_score
        self.score_space = score_space
        self.calibration = None if calibration is None else str(calibration)
        self.fuse_retrieval_score = fuse_retrieval_score
        self.lora = lora
        self.long_documents = long_documents
        self.passage_length = passage_length
        self.passage_overlap = passage_overlap
        self.max_passages = max_passages
        self.max_latency_ms = max_latency_ms
        self.score_cache = score_cache
        self.cascade = None if cascade is None else [it.to_dict() for it in to_stages(cascade)]
        self.stop_when_stable = stop_when_stable
        self.drop_duplicates = drop_duplicates
        self.on_rerank = on_rerank
        self.score_threshold = score_threshold
        self.instruction = instruction
        self._document_text  # noqa: B018  it checks the arguments
        CallSettings(**self._call_settings())  # so does it
        self._holder = self._make_holder()

    _constructor = __init__

    def stats(self) -> RerankStats:
        """Count what this component's runs came to since it was made; see `Reranker.stats`."""
        return self._reranker.stats()

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        *,
        instruction: str | None = None,
        max_latency_ms: float | None = None,
    ) -> dict[str, list[Document]]:
        """Rerank `documents`, which stay as they are.

        Of documents with the same id, the one with the best retrieval score is kept.

        Args:
            query: What is looked for.
            documents: Documents in retrieval order.
            top_k: Instead of the constructor's, as are the four below; None means that one.
            scale_score: See the class.
            score_threshold: See the class.
            instruction: See the class.
            max_latency_ms: See the class.

        Returns:
            `{"documents": [...]}`, best first.

        Raises:
            SIEError: An argument is wrong, or the model could not be had, loaded or run.
        """
        candidates = _without_duplicates(documents)
        ranking = self._reranker.rerank(
            self._query_text(query),
            self._texts(candidates),
            retrieval_scores=[document.score for document in candidates],
            **self._call_settings(top_k, scale_score, score_threshold, instruction, max_latency_ms),
        )
        return {"documents": self._to_documents(candidates, ranking)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        *,
        instruction: str | None = None,
        max_latency_ms: float | None = None,
    ) -> dict[str, list[Document]]:
        """Do what `run` does, without blocking the event loop."""
        candidates = _without_duplicates(documents)
        ranking = await self._reranker.arerank(
            self._query_text(query),
            self._texts(candidates),
            retrieval_scores=[document.score for document in candidates],
            **self._call_settings(top_k, scale_score, score_threshold, instruction, max_latency_ms),
        )
        return {"documents": self._to_documents(candidates, ranking)}

    def run_batch(
        self,
        queries: list[str],
        documents: list[list[Document]],
        *,
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        max_latency_ms: float | None = None,
    ) -> dict[str, list[list[Document]]]:
        """Rerank the documents of several queries at once, so that they share batches.

        Args:
            queries: What is looked for.
            documents: A list of documents for each query.
            top_k: As for `run`, as are the three below.
            scale_score: See `run`.
            score_threshold: See `run`.
            instruction: See `run`.
            max_latency_ms: Of all queries together.

        Returns:
            `{"documents": [[...], ...]}`: a list for each query, best first.

        Raises:
            SIEError: As for `run`; one query that fails fails the batch.
        """
        candidates = _candidates(queries, documents)
        rankings = self._reranker.rank_many(
            self._pairs(queries, candidates),
            retrieval_scores=_retrieval_scores(candidates),
            **self._call_settings(top_k, scale_score, score_threshold, instruction, max_latency_ms),
        )
        return {"documents": list(map(self._to_documents, candidates, rankings))}

    async def run_batch_async(
        self,
        queries: list[str],
        documents: list[list[Document]],
        *,
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        max_latency_ms: float | None = None,
    ) -> dict[str, list[list[Document]]]:
        """Do what `run_batch` does, without blocking the event loop."""
        candidates = _candidates(queries, documents)
        rankings = await self._reranker.arank_many(
            self._pairs(queries, candidates),
            retrieval_scores=_retrieval_scores(candidates),
            **self._call_settings(top_k, scale_score, score_threshold, instruction, max_latency_ms),
        )
        return {"documents": list(map(self._to_documents, candidates, rankings))}

    def _call_settings(
        self,
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
        max_latency_ms: float | None = None,
    ) -> dict[str, Any]:
        """What may be assigned between runs, or given with one, and so goes with every call."""
        scale = self.scale_score if scale_score is None else scale_score
        settings = {
            "top_k": self.top_k,
            "score_threshold": self.score_threshold,
            "score_space": self.score_space if scale is None else _SCORE_SPACES[scale],
            "instruction": self.instruction,
            "fuse_retrieval_score": self.fuse_retrieval_score,
            "max_latency_ms": self.max_latency_ms,
            "long_documents": self.long_documents,
            "drop_duplicates": self.drop_duplicates,
        }
        given = {
            "top_k": top_k,
            "score_threshold": score_threshold,
            "instruction": instruction,
            "max_latency_ms": max_latency_ms,
        }
        return settings | {name: value for name, value in given.items() if value is not None}

    def _pairs(
        self, queries: list[str], candidates: list[list[Document]]
    ) -> list[tuple[str, list[str | None]]]:
        return [
            (self._query_text(query), self._texts(documents))
            for query, documents in zip(queries, candidates, strict=True)
        ]

    @property
    def _document_text(self) -> DocumentText:
        return DocumentText(
            meta_fields=self.meta_fields_to_embed,
            meta_template=self.meta_template,
            meta_separator=self.embedding_separator,
            query_prefix=self.query_prefix,
            query_suffix=self.query_suffix,
            document_prefix=self.document_prefix,
            document_suffix=self.document_suffix,
        )

    def _query_text(self, query: str) -> str:
        return self._document_text.of_query(query)

    def _texts(self, documents: list[Document]) -> list[str | None]:
        return self._document_text.texts_of((it.content, it.meta) for it in documents)

    def _to_documents(self, documents: list[Document], ranking: Ranking) -> list[Document]:
        return [self._with_score(documents[entry.index], entry, ranking.marks) for entry in ranking]

    def _with_score(
        self, document: Document, entry: RankedEntry, marks: dict[str, str]
    ) -> Document:
        """Copy a document with its score; what an earlier stage said of its own order goes."""
        kept = {key: value for key, value in document.meta.items() if key not in STALE_KEYS}
        if entry.model_score is not None:
            kept[MODEL_SCORE_KEY] = entry.model_score
        if entry.stage_scores:
            kept[STAGE_SCORES_KEY] = list(entry.stage_scores)
        if entry.span is not None:
            ranked = self._document_text.of_document(document.content, document.meta)
            if ranked and (place := ranked.in_content(entry.span)):
                kept[BEST_PASSAGE_KEY] = list(place)
        return replace(document, score=entry.score, meta=kept | marks)

    @property
    def _reranker(self) -> Reranker:
        return cast("Reranker", self._holder)

    def _make_holder(self) -> Reranker:
        return Reranker(
            self.model,
            fallback=self.fallback,
            hedge_after_ms=self.hedge_after_ms,
            calibration=self.calibration,
            lora=self.lora,
            passage_length=self.passage_length,
            passage_overlap=self.passage_overlap,
            max_passages=self.max_passages,
            score_cache=self.score_cache,
            cascade=self.cascade,
            stop_when_stable=self.stop_when_stable,
            on_rerank=self.on_rerank,
            **self._backend_settings,
        )


def _without_duplicates(documents: list[Document]) -> list[Document]:
    """Keep one document per id, the one with the best score, at the place of the first."""
    best: dict[str, Document] = {}
    for document in documents:
        kept = best.setdefault(document.id, document)
        if document.score is not None and (kept.score is None or document.score > kept.score):
            best[document.id] = document
    return list(best.values())


def _candidates(queries: list[str], documents: list[list[Document]]) -> list[list[Document]]:
    """Return each query's documents without duplicates.

    Raises:
        InvalidRequestError: There are not as many lists as queries.
    """
    if len(queries) != len(documents):
        msg = f"documents must be a list for each of {len(queries)} queries, got {len(documents)}"
        raise InvalidRequestError(msg)
    return [_without_duplicates(of_one) for of_one in documents]


def _retrieval_scores(candidates: list[list[Document]]) -> list[list[float | None]]:
    return [[document.score for document in of_one] for of_one in candidates]
