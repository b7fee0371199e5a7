"""Score every query's candidates once, and time calls at several depths; both can be continued."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_core.errors import InvalidResponseError
from sie_core.evaluation.first_stage import Candidates
from sie_core.evaluation.journal import Journal
from sie_core.evaluation.texts import TextStore
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.ranking import Ranking, rank
from sie_core.reranker import Reranker


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What one call to the reranker gave for one query.

    Attributes:
        documents: The candidates' ids in the first stage's order.
        scores: Their scores in that order; None for a document without text.
        seconds: How long the call took.
        num_truncated: Documents that were longer than the model reads.
        served_by: Who answered.
        order: Where not all were scored, the candidates' places in the order given, best first.
    """

    documents: tuple[str, ...]
    scores: tuple[float | None, ...]
    seconds: float
    num_truncated: int
    served_by: str
    order: tuple[int, ...] | None = None

    @property
    def num_scored(self) -> int:
        """Return how many the model scored."""
        return sum(score is not None for score in self.scores)

    def reranked(self, depth: int | None = None) -> list[tuple[str, float | None]]:
        """Order the first `depth` candidates by score; the others follow in their own order.

        The others have no score: they were not reranked. Where not all were scored, the order is
        that of the whole call; with fewer candidates, others would have been left out.
        """
        if self.order is not None:
            return [(self.documents[index], self.scores[index]) for index in self.order]
        depth = len(self.documents) if depth is None else depth
        order = [(self.documents[entry.index], entry.score) for entry in rank(self.scores[:depth])]
        return order + [(document_id, None) for document_id in self.documents[depth:]]


class Scoring:
    """One reranker's scores and times for one set of candidates.

    Every call's answer is on disk before the next call is made, so an interruption loses the call
    that was under way, and nothing else.

    Args:
        reranker: Scores; must keep all documents.
        queries: Texts by query id.
        candidates: What is scored with them.
        store: The candidates' texts.
        folder: Holds the journals.
    """

    def __init__(
        self,
        reranker: Reranker,
        queries: Mapping[str, str],
        candidates: Candidates,
        store: TextStore,
        folder: Path,
    ) -> None:
        self._reranker = reranker
        self._queries = queries
        self._documents = {
            query_id: tuple(document_id for document_id, _ in documents)
            for query_id, documents in candidates.items()
        }
        self._store = store
        self._score_journal = Journal(folder / "scores.jsonl")
        self._time_journal = Journal(folder / "times.jsonl")
        self.scored = self._read_scored()
        self.num_continued = len(self.scored)

    def score(self, watch: Watch = unwatched) -> None:
        """Score the queries that are not scored yet.

        Raises:
            SIEError: The reranker failed.
        """
        num_pairs = sum(map(len, self._documents.values()))
        with (
            watch("reranking, in pairs", num_pairs) as advance,
            self._score_journal.appending() as journal,
        ):
            advance(sum(len(scored.documents) for scored in self.scored.values()))
            for query_id, documents in self._documents.items():
                if query_id not in self.scored:
                    scored = self._score(query_id, documents)
                    journal.append(_to_record(query_id, scored))
                    self.scored[query_id] = scored
                    advance(len(documents))
        self.scored = {query_id: self.scored[query_id] for query_id in self._documents}

    def time_depths(
        self,
        depths: Sequence[int],
        *,
        num_queries: int,
        seed: int,
        watch: Watch = unwatched,
    ) -> dict[int, list[float]]:
        """Call the reranker at every depth, for a sample of the queries.

        The depths of a query are called in random order: what warms up, or is busy, touches all.

        Args:
            depths: Candidates per call.
            num_queries: How many queries at most; only those with enough candidates for the
                deepest call, where there are any.
            seed: Decides the sample and the order.
            watch: Shows the progress.

        Returns:
            For each depth the seconds of each call.
        """
        sample = self._sample(max(depths), num_queries, seed)
        known = {
            (record["query"], record["depth"]): float(record["seconds"])
            for record in self._time_journal.read()
        }
        order = random.Random(seed)
        seconds: dict[int, list[float]] = {depth: [] for depth in depths}
        with (
            watch("timing by depth, in calls", len(sample) * len(depths)) as advance,
            self._time_journal.appending() as journal,
        ):
            for query_id in sample:
                texts = self._store.passages(self._documents[query_id][: max(depths)])
                for depth in order.sample(list(depths), len(depths)):
                    if (query_id, depth) not in known:
                        _, took = self._call(query_id, texts[:depth])
                        journal.append({"query": query_id, "depth": depth, "seconds": took})
                        known[query_id, depth] = took
                    seconds[depth].append(known[query_id, depth])
                    advance(1)
        return seconds

    def _sample(self, depth: int, num_queries: int, seed: int) -> list[str]:
        enough = [query for query, documents in self._documents.items() if len(documents) >= depth]
        eligible = enough or [query for query, documents in self._documents.items() if documents]
        return random.Random(seed).sample(eligible, min(num_queries, len(eligible)))

    def _score(self, query_id: str, documents: tuple[str, ...]) -> Scored:
        ranking, seconds = self._call(query_id, self._store.passages(documents))
        scores: list[float | None] = [None] * len(documents)
        for entry in ranking:
            # A calibrated score can be the same for several; the model's own tells them apart.
            scores[entry.index] = entry.score if entry.model_score is None else entry.model_score
        return Scored(
            documents=documents,
            scores=tuple(scores),
            seconds=seconds,
            num_truncated=ranking.usage.get("truncated_items", 0),
            served_by=ranking.served_by,
            order=tuple(entry.index for entry in ranking) if _leaves_out(ranking) else None,
        )

    def _call(self, query_id: str, texts: Sequence[str]) -> tuple[Ranking, float]:
        began = time.perf_counter()
        ranking = self._reranker.rerank(self._queries[query_id], texts)
        seconds = time.perf_counter() - began
        if ranking.status == "degraded" or len(ranking) < len(texts):
            msg = (
                f"{ranking.model} did not score the candidates of query {query_id!r}: "
                f"{ranking.served_by} answered with {len(ranking)} of {len(texts)} "
                f"({ranking.status}); an evaluation needs the model itself, and all its scores"
            )
            raise InvalidResponseError(msg)
        return ranking, seconds

    def _read_scored(self) -> dict[str, Scored]:
        """Take what the journal holds of these very candidates."""
        scored = {}
        for record in self._score_journal.read():
            found = _from_record(record)
            if self._documents.get(record["query"]) == found.documents:
                scored[record["query"]] = found
        return scored


def _leaves_out(ranking: Ranking) -> bool:
    """Tell whether documents were left unscored, so that the scores do not give the order."""
    return ranking.status == "partial" or any(entry.stage_scores for entry in ranking)


def _to_record(query_id: str, scored: Scored) -> dict[str, Any]:
    return {
        "query": query_id,
        "documents": scored.documents,
        "scores": scored.scores,
        "seconds": scored.seconds,
        "truncated": scored.num_truncated,
        "served_by": scored.served_by,
        "order": scored.order,
    }


def _from_record(record: Mapping[str, Any]) -> Scored:
    return Scored(
        documents=tuple(record["documents"]),
        scores=tuple(record["scores"]),
        seconds=float(record["seconds"]),
        num_truncated=int(record["truncated"]),
        served_by=record["served_by"],
        order=None if record.get("order") is None else tuple(record["order"]),
    )
