"""nDCG@10 and MRR against values computed by hand from their definitions."""

from __future__ import annotations

import math

import pytest

from sie_core.errors import InvalidRequestError
from sie_core.evaluation.metrics import evaluate


def test_a_perfect_ranking_scores_one() -> None:
    """Both measures end at 1."""
    mean = evaluate({"q": [2, 0, 1]}, {"q": {0, 2}}).mean
    assert mean.ndcg_at_10 == pytest.approx(1.0)
    assert mean.mrr == pytest.approx(1.0)


def test_values_are_those_of_the_definitions() -> None:
    """Relevant at ranks 2 and 4: DCG = 1/log2(3) + 1/log2(5), ideal DCG = 1 + 1/log2(3)."""
    quality = evaluate({"q": [5, 0, 6, 1]}, {"q": {0, 1}}).per_query["q"]
    expected = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert quality.ndcg_at_10 == pytest.approx(expected)
    assert quality.mrr == pytest.approx(1 / 2)


def test_ndcg_ends_at_ten_and_mrr_does_not() -> None:
    """The only relevant document stands at rank 11."""
    quality = evaluate({"q": list(range(12))}, {"q": {10}}).mean
    assert quality.ndcg_at_10 == 0.0
    assert quality.mrr == pytest.approx(1 / 11)


def test_the_mean_is_over_queries_each_counted_once() -> None:
    """Also over one that found nothing."""
    rankings = {"found": [1], "lost": [0], "empty": []}
    evaluation = evaluate(rankings, {query_id: {1} for query_id in rankings})
    assert evaluation.mean.mrr == pytest.approx(1 / 3)
    assert evaluation.mean.ndcg_at_10 == pytest.approx(1 / 3)
    assert {query_id: quality.mrr for query_id, quality in evaluation.per_query.items()} == {
        "found": 1.0,
        "lost": 0.0,
        "empty": 0.0,
    }


@pytest.mark.parametrize(
    ("rankings", "relevant", "message"),
    [
        ({}, {}, "rankings is empty"),
        ({"a": [1]}, {"a": {1}, "b": {1}}, "same queries, but not so for .'b'."),
        ({"a": [1]}, {"b": {1}}, "same queries, but not so for .'a', 'b'."),
        ({"a": [1]}, {"a": set()}, "'a' has no relevant document"),
        ({"a": [1, 1]}, {"a": {1}}, "'a' names a document twice"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    rankings: dict[str, list[int]], relevant: dict[str, set[int]], message: str
) -> None:
    """A mean over the wrong queries would look like any other number."""
    with pytest.raises(InvalidRequestError, match=message):
        evaluate(rankings, relevant)
