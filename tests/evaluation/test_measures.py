"""Measures of runs against their definitions, written out plainly, and against pytrec_eval."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import pytest
import pytrec_eval

from sie_core.evaluation.metrics import measure
from sie_core.evaluation.trec import falling

NUM_QUERIES = 40
NUM_DOCUMENTS = 60


def ndcg_at_10(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """Sum grade / log2(rank + 1) over the first ten, by the same of the best order there is."""

    def dcg(gains: Sequence[int]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:10], start=1))

    ideal = dcg(sorted(grades.values(), reverse=True))
    return dcg([grades.get(one, 0) for one in ranking]) / ideal


def rr_at_10(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """One by the rank of the first relevant document, among the first ten."""
    places = [rank for rank, one in enumerate(ranking[:10], start=1) if grades.get(one, 0) > 0]
    return 1 / places[0] if places else 0.0


def precision_at_5(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """How many of five are relevant; those that are not there are not."""
    return sum(grades.get(one, 0) > 0 for one in ranking[:5]) / 5


def average_precision(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """Mean precision at the rank of every relevant document; 0 for those not found."""
    found = 0
    total = 0.0
    for rank, one in enumerate(ranking, start=1):
        if grades.get(one, 0) > 0:
            found += 1
            total += found / rank
    return total / sum(grade > 0 for grade in grades.values())


def recall_at_20(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """How many of the relevant are among the first twenty."""
    relevant = {one for one, grade in grades.items() if grade > 0}
    return len(relevant & set(ranking[:20])) / len(relevant)


PLAIN: dict[str, Callable[[Sequence[str], Mapping[str, int]], float]] = {
    "nDCG@10": ndcg_at_10,
    "RR@10": rr_at_10,
    "P@5": precision_at_5,
    "AP": average_precision,
    "R@20": recall_at_20,
}


@pytest.fixture
def judged() -> tuple[dict[str, list[str]], dict[str, dict[str, int]]]:
    """Random rankings of different lengths, some empty, and graded judgements."""
    drawn = random.Random(5)
    documents = [f"d{i}" for i in range(NUM_DOCUMENTS)]
    run, qrels = {}, {}
    for number in range(NUM_QUERIES):
        run[f"q{number}"] = drawn.sample(documents, drawn.choice((0, 3, 30, NUM_DOCUMENTS)))
        judged = drawn.sample(documents, 8)
        qrels[f"q{number}"] = {one: drawn.randint(0, 2) for one in judged} | {judged[0]: 1}
    return run, qrels


def test_every_value_is_that_of_the_definition(
    judged: tuple[dict[str, list[str]], dict[str, dict[str, int]]],
) -> None:
    """Query by query."""
    run, qrels = judged
    values = measure(run, qrels, list(PLAIN))
    for name, formula in PLAIN.items():
        assert list(values[name]) == list(qrels)
        for query_id, grades in qrels.items():
            assert values[name][query_id] == pytest.approx(formula(run[query_id], grades), abs=1e-6)


def test_every_value_is_pytrec_evals(
    judged: tuple[dict[str, list[str]], dict[str, dict[str, int]]],
) -> None:
    """Asked directly, with the scores that a run file holds."""
    run, qrels = judged
    scored = {
        query_id: dict(zip(documents, falling([1.0] * len(documents)), strict=True))
        for query_id, documents in run.items()
        if documents
    }
    names = {"nDCG@10": "ndcg_cut_10", "P@5": "P_5", "AP": "map", "R@20": "recall_20"}
    theirs = pytrec_eval.RelevanceEvaluator(
        qrels, {"ndcg_cut.10", "P.5", "map", "recall.20"}
    ).evaluate(scored)
    values = measure(run, qrels, list(names))
    for name, their_name in names.items():
        for query_id in scored:
            assert values[name][query_id] == pytest.approx(theirs[query_id][their_name], abs=1e-6)


def test_a_query_without_a_ranking_counts_as_zero() -> None:
    """Not as absent: a mean over the others would flatter."""
    qrels = {"found": {"a": 1}, "lost": {"a": 1}}
    assert measure({"found": ["a"]}, qrels, ["AP"]) == {"AP": {"found": 1.0, "lost": 0.0}}
    assert measure({}, qrels, ["AP", "RR@10"])["RR@10"] == {"found": 0.0, "lost": 0.0}
