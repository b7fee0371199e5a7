"""`ListRanker`: rows of a query and its candidates in, what is added to each of them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sie_core.distributed.columns import Columns
from sie_core.distributed.ranked_row import RankedRow
from sie_core.errors import InvalidRequestError
from sie_core.ranking import Ranking
from sie_core.reranker import Reranker

_PAIRS_PER_CALL = 1024
"""Many short lists fill batches together; one long list is a call of its own."""

_CALLS_AT_ONCE = 2
"""While one call's pairs run through the model, the next one's are made ready."""


class ListRanker:
    """Rank the candidates of many rows, whatever the rows come from.

    A row that cannot be ranked because of what is in it is answered with `failed` and the reason; a
    failure of the model or of a server is raised, as it would be the same for every row.

    Args:
        reranker: Scores, and cuts.
        columns: Where candidates have their text and their id.
    """

    def __init__(self, reranker: Reranker, columns: Columns) -> None:
        self._reranker = reranker
        self._columns = columns

    def rank(self, queries: Sequence[Any], candidates: Sequence[Any]) -> list[RankedRow]:
        """Rank each row's candidates, and return what is added to the rows in their order.

        Raises:
            SIEError: The model could not be had, loaded or run, or time ran out.
        """
        rows: list[RankedRow | None] = [None] * len(queries)
        pairs: dict[int, tuple[str, list[str | None]]] = {}
        for position, (query, documents) in enumerate(zip(queries, candidates, strict=True)):
            try:
                pairs[position] = self._pair(query, documents)
            except InvalidRequestError as exc:
                rows[position] = _failed(exc)
        calls = list(_calls(pairs))
        with ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="sie-lists") as threads:
            answers = threads.map(
                lambda call: self._ask([pairs[position] for position in call]), calls
            )
            for call, rankings in zip(calls, answers, strict=True):
                for position, ranking in zip(call, rankings, strict=True):
                    rows[position] = self._row(ranking, candidates[position])
        return [row for row in rows if row is not None]

    def _ask(
        self, pairs: Sequence[tuple[str, Sequence[str | None]]]
    ) -> list[Ranking | InvalidRequestError]:
        """Rank some rows; what would fail for others too is raised, and ends the calls behind."""
        answers: list[Ranking | InvalidRequestError] = []
        for answer in self._reranker.rank_many(pairs, return_exceptions=True):
            if not isinstance(answer, Ranking | InvalidRequestError):
                raise answer
            answers.append(answer)
        return answers

    def _pair(self, query: Any, documents: Any) -> tuple[str, list[str | None]]:
        if not isinstance(query, str):
            msg = f"the query must be a text, but is {type(query).__name__}: {query!r:.80}"
            raise InvalidRequestError(msg)
        if isinstance(documents, str) or not isinstance(documents, Sequence):
            msg = (
                "the documents must be a list, but are "
                f"{type(documents).__name__}: {documents!r:.80}"
            )
            raise InvalidRequestError(msg)
        return query, [self._columns.text_of(candidate) for candidate in documents]

    def _row(self, ranking: Ranking | InvalidRequestError, candidates: Sequence[Any]) -> RankedRow:
        if isinstance(ranking, InvalidRequestError):
            return _failed(ranking)
        entries = []
        for entry in ranking:
            shown: dict[str, Any] = {"index": entry.index, "score": entry.score}
            if self._columns.id is not None:
                shown["id"] = self._columns.id_of(candidates[entry.index])
            entries.append(shown)
        return RankedRow(
            ranking=entries,
            status=ranking.status,
            reason=ranking.reason,
            num_scored=ranking.num_scored,
            num_truncated=ranking.usage.get("truncated_items", 0),
        )


def _calls(pairs: dict[int, tuple[str, list[str | None]]]) -> Iterator[list[int]]:
    """Group rows, so that each call has enough pairs to fill batches, and not too many to hold."""
    call: list[int] = []
    num_pairs = 0
    for position, (_, documents) in pairs.items():
        if call and num_pairs + len(documents) > _PAIRS_PER_CALL:
            yield call
            call, num_pairs = [], 0
        call.append(position)
        num_pairs += len(documents)
    if call:
        yield call


def _failed(error: InvalidRequestError) -> RankedRow:
    return RankedRow(ranking=None, status="failed", reason=str(error))
