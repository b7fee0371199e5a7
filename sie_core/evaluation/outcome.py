"""What a measurement found, as plain data: the one source of the table, the JSON and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from sie_core.evaluation.collection import Collection
from sie_core.evaluation.first_stage import Candidates
from sie_core.evaluation.metrics import MEASURES, measure
from sie_core.evaluation.scoring import Scored
from sie_core.evaluation.significance import CONFIDENCE, NUM_RESAMPLES, paired_difference
from sie_core.evaluation.texts import TextStore

MAIN_MEASURE = "nDCG@10"
"""By this queries are said to have lost or won, and models are compared in a plot."""

NUM_EXTREMES = 5
"""How many of the queries that lost most, and of those that won most, are shown."""

_MAX_TEXT_CHARS = 300
"""How much of a passage is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model's scores and times over a collection.

    Attributes:
        label: What the model is called here.
        scored: Every query's scores.
        seconds_by_depth: Times of real calls with that many candidates.
        settings: What was set, for the record.
        execution: How the model ran in this process, and why so; None where a server ran it.
    """

    label: str
    scored: Mapping[str, Scored]
    seconds_by_depth: Mapping[int, Sequence[float]]
    settings: Mapping[str, Any]
    execution: str | None


def describe_data(collection: Collection, store: TextStore) -> dict[str, Any]:
    """Say what was measured on."""
    return {
        "name": collection.name,
        "num_documents": len(store),
        "num_queries": len(collection.queries),
        "num_queries_left_out": collection.num_left_out,
        "num_relevant": sum(
            sum(grade > 0 for grade in grades.values()) for grades in collection.qrels.values()
        ),
    }


def describe_first_stage(
    collection: Collection, candidates: Candidates, name: str, depths: Sequence[int]
) -> dict[str, Any]:
    """Measure the candidates as they came: their order, and the recall no reranker can exceed."""
    recalls = [f"R@{depth}" for depth in depths]
    values = measure(ids_of(candidates), collection.qrels, [*MEASURES, *recalls])
    counts = [len(documents) for documents in candidates.values()]
    return {
        "name": name,
        "num_candidates": max(depths),
        "mean_candidates": fmean(counts),
        "num_queries_without_candidates": counts.count(0),
        "metrics": {name: fmean(values[name].values()) for name in MEASURES},
        "recall": {str(depth): fmean(values[f"R@{depth}"].values()) for depth in depths},
    }


def describe_model(
    measured: Measured,
    collection: Collection,
    candidates: Candidates,
    store: TextStore,
    *,
    depths: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Measure one model: what reranking changed, for whom, and what it took."""
    before = measure(ids_of(candidates), collection.qrels)
    after = measure(reranked_ids(measured.scored), collection.qrels)

    def show(query_id: str) -> dict[str, Any]:
        grades = collection.qrels[query_id]
        first_after = measured.scored[query_id].reranked()[0]
        return {
            "query_id": query_id,
            "query": collection.queries[query_id],
            "before": before[MAIN_MEASURE][query_id],
            "after": after[MAIN_MEASURE][query_id],
            "first_before": _document(candidates[query_id][0], grades, store),
            "first_after": _document(first_after, grades, store),
        }

    return {
        "label": measured.label,
        "settings": dict(measured.settings),
        "execution": measured.execution,
        "served_by": sorted({scored.served_by for scored in measured.scored.values()}),
        "metrics": [
            {
                "name": name,
                "before": fmean(before[name].values()),
                "after": fmean(after[name].values()),
                **_difference(before[name], after[name], seed),
            }
            for name in MEASURES
        ],
        "latency": _latency(list(measured.scored.values())),
        "depths": [_at_depth(measured, collection, depth) for depth in depths],
        **_extremes(_gains(before[MAIN_MEASURE], after[MAIN_MEASURE]), show),
    }


def compare_models(
    measured: Sequence[Measured], collection: Collection, *, seed: int
) -> list[dict[str, Any]]:
    """Compare the models' rankings, each with each: `second - first`."""
    values = {one.label: measure(reranked_ids(one.scored), collection.qrels) for one in measured}
    return [
        {
            "first": first,
            "second": second,
            "name": name,
            **_difference(values[first][name], values[second][name], seed),
        }
        for first, second in combinations(values, 2)
        for name in MEASURES
    ]


def describe_statistics(seed: int) -> dict[str, Any]:
    """Say how intervals and p-values were made."""
    return {
        "interval": f"{CONFIDENCE:.0%} paired bootstrap over queries, percentiles",
        "test": "paired randomisation test on the mean, two-sided",
        "num_resamples": NUM_RESAMPLES,
        "seed": seed,
    }


def ids_of(candidates: Candidates) -> dict[str, list[str]]:
    """Return the candidates' ids, without scores."""
    return {
        query_id: [document_id for document_id, _ in documents]
        for query_id, documents in candidates.items()
    }


def reranked_ids(scored: Mapping[str, Scored], depth: int | None = None) -> dict[str, list[str]]:
    """Return the ids in the order after reranking, of the first `depth` candidates or all."""
    return {
        query_id: [document_id for document_id, _ in one.reranked(depth)]
        for query_id, one in scored.items()
    }


def _difference(
    before: Mapping[str, float], after: Mapping[str, float], seed: int
) -> dict[str, float | str]:
    found = paired_difference(list(before.values()), list(after.values()), seed=seed)
    return {
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "verdict": found.verdict,
    }


def _latency(scored: Sequence[Scored]) -> dict[str, float | int | None]:
    asked = [one for one in scored if one.documents]
    num_pairs = sum(len(one.documents) for one in asked)
    seconds = [one.seconds for one in asked]
    total = sum(seconds)
    return {
        "p50_ms": _percentile_ms(seconds, 50),
        "p95_ms": _percentile_ms(seconds, 95),
        "pairs_per_second": num_pairs / total if total else None,
        "num_pairs": num_pairs,
        "num_scored": sum(one.num_scored for one in asked),
        "num_truncated": sum(one.num_truncated for one in asked),
    }


def _at_depth(measured: Measured, collection: Collection, depth: int) -> dict[str, Any]:
    values = measure(reranked_ids(measured.scored, depth), collection.qrels)
    seconds = measured.seconds_by_depth.get(depth, [])
    return {
        "depth": depth,
        "metrics": {name: fmean(values[name].values()) for name in MEASURES},
        "p50_ms": _percentile_ms(seconds, 50),
        "p95_ms": _percentile_ms(seconds, 95),
        "num_calls": len(seconds),
    }


def _percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    return 1000 * float(np.percentile(seconds, percent)) if seconds else None


def _gains(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return what each query gained, the worst first; equal ones in the collection's order."""
    gains = {query_id: after[query_id] - before[query_id] for query_id in before}
    return dict(sorted(gains.items(), key=lambda gain: gain[1]))


def _extremes(gains: Mapping[str, float], show: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Say how many queries lost and won, and show those that did most."""
    lost = [query_id for query_id, gain in gains.items() if gain < 0]
    won = [query_id for query_id in reversed(list(gains)) if gains[query_id] > 0]
    return {
        "num_lost": len(lost),
        "num_unchanged": len(gains) - len(lost) - len(won),
        "num_won": len(won),
        "gains": gains,
        "lost_most": [show(query_id) for query_id in lost[:NUM_EXTREMES]],
        "won_most": [show(query_id) for query_id in won[:NUM_EXTREMES]],
    }


def _document(
    document: tuple[str, float | None], grades: Mapping[str, int], store: TextStore
) -> dict[str, Any]:
    document_id, score = document
    (text,) = store.passages([document_id])
    cut = text[:_MAX_TEXT_CHARS] + "…" if len(text) > _MAX_TEXT_CHARS else text
    return {
        "id": document_id,
        "score": score,
        "is_relevant": grades.get(document_id, 0) > 0,
        "text": cut,
    }
