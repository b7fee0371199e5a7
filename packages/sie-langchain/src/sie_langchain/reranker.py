"""`SIEReranker`: LangChain documents to texts, and a ranking back to new LangChain documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable

from sie_core.document_text import DocumentText
from sie_core.fusion import check_retrieval_weight
from sie_core.ranking import (
    BEST_PASSAGE_KEY,
    MODEL_SCORE_KEY,
    STAGE_SCORES_KEY,
    STALE_KEYS,
    check_score_threshold,
    check_top_k,
)
from sie_langchain.backend import SIEScoring
from sie_langchain.overrides import RerankOverrides, check_overrides
from sie_langchain.runnable import RerankInput, RerankRunnable

if TYPE_CHECKING:
    from sie_core.ranking import RankedEntry, Ranking

SCORE_KEY = "relevance_score"
"""Where LangChain's rerankers put the score in a document's metadata."""

_STALE_KEYS = STALE_KEYS | {SCORE_KEY}
"""What an earlier stage may have written, and speaks of that stage only."""

_MAX_TRACED_SCORES = 10
"""How many of the best scores a trace shows."""


class SIEReranker(SIEScoring, BaseDocumentCompressor):
    """Order documents by relevance to a query, best first.

    It is a document compressor, for `ContextualCompressionRetriever`. Documents come back as
    copies with their id and metadata, and the score in `metadata["relevance_score"]`; documents
    without text come last and have no score. With `callbacks`, each call is a run of its own.
    Where a `fallback` gave another order than the model's, or not all documents were scored, every
    document says so in its metadata: `rerank_status`, `rerank_served_by` and `rerank_reason`.
    With `long_documents="max_passage"`, `metadata["best_passage"]` of a long document is where its
    best passage is: `[start, end]` in the characters of `page_content`.
    """

    _aliases: ClassVar[Mapping[str, str]] = {"timeout_s": "timeout_seconds", "top_k": "top_n"}

    top_n: int | None = None
    """Keep at most this many documents; None keeps all. `top_k` is accepted too."""
    score_threshold: float | None = None
    """Keep documents with `score >= score_threshold`; None keeps all."""
    fuse_retrieval_score: float | None = None
    """Weight of the retriever's score, from 0 to 1, which is mixed with the model's; None leaves it
    out. `metadata["relevance_score"]` is then the mix, `metadata["model_score"]` the model's."""
    retrieval_score_key: str = "score"
    """Where the retriever's score is in a document's metadata; used for that only."""
    meta_fields: list[str] | None = None
    """Metadata fields whose values are ranked with the content, before it; what a document does not
    have is left out. A document with such a value and no content is scored too."""
    meta_template: str = "{value}"
    """How each of them is written, such as `"{name}: {value}"`."""
    meta_separator: str = "\n"
    """Stands between them, and before the content."""
    query_prefix: str = ""
    """Put before the query, as it is."""
    query_suffix: str = ""
    """Put after the query."""
    document_prefix: str = ""
    """Put before each document's text, metadata included."""
    document_suffix: str = ""
    """Put after it."""
    drop_duplicates: bool = False
    """Leave out documents whose text, as it is ranked, one before them has."""

    def model_post_init(self, context: Any, /) -> None:
        """Check the fields and make the reranker."""
        check_top_k(self.top_n, name="top_n")
        check_score_threshold(self.score_threshold)
        check_retrieval_weight(self.fuse_retrieval_score)
        self._document_text  # noqa: B018  it checks the fields
        super().model_post_init(context)

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        **overrides: Unpack[RerankOverrides],
    ) -> list[Document]:
        """Rerank `documents`, which stay as they are.

        Args:
            documents: Documents in retrieval order.
            query: What is looked for.
            callbacks: Handlers or a manager, under which the call appears as a run.
            overrides: `top_n`, `score_threshold`, `instruction` and `max_latency_ms` of this call,
                instead of the fields; None means the field.

        Raises:
            SIEError: An override is wrong or unknown, the query is blank, or the model could not
                be had, loaded or run.
        """
        manager = CallbackManager.configure(callbacks)
        settings = self._settings_for(documents, overrides)
        inputs = self._inputs(documents, query, settings)
        run = manager.on_chain_start(None, inputs, name=self._run_name)
        try:
            ranking = self._reranker.rerank(
                self._document_text.of_query(query),
                self._texts(documents),
                **settings,
            )
            ranked = self._to_documents(documents, ranking)
        except BaseException as exc:
            run.on_chain_error(exc)
            raise
        run.on_chain_end(_outputs(ranking))
        return ranked

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        **overrides: Unpack[RerankOverrides],
    ) -> list[Document]:
        """Do what `compress_documents` does, without blocking the event loop."""
        manager = AsyncCallbackManager.configure(callbacks)
        settings = self._settings_for(documents, overrides)
        inputs = self._inputs(documents, query, settings)
        run = await manager.on_chain_start(None, inputs, name=self._run_name)
        try:
            ranking = await self._reranker.arerank(
                self._document_text.of_query(query),
                self._texts(documents),
                **settings,
            )
            ranked = self._to_documents(documents, ranking)
        except BaseException as exc:
            await run.on_chain_error(exc)
            raise
        await run.on_chain_end(_outputs(ranking))
        return ranked

    def as_runnable(self) -> Runnable[RerankInput, list[Document]]:
        """Give a runnable from `{"query": str, "documents": [Document, ...]}` to documents.

        Its `batch` and `abatch` rank all queries at once.
        """
        runnable = RerankRunnable(self)
        return runnable.with_types(input_type=RerankInput, output_type=list[Document])

    def compress_many(
        self,
        pairs: Sequence[tuple[str, Sequence[Document]]],
        **overrides: Unpack[RerankOverrides],
    ) -> list[list[Document] | Exception]:
        """Rerank the documents of several queries at once, so that they share batches.

        Args:
            pairs: Queries, each with its documents.
            overrides: As for `compress_documents`; `max_latency_ms` is of all queries together.

        Returns:
            For each query its documents, best first, or the error that came instead.
        """
        rankings = self._reranker.rank_many(
            self._to_texts(pairs),
            **self._settings_for_many(pairs, overrides),
        )
        return self._to_many(pairs, rankings)

    async def acompress_many(
        self,
        pairs: Sequence[tuple[str, Sequence[Document]]],
        **overrides: Unpack[RerankOverrides],
    ) -> list[list[Document] | Exception]:
        """Do what `compress_many` does, without blocking the event loop."""
        rankings = await self._reranker.arank_many(
            self._to_texts(pairs),
            **self._settings_for_many(pairs, overrides),
        )
        return self._to_many(pairs, rankings)

    @property
    def _run_name(self) -> str:
        return type(self).__name__

    def _settings_for(
        self, documents: Sequence[Document], overrides: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What may be assigned between calls, or given with one, and so goes with every call."""
        key = self.retrieval_score_key
        given = check_overrides(overrides)
        settings = {
            "top_k": self.top_n,
            "score_threshold": self.score_threshold,
            "instruction": self.instruction,
            "score_space": self.score_space,
            "fuse_retrieval_score": self.fuse_retrieval_score,
            "max_latency_ms": self.max_latency_ms,
            "long_documents": self.long_documents,
            "drop_duplicates": self.drop_duplicates,
            "retrieval_scores": [document.metadata.get(key) for document in documents],
        }
        return settings | given

    def _settings_for_many(
        self,
        pairs: Sequence[tuple[str, Sequence[Document]]],
        overrides: Mapping[str, Any],
    ) -> dict[str, Any]:
        each = [self._settings_for(documents, {})["retrieval_scores"] for _, documents in pairs]
        shared = self._settings_for([], overrides)
        return shared | {"retrieval_scores": each, "return_exceptions": True}

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

    def _texts(self, documents: Sequence[Document]) -> list[str | None]:
        return self._document_text.texts_of((it.page_content, it.metadata) for it in documents)

    def _to_texts(
        self, pairs: Sequence[tuple[str, Sequence[Document]]]
    ) -> list[tuple[str, list[str | None]]]:
        text = self._document_text
        return [(text.of_query(query), self._texts(documents)) for query, documents in pairs]

    def _to_documents(self, documents: Sequence[Document], ranking: Ranking) -> list[Document]:
        marks = ranking.marks
        return [self._with_score(documents[entry.index], entry, marks) for entry in ranking]

    def _to_many(
        self,
        pairs: Sequence[tuple[str, Sequence[Document]]],
        rankings: Sequence[Ranking | Exception],
    ) -> list[list[Document] | Exception]:
        return [
            ranking if isinstance(ranking, Exception) else self._to_documents(documents, ranking)
            for (_, documents), ranking in zip(pairs, rankings, strict=True)
        ]

    def _with_score(
        self, document: Document, entry: RankedEntry, marks: dict[str, str]
    ) -> Document:
        """Copy a document, its score written last, so that a retriever's own score never wins."""
        kept = {key: value for key, value in document.metadata.items() if key not in _STALE_KEYS}
        metadata = kept | marks
        if entry.score is not None:
            metadata[SCORE_KEY] = entry.score
        if entry.model_score is not None:
            metadata[MODEL_SCORE_KEY] = entry.model_score
        if entry.stage_scores:
            metadata[STAGE_SCORES_KEY] = list(entry.stage_scores)
        if entry.span is not None:
            ranked = self._document_text.of_document(document.page_content, document.metadata)
            if ranked and (place := ranked.in_content(entry.span)):
                metadata[BEST_PASSAGE_KEY] = list(place)
        return document.model_copy(update={"metadata": metadata})

    def _inputs(
        self, documents: Sequence[Document], query: str, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Describe a call to a tracer. The parent's run holds the documents themselves."""
        return {
            "query": query,
            "model": self.model,
            "top_n": settings["top_k"],
            "num_documents": len(documents),
        }


def _outputs(ranking: Ranking) -> dict[str, Any]:
    """Describe an answer to a tracer, and who gave it."""
    outputs = {
        "num_documents": len(ranking),
        "scores": [entry.score for entry in ranking.entries[:_MAX_TRACED_SCORES]],
        "usage": dict(ranking.usage),
        "status": ranking.status,
        "served_by": ranking.served_by,
    }
    return outputs if ranking.reason is None else outputs | {"reason": ranking.reason}
