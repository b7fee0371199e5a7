"""`SIENodePostprocessor`: LlamaIndex nodes to texts, and a ranking back to new scored nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from llama_index.core.bridge.pydantic import Field, SecretStr, field_serializer
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from sie_core.cascade import Stage, to_stages
from sie_core.deadline import check_timeout_seconds
from sie_core.document_text import DocumentText, RankedText
from sie_core.errors import InvalidRequestError
from sie_core.fusion import check_retrieval_weight
from sie_core.long_documents import Handling
from sie_core.ranking import (
    BEST_PASSAGE_KEY,
    MODEL_SCORE_KEY,
    STAGE_SCORES_KEY,
    STALE_KEYS,
    check_score_threshold,
    check_top_k,
)
from sie_core.rerank_watch import OnRerank
from sie_core.reranker import Fallback, Reranker
from sie_core.score_cache import ScoreCache
from sie_core.setting_names import one_of
from sie_core.settings import DEFAULT_MODEL
from sie_core.telemetry import RerankStats
from sie_core.types import AsyncScoringClient, Mode, RerankSpace, ScoringClient
from sie_llamaindex.backend import SIEBackend, backend_fields
from sie_llamaindex.query_bundle import overrides_of

if TYPE_CHECKING:
    from sie_core.ranking import RankedEntry, Ranking

dispatcher = get_dispatcher(__name__)

RETRIEVAL_SCORE_KEY = "retrieval_score"
"""Where LlamaIndex's rerankers keep the retriever's score in a node's metadata."""


class SIENodePostprocessor(SIEBackend, BaseNodePostprocessor):
    """Order nodes by relevance to a query, best first.

    Nodes come back in new `NodeWithScore` objects with the reranker's score; nodes without text
    come last with the score None. The nodes given stay as they are. Nothing is loaded before the
    first call. Where a `fallback` gave another order than the model's, or not all nodes were
    scored, the metadata of every node, which then is a copy, says so: `rerank_status`,
    `rerank_served_by` and `rerank_reason`, hidden from embeddings and prompts. A
    copy of the component keeps `api_key` and `token`; a pickle does not, and the process that
    unpickles it reads `SIE_API_KEY` and `HF_TOKEN`.

    Args:
        base_url: Address of an SIE server; None means `SIE_BASE_URL`, else in this process.
        model: Model name or folder.
        top_n: Keep at most this many nodes; None keeps all.
        options: Passed on to the client's `score`, such as `{"max_length": 256}`.
        gpu: Machine profile on a remote cluster, such as `l4`.
        timeout_s: Another name for `timeout_seconds`.
        timeout_seconds: Bound on one whole call, retries and loading included; None means 180 on
            a server, and no bound in-process.
        api_key: Sent to the server at `base_url` only; None means `SIE_API_KEY`. It is left out by
            `to_dict`.
        fallback: Who answers where that fails: `local`, `retrieval_order`, another address or
            client, or a list of them, asked in turn; None raises the error. `to_dict` keeps names
            and addresses, and nothing where there are clients among them.
        hedge_after_ms: Ask the next of them too where there is no answer after this time.
        wait_for_capacity: Remote: wait while the cluster starts a machine.
        score_threshold: Keep nodes with `score >= score_threshold`; None keeps all.
        score_space: `raw` logits, `probability`, or `calibrated` by what `sie calibrate` fitted;
            None means what the model's own config says.
        calibration: For `calibrated`: a file; None means the one stored under the model's name.
        fuse_retrieval_score: Weight of the nodes' own scores, from 0 to 1, which are mixed with the
            model's; None leaves them out. A node's score is then the mix, and the model's is in
            `metadata["model_score"]`.
        instruction: Put before the query, for models trained with instructions.
        metadata_mode: Which metadata is part of the text that is scored.
        meta_fields: Instead of what `metadata_mode` says: the metadata fields whose values stand
            before the content; what a node does not have is left out. A node with such a value and
            no content is scored too.
        meta_template: How each of them is written, such as `"{name}: {value}"`.
        meta_separator: Stands between them, and before the content.
        query_prefix: Put before the query, as it is.
        query_suffix: Put after the query.
        document_prefix: Put before each node's text, metadata included.
        document_suffix: Put after it.
        keep_retrieval_score: Write the retriever's score to `metadata["retrieval_score"]` of a
            copy of the node, hidden from embeddings and prompts.
        client: A client to use instead, also one of SIE's own package; it stays the caller's to
            close, and is not serialised.
        async_client: The same for async calls; without one, a given `client` runs in a thread.
        device: In-process: `cuda`, `cuda:1`, `cpu`, `mps`, or a list of CUDA devices that share
            the work; None means CUDA if there, else CPU.
        mode: In-process: `exact` computes in float32, `fast` in half precision where that is
            faster; `auto` is fast where that can be had.
        dtype: In-process: `float32`, `float16`, `bfloat16`, instead of what the mode means.
        num_threads: In-process: cores used on the CPU; None means `SIE_NUM_THREADS`, else all that
            this process may use.
        max_length: Tokens per pair; None means the model's own maximum.
        batch_size: Pairs per forward pass at most; None lets the token budget alone decide.
        lora: Adapter to score with: a folder, or a name on the hub or the server.
        long_documents: What is done with nodes that are longer than the model reads: `truncate`
            cuts their end off; `max_passage` takes the best of overlapping passages, and
            `metadata["best_passage"]` of a copy of the node says where it is, `[start, end]` in
            the characters of its content; `error` refuses the call. None means `truncate`.
        passage_length: Tokens of the node in a passage; None means as many as the model reads.
        passage_overlap: Tokens that neighbouring passages share; None means 64.
        max_passages: Passages of one node at most; None means 32.
        max_latency_ms: Return after this time with what is scored by then; the rest follows in
            retrieval order.
        score_cache: Bytes of scores to keep, or a `sie_core.ScoreCache` that several share.
        cascade: Cheaper models that score before, each with the part of the nodes that go on: a
            list of `sie_core.Stage`, or of pairs such as `("…/ms-marco-TinyBERT-L2-v2", 0.3)`.
        stop_when_stable: Stop after so many batches in a row that left the top as it was: a
            heuristic.
        drop_duplicates: Leave out nodes whose text, as it is ranked, one before them has.
        revision: Branch, tag or commit of the model on the hub.
        token: Hub token for gated models; it is left out by `to_dict`.
        cache_dir: Folder for weights; None means `SIE_CACHE_DIR`, else the platform's.
        on_rerank: Told of each call that has ended, by a `sie_core.RerankEvent`; it is not
            serialised. What it raises is logged once and fails no call.
        callback_manager: Handlers that are told of each call.

    Raises:
        InvalidRequestError: (a ValueError) An argument is wrong, or two contradict each other.
    """

    _unlosable: ClassVar[tuple[str, ...]] = ("client", "async_client", "fallback")

    model: str = Field(frozen=True, description="Model name or folder.")
    top_n: int | None = Field(description="How many nodes to return at most.")
    fallback: Any = Field(frozen=True, repr=False, description="Who answers where that fails.")
    hedge_after_ms: float | None = Field(frozen=True, description="When to ask the next too.")
    score_threshold: float | None = Field(description="The lowest score that is kept.")
    score_space: RerankSpace | None = Field(description="Logits (raw) or probabilities.")
    calibration: str | None = Field(frozen=True, description="File of `sie calibrate`.")
    fuse_retrieval_score: float | None = Field(description="Weight of the retriever's score.")
    lora: str | None = Field(frozen=True, description="Adapter to score with.")
    instruction: str | None = Field(description="Instruction to the model.")
    max_latency_ms: float | None = Field(description="When to return with what is scored.")
    score_cache: Any = Field(frozen=True, repr=False, description="Scores that are kept.")
    cascade: list[dict[str, Any]] | None = Field(
        frozen=True, description="Cheaper models that score before."
    )
    stop_when_stable: int | None = Field(frozen=True, description="Batches without a change.")
    drop_duplicates: bool = Field(description="Leave out nodes whose text one before has.")
    on_rerank: Any = Field(frozen=True, exclude=True, repr=False, description="Told of calls.")
    metadata_mode: MetadataMode = Field(description="Which metadata is scored with the text.")
    meta_fields: list[str] | None = Field(description="Metadata that is scored with the text.")
    meta_template: str = Field(description="How each metadata field is written.")
    meta_separator: str = Field(description="Between metadata fields, and before the text.")
    query_prefix: str = Field(description="Before the query.")
    query_suffix: str = Field(description="After the query.")
    document_prefix: str = Field(description="Before each node's text.")
    document_suffix: str = Field(description="After each node's text.")
    long_documents: Handling | None = Field(description="What is done with long nodes.")
    passage_length: int | None = Field(frozen=True, description="Tokens of a passage.")
    passage_overlap: int | None = Field(frozen=True, description="Tokens shared by passages.")
    max_passages: int | None = Field(frozen=True, description="Passages of one node at most.")
    keep_retrieval_score: bool = Field(description="Keep the retriever's score in metadata.")

    def __init__(  # noqa: PLR0917 - the order that users of SIE's own package have
        self,
        base_url: str | None = None,
        model: str = DEFAULT_MODEL,
        top_n: int | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_s: float | None = None,
        *,
        timeout_seconds: float | None = None,
        api_key: str | SecretStr | None = None,
        fallback: Fallback | Sequence[Fallback] | None = None,
        hedge_after_ms: float | None = None,
        wait_for_capacity: bool = False,
        score_threshold: float | None = None,
        score_space: RerankSpace | None = None,
        calibration: str | Path | None = None,
        fuse_retrieval_score: float | None = None,
        instruction: str | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        meta_fields: Sequence[str] | None = None,
        meta_template: str = "{value}",
        meta_separator: str = "\n",
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        keep_retrieval_score: bool = False,
        client: ScoringClient | None = None,
        async_client: AsyncScoringClient | None = None,
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
        max_latency_ms: float | None = None,
        score_cache: ScoreCache | Mapping[str, Any] | int | None = None,
        cascade: Sequence[Stage | tuple[str, float] | Mapping[str, Any]] | None = None,
        stop_when_stable: int | None = None,
        drop_duplicates: bool = False,
        revision: str | None = None,
        token: str | SecretStr | None = None,
        cache_dir: str | Path | None = None,
        on_rerank: OnRerank | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        check_top_k(top_n, name="top_n")
        check_score_threshold(score_threshold)
        check_retrieval_weight(fuse_retrieval_score)
        check_timeout_seconds(max_latency_ms, name="max_latency_ms")
        fields = backend_fields(
            timeout_seconds=one_of("timeout_seconds", timeout_seconds, "timeout_s", timeout_s),
            base_url=base_url,
            options=options,
            gpu=gpu,
            api_key=api_key,
            wait_for_capacity=wait_for_capacity,
            client=client,
            async_client=async_client,
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
        fields |= {
            "model": model,
            "top_n": top_n,
            "fallback": fallback,
            "hedge_after_ms": hedge_after_ms,
            "score_threshold": score_threshold,
            "score_space": score_space,
            "calibration": None if calibration is None else str(calibration),
            "fuse_retrieval_score": fuse_retrieval_score,
            "lora": lora,
            "max_latency_ms": max_latency_ms,
            "score_cache": score_cache,
            "cascade": None if cascade is None else [it.to_dict() for it in to_stages(cascade)],
            "stop_when_stable": stop_when_stable,
            "drop_duplicates": drop_duplicates,
            "on_rerank": on_rerank,
            "instruction": instruction,
            "metadata_mode": metadata_mode,
            "meta_fields": meta_fields if meta_fields is None else list(meta_fields),
            "meta_template": meta_template,
            "meta_separator": meta_separator,
            "query_prefix": query_prefix,
            "query_suffix": query_suffix,
            "document_prefix": document_prefix,
            "document_suffix": document_suffix,
            "long_documents": long_documents,
            "passage_length": passage_length,
            "passage_overlap": passage_overlap,
            "max_passages": max_passages,
            "keep_retrieval_score": keep_retrieval_score,
            "callback_manager": callback_manager or CallbackManager(),
        }
        super().__init__(**fields)
        self._document_text  # noqa: B018  it checks the fields
        self._holder = self._make_holder()

    @classmethod
    def class_name(cls) -> str:
        """Name the class in serialised components."""
        return "SIENodePostprocessor"

    def stats(self) -> RerankStats:
        """Count what this component's calls came to since it was made; see `Reranker.stats`."""
        return self._reranker.stats()

    @field_serializer("fallback")
    def _dump_fallback(self, fallback: Any) -> str | list[str] | None:
        """Keep names and addresses; clients belong to this process, and may hold secrets."""
        if fallback is None or isinstance(fallback, str):
            return fallback
        is_named = isinstance(fallback, Sequence) and all(isinstance(it, str) for it in fallback)
        return list(fallback) if is_named else None

    @field_serializer("score_cache")
    def _dump_score_cache(self, score_cache: Any) -> Any:
        return score_cache.to_dict() if isinstance(score_cache, ScoreCache) else score_cache

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

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, settings = _query(query_bundle), self._settings_for(nodes, query_bundle)
        with self._events(query, nodes, settings["top_k"]) as ranked:
            asked, texts = self._document_text.of_query(query), self._texts(nodes)
            ranking = self._reranker.rerank(asked, texts, **settings)
            ranked.extend(self._to_nodes(nodes, ranking))
        return ranked

    @dispatcher.span  # the base class opens a span for the sync method only
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, settings = _query(query_bundle), self._settings_for(nodes, query_bundle)
        with self._events(query, nodes, settings["top_k"]) as ranked:
            asked, texts = self._document_text.of_query(query), self._texts(nodes)
            ranking = await self._reranker.arerank(asked, texts, **settings)
            ranked.extend(self._to_nodes(nodes, ranking))
        return ranked

    @contextmanager
    def _events(
        self, query: str, nodes: list[NodeWithScore], top_n: int | None
    ) -> Iterator[list[NodeWithScore]]:
        """Tell both of LlamaIndex's event systems of the start and, whatever happens, of the end.

        Yields:
            The list into which the ranked nodes are put.
        """
        ranked: list[NodeWithScore] = []
        top_n = len(nodes) if top_n is None else top_n
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        dispatcher.event(
            ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model)
        )
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield ranked
                event.on_end(payload={EventPayload.NODES: ranked})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=ranked))

    def _settings_for(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None
    ) -> dict[str, Any]:
        """What may be assigned between calls, or comes with a query, and so goes with each call."""
        settings = {
            "top_k": self.top_n,
            "score_threshold": self.score_threshold,
            "instruction": self.instruction,
            "score_space": self.score_space,
            "fuse_retrieval_score": self.fuse_retrieval_score,
            "max_latency_ms": self.max_latency_ms,
            "long_documents": self.long_documents,
            "drop_duplicates": self.drop_duplicates,
            "retrieval_scores": [node.score for node in nodes],
        }
        return settings | overrides_of(query_bundle)

    @property
    def _document_text(self) -> DocumentText:
        return DocumentText(
            meta_fields=self.meta_fields or (),
            meta_template=self.meta_template,
            meta_separator=self.meta_separator,
            query_prefix=self.query_prefix,
            query_suffix=self.query_suffix,
            document_prefix=self.document_prefix,
            document_suffix=self.document_suffix,
        )

    def _texts(self, nodes: list[NodeWithScore]) -> list[str | None]:
        text = self._document_text
        ranked = [self._ranked_text(text, node.node) for node in nodes]
        return [None if it is None else it.text for it in ranked]

    def _ranked_text(self, text: DocumentText, node: BaseNode) -> RankedText | None:
        """Put a node's content and its metadata together: the named fields, or by the mode."""
        content = node.get_content(metadata_mode=MetadataMode.NONE)
        if self.meta_fields is not None:
            return text.of_document(content, node.metadata)
        return text.of_text(node.get_content(metadata_mode=self.metadata_mode), content)

    def _to_nodes(self, nodes: list[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        marks = ranking.marks
        return [self._with_score(nodes[entry.index], entry, marks) for entry in ranking]

    def _with_score(
        self, scored: NodeWithScore, entry: RankedEntry, marks: dict[str, str]
    ) -> NodeWithScore:
        added: dict[str, Any] = dict(marks)
        if self.keep_retrieval_score and scored.score is not None:
            added[RETRIEVAL_SCORE_KEY] = scored.score
        if entry.model_score is not None:
            added[MODEL_SCORE_KEY] = entry.model_score
        if entry.stage_scores:
            added[STAGE_SCORES_KEY] = list(entry.stage_scores)
        if entry.span is not None:
            ranked = self._ranked_text(self._document_text, scored.node)
            if ranked and (place := ranked.in_content(entry.span)):
                added[BEST_PASSAGE_KEY] = list(place)
        return scored.model_copy(
            update={"node": _with_metadata(scored.node, added), "score": entry.score}
        )


def _with_metadata(node: BaseNode, added: dict[str, Any]) -> BaseNode:
    """Copy a node with `added` in its metadata, where no model gets to read it.

    Marks of an earlier stage go. With nothing to add and nothing to remove it is the node itself.
    """
    if not added and not STALE_KEYS & node.metadata.keys():
        return node
    kept = {key: value for key, value in node.metadata.items() if key not in STALE_KEYS}
    return node.model_copy(
        update={
            "metadata": kept | added,
            "excluded_embed_metadata_keys": _excluded(node.excluded_embed_metadata_keys, added),
            "excluded_llm_metadata_keys": _excluded(node.excluded_llm_metadata_keys, added),
        }
    )


def _excluded(keys: list[str], added: dict[str, Any]) -> list[str]:
    return [key for key in keys if key not in STALE_KEYS | added.keys()] + list(added)


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        msg = "the query is missing: pass query_bundle or query_str to postprocess_nodes"
        raise InvalidRequestError(msg)
    return query_bundle.query_str
