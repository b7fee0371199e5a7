"""`SIECrossEncoder`: scores of text pairs, for LangChain code that does its own ordering."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from langchain_core.cross_encoders import BaseCrossEncoder

from sie_langchain.backend import SIEScoring

if TYPE_CHECKING:
    from collections.abc import Sequence

UNSCORED = float("-inf")
"""The score of a pair that was not measured: it sorts behind everything that was."""


class SIECrossEncoder(SIEScoring, BaseCrossEncoder):
    """Score pairs of texts, for LangChain's `CrossEncoderReranker` and the like.

    Bare numbers cannot say who gave them. With `fallback="retrieval_order"` every score of a
    degraded answer is `-inf`, which leaves a stable sort in retrieval order; a fallback with
    another model gives that model's scores, unmarked.
    """

    def score(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score each `(query, text)` pair; one call is made for each different query.

        Args:
            text_pairs: Pairs in any order; queries may be mixed.

        Returns:
            One score per pair, in the order given; `-inf` where the text is blank, and where
            only retrieval order is left.

        Raises:
            SIEError: A query is blank, or the model could not be had, loaded or run.
        """
        positions: dict[str, list[int]] = defaultdict(list)
        for position, (query, _) in enumerate(text_pairs):
            positions[query].append(position)
        scores = [UNSCORED] * len(text_pairs)
        for query, group in positions.items():
            ranking = self._reranker.rerank(
                query,
                [text_pairs[position][1] for position in group],
                instruction=self.instruction,
                score_space=self.score_space,
                long_documents=self.long_documents,
            )
            for entry in ranking:
                if entry.score is not None:
                    scores[group[entry.index]] = entry.score
        return scores
