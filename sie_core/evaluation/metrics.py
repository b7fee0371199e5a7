"""Measures of rankings, computed by ir_measures (MacAvaney et al., 2022)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sie_core.errors import InvalidRequestError, MissingDependencyError
from sie_core.evaluation.collection import Qrels

try:
    import ir_measures
    from ir_measures import RR, Qrel, ScoredDoc, nDCG
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[evaluation]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

_NDCG_AT_10 = nDCG @ 10

MEASURES = ("nDCG@10", "RR@10", "P@5", "AP")
"""What is measured before and after reranking, by ir_measures' names; the means over queries of
`RR@10` and `AP` are known as MRR@10 and MAP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good rankings are, between 0 and 1, higher is better.

    Attributes:
        ndcg_at_10: Normalised discounted cumulative gain of the first ten.
        mrr: Reciprocal rank of the first relevant document; its mean over several queries.
    """

    ndcg_at_10: float
    mrr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The quality of a set of rankings: its mean, and every query's own by query id."""

    mean: Quality
    per_query: Mapping[str, Quality]


def measure(
    run: Mapping[str, Sequence[str]], qrels: Qrels, measures: Sequence[str] = MEASURES
) -> dict[str, dict[str, float]]:
    """Measure rankings of a collection's documents against its judgements.

    Args:
        run: For each query id document ids, best first, none twice.
        qrels: Judgements; queries that a run has no ranking of count as 0.
        measures: Names as ir_measures has them, such as `nDCG@10` and `R@100`.

    Returns:
        For each measure the value of each query of `qrels`, in its order.
    """
    parsed = {ir_measures.parse_measure(name): name for name in measures}
    judgements = [
        Qrel(query_id, document_id, grade)
        for query_id, grades in qrels.items()
        for document_id, grade in grades.items()
    ]
    ranked = [
        ScoredDoc(query_id, document_id, -float(place))
        for query_id, documents in run.items()
        for place, document_id in enumerate(documents)
    ]
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    if not ranked:  # some of its providers cannot measure an empty run
        return values
    for metric in ir_measures.iter_calc(list(parsed), judgements, ranked):
        values[parsed[metric.measure]][metric.query_id] = float(metric.value)
    return values


def evaluate(
    rankings: Mapping[str, Sequence[int]], relevant: Mapping[str, Collection[int]]
) -> Evaluation:
    """Measure rankings against judgements.

    Args:
        rankings: For each query id, document indices, best first.
        relevant: For each query id, the indices of the documents that are relevant.

    Raises:
        InvalidRequestError: There is no query, a query is in one of the two only or has no
            relevant document, or a ranking names a document twice.
    """
    _check(rankings, relevant)
    judgements = [
        Qrel(query_id, str(index), 1) for query_id, indices in relevant.items() for index in indices
    ]
    run = [
        ScoredDoc(query_id, str(index), -float(position))
        for query_id, order in rankings.items()
        for position, index in enumerate(order)
    ]
    measures = [_NDCG_AT_10, RR]
    values: dict[str, dict[Any, float]] = {query_id: {} for query_id in rankings}
    for metric in ir_measures.iter_calc(measures, judgements, run):
        values[metric.query_id][metric.measure] = metric.value
    return Evaluation(
        mean=_quality(ir_measures.calc_aggregate(measures, judgements, run)),
        per_query={query_id: _quality(value) for query_id, value in values.items()},
    )


def _quality(values: Mapping[Any, float]) -> Quality:
    return Quality(ndcg_at_10=values[_NDCG_AT_10], mrr=values[RR])


def _check(rankings: Mapping[str, Sequence[int]], relevant: Mapping[str, Collection[int]]) -> None:
    if not rankings:
        msg = "there is nothing to evaluate: rankings is empty"
        raise InvalidRequestError(msg)
    if unmatched := sorted(rankings.keys() ^ relevant.keys()):
        msg = f"rankings and relevant must have the same queries, but not so for {unmatched[:3]}"
        raise InvalidRequestError(msg)
    for query_id, order in rankings.items():
        if not relevant[query_id]:
            msg = f"query {query_id!r} has no relevant document, so no ranking of it is good or bad"
            raise InvalidRequestError(msg)
        if len(set(order)) != len(order):
            msg = f"the ranking of query {query_id!r} names a document twice"
            raise InvalidRequestError(msg)
