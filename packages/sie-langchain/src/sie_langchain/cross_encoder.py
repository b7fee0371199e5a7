"""`SIECrossEncoder`: scores of text pairs, for LangChain code that does its own ordering."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from langchain_core.cross_encoders import BaseCrossEncoder

from sie_core.errors import DeadlineExceededError
from sie_langchain.backend import SIEScoring

if TYPE_CHECKING:
    from collections.abc import Sequence

UNSCORED = float("-inf")
"""The score of a pair that was not measured: it sorts behind everything that was."""


class SIECrossEncoder(SIEScoring, BaseCrossEncoder):
    """Score pairs of texts, for LangChain's `CrossEncoderReranker` and the like.

    Bare numbers cannot say who gave them. With `fallback="retrieval_order"` every score of a
    degraded answer is `-inf`, which leaves a stable sort in retrieval order; a fallback with
    another model gives that model's scores, unmarked. What `cascade` and `stop_when_stable` leave
    out is `-inf` as well. Where `max_latency_ms` leaves pairs without a score it is an error,
    unless `stop_when_stable` allows for such.
    """

    def score(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score each `(query, text)` pair; one call is made for each different query, all at once.

        Args:
            text_pairs: Pairs in any order; queries may be mixed.

        Returns:
            One score per pair, in the order given; `-inf` where the text is blank, and as the
            class says.

        Raises:
            DeadlineExceededError: `max_latency_ms`, which is of all pairs together, has passed.
            SIEError: A query is blank, or the model could not be had, loaded or run.
        """
        positions: dict[str, list[int]] = defaultdict(list)
        for position, (query, _) in enumerate(text_pairs):
            positions[query].append(position)
        rankings = self._reranker.rank_many(
            [
                (query, [text_pairs[position][1] for position in group])
                for query, group in positions.items()
            ],
            instruction=self.instruction,
            score_space=self.score_space,
            long_documents=self.long_documents,
            max_latency_ms=self.max_latency_ms,
        )
        is_partial = any(ranking.status == "partial" for ranking in rankings)
        if is_partial and self.stop_when_stable is None:  # that leaves pairs unscored on purpose
            msg = (
                f"within max_latency_ms={self.max_latency_ms} only "
                f"{sum(ranking.num_scored for ranking in rankings)} of {len(text_pairs)} pairs "
                "were scored, and bare scores cannot say so: allow more time, or use SIEReranker, "
                "which returns what is scored"
            )
            raise DeadlineExceededError(msg)
        scores = [UNSCORED] * len(text_pairs)
        for group, ranking in zip(positions.values(), rankings, strict=True):
            for entry in ranking:
                if entry.score is not None:
                    scores[group[entry.index]] = entry.score
        return scores
