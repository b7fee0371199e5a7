"""The work of `sie rerank`: score every query's documents and write each ranking."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sie_core.cli.engine import import_engine
from sie_core.cli.notes import Notes
from sie_core.ranking import rank
from sie_core.types import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sie_core.cli.progress import Waiting
    from sie_core.cli.records import Document
    from sie_core.cli.results import Results
    from sie_core.ranking import Ranking
    from sie_core.reranker import Reranker

_CHUNK_SIZE = 256
"""Documents per call: few enough for the bar to move, enough to fill batches of like length."""


class RerankJob:
    """Rank the same documents for one query after the other.

    Args:
        reranker: Scores; keeps every document unless told otherwise by the call.
        documents: What is ranked.
        top_k: Keep at most this many for each query; None keeps all.
        score_threshold: Keep documents with `score >= score_threshold`; None keeps all.
    """

    def __init__(
        self,
        reranker: Reranker,
        documents: Sequence[Document],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> None:
        self._reranker = reranker
        self._documents = documents
        self._texts = [document.text for document in documents]
        self._top_k = top_k
        self._score_threshold = score_threshold
        self.notes = Notes()

    def load(self, waiting: Waiting) -> None:
        """Get an in-process model ready, unless there is nothing to score."""
        if not any(text and not text.isspace() for text in self._texts):
            return
        if self._reranker.base_url is not None:  # its server loads when it sees fit
            waiting.asking(self._reranker.base_url)
            return
        with waiting.loading(self._reranker.model):
            import_engine()
            if not self._is_one_call:
                self._reranker.warm_up()

    def run(self, queries: Sequence[str], results: Results, waiting: Waiting) -> None:
        """Write the ranking of every query as soon as it is there."""
        with waiting:
            for query_index, query in enumerate(queries):
                ranking = self._rank(query, waiting)
                self.notes.add(ranking)
                with waiting.making_room(for_terminal=results.is_terminal):
                    results.write(query_index, query, ranking, self._documents)

    @property
    def _is_one_call(self) -> bool:
        """Whether one call scores all documents of a query.

        It must where a deadline bounds them all, and where one backend must answer for them all:
        scores of two are not comparable. A client of a server splits a large call by itself.
        """
        reranker = self._reranker
        settings = (reranker.timeout_seconds, reranker.base_url, reranker.fallback)
        return any(setting is not None for setting in settings)

    def _rank(self, query: str, waiting: Waiting) -> Ranking:
        if not self._is_one_call:
            return self._rank_in_chunks(query, waiting)
        ranking = self._reranker.rerank(
            query, self._texts, top_k=self._top_k, score_threshold=self._score_threshold
        )
        waiting.advance(len(self._texts))
        return ranking

    def _rank_in_chunks(self, query: str, waiting: Waiting) -> Ranking:
        """Let the bar move; the cut is made once, over all chunks."""
        ranking = self._reranker.rerank(query, [])
        scores: list[float | None] = [None] * len(self._texts)
        order_by: list[float | None] = [None] * len(self._texts)
        num_truncated = 0
        for start in range(0, len(self._texts), _CHUNK_SIZE):
            chunk = self._texts[start : start + _CHUNK_SIZE]
            ranking = self._reranker.rerank(query, chunk)
            for entry in ranking:
                scores[start + entry.index] = entry.score
                finer = entry.score if entry.model_score is None else entry.model_score
                order_by[start + entry.index] = finer
            num_truncated += ranking.usage.get("truncated_items", 0)
            waiting.advance(len(chunk))
        entries = rank(
            scores,
            top_k=self._top_k,
            score_threshold=self._score_threshold,
            order_by=order_by,
        )
        return replace(ranking, entries=entries, usage=Usage(truncated_items=num_truncated))
