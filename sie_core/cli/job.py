"""The work of `sie rerank`: score every query's documents in chunks and write each ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sie_core.cli.interrupt import exiting_at_interrupt
from sie_core.ranking import RankedEntry, rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sie_core.cli.progress import Waiting
    from sie_core.cli.records import Document
    from sie_core.cli.results import Results
    from sie_core.reranker import Reranker

_CHUNK_SIZE = 256
"""Documents per call: few enough for the bar to move, enough to fill batches of like length."""


class RerankJob:
    """Rank the same documents for one query after the other.

    Args:
        reranker: Scores; keeps every document, so that the cut is made once, over all chunks.
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
        self.num_truncated = 0

    def load(self, waiting: Waiting) -> None:
        """Get the model ready, unless there is nothing to score."""
        if not any(text and not text.isspace() for text in self._texts):
            return
        with waiting.loading(self._reranker.model):
            with exiting_at_interrupt():
                import sie_core.local  # noqa: F401 # for its torch
            if not self._is_bounded:
                self._reranker.warm_up()

    def run(self, queries: Sequence[str], results: Results, waiting: Waiting) -> None:
        """Write the ranking of every query as soon as it is there."""
        with waiting:
            for query_index, query in enumerate(queries):
                entries = self._rank(query, waiting)
                with waiting.making_room(for_terminal=results.is_terminal):
                    results.write(query_index, query, entries, self._documents)

    @property
    def _is_bounded(self) -> bool:
        """Whether each query has a deadline: then one call scores all, so that it bounds all."""
        return self._reranker.timeout_seconds is not None

    def _rank(self, query: str, waiting: Waiting) -> tuple[RankedEntry, ...]:
        chunk_size = max(len(self._texts), 1) if self._is_bounded else _CHUNK_SIZE
        scores: list[float | None] = [None] * len(self._texts)
        for start in range(0, len(self._texts), chunk_size):
            chunk = self._texts[start : start + chunk_size]
            ranking = self._reranker.rerank(query, chunk)
            for entry in ranking:
                scores[start + entry.index] = entry.score
            self.num_truncated += ranking.usage.get("truncated_items", 0)
            waiting.advance(len(chunk))
        return rank(scores, top_k=self._top_k, score_threshold=self._score_threshold)
