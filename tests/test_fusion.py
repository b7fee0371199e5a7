"""Ranks and scores of several stages become one order."""

from __future__ import annotations

import random
import statistics

import pytest

from sie_core.errors import InvalidRequestError
from sie_core.fusion import fuse_scores, reciprocal_rank_fusion


def test_ranks_add_up_as_in_the_paper() -> None:
    """A document's score is the sum of 1 / (60 + rank) over the lists that have it."""
    fused = dict(reciprocal_rank_fusion([["a", "b", "c"], ["c", "d"]]))
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62})


def test_the_best_stands_first_and_ties_keep_the_first_lists_order() -> None:
    """Equal scores are ordered by the list that came first."""
    assert [one for one, _ in reciprocal_rank_fusion([["a", "b"], ["b", "a"]])] == ["a", "b"]
    assert [one for one, _ in reciprocal_rank_fusion([["x"], ["y"]])] == ["x", "y"]
    assert next(iter(reciprocal_rank_fusion([["a", "b", "c"], ["c", "d"]])))[0] == "c"


def test_a_weight_moves_a_list_and_zero_silences_it() -> None:
    """A list of weight 0 orders nothing, but its documents are still there, last."""
    fused = reciprocal_rank_fusion([["a", "b"], ["c", "b"]], weights=[0, 2])
    assert fused == [("c", 2 / 61), ("b", 2 / 62), ("a", 0.0)]


def test_no_list_and_empty_lists_give_nothing() -> None:
    """There is nothing to order."""
    assert reciprocal_rank_fusion([]) == []
    assert reciprocal_rank_fusion([[], []]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": -1}, "k must be a finite number of at least 0, but got -1"),
        ({"k": float("nan")}, "got nan"),
        ({"weights": [1]}, "2 lists, but 1 weights"),
        ({"weights": [1, -2]}, "not negative, but got -2"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    """The message has the value."""
    with pytest.raises(InvalidRequestError, match=message):
        reciprocal_rank_fusion([["a"], ["b"]], **arguments)  # type: ignore[arg-type]


def test_a_document_twice_in_one_list_is_an_error() -> None:
    """It would count twice."""
    with pytest.raises(InvalidRequestError, match="names 'b' twice"):
        reciprocal_rank_fusion([["a", "b", "b"]])


def test_scores_are_mixed_by_their_distance_from_the_mean() -> None:
    """Whatever the scales, the mix is that of the z-scores."""
    dice = random.Random(3)
    reranked = [dice.gauss(-4, 3) for _ in range(30)]
    retrieved = [dice.gauss(20, 8) for _ in range(30)]

    def z(scores: list[float]) -> list[float]:
        mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
        return [(score - mean) / deviation for score in scores]

    expected = [0.7 * a + 0.3 * b for a, b in zip(z(reranked), z(retrieved), strict=True)]
    assert fuse_scores(reranked, retrieved, retrieval_weight=0.3) == pytest.approx(expected)


def test_the_ends_of_the_weight_are_one_of_the_two() -> None:
    """0 keeps the reranker's order, 1 the first stage's."""
    reranked, retrieved = [1.0, 3.0, 2.0], [9.0, 8.0, 7.0]
    by_reranker = fuse_scores(reranked, retrieved, retrieval_weight=0)
    by_retrieval = fuse_scores(reranked, retrieved, retrieval_weight=1)
    assert sorted(range(3), key=lambda i: -by_reranker[i]) == [1, 2, 0]
    assert sorted(range(3), key=lambda i: -by_retrieval[i]) == [0, 1, 2]


@pytest.mark.parametrize("value", [0.1, 0.0, -7.3])
def test_equal_scores_say_nothing(value: float) -> None:
    """A list without differences leaves the order to the other."""
    fused = fuse_scores([2.0, 1.0, 3.0], [value] * 3, retrieval_weight=0.5)
    assert sorted(range(3), key=lambda i: -fused[i]) == [2, 0, 1]
    assert fuse_scores([5.0], [1.0], retrieval_weight=0.5) == [0.0]
    assert fuse_scores([], [], retrieval_weight=0.5) == []


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_a_weight_out_of_range_is_an_error(weight: object) -> None:
    """It names the value."""
    with pytest.raises(InvalidRequestError, match="from 0 to 1"):
        fuse_scores([1.0], [1.0], retrieval_weight=weight)  # type: ignore[arg-type]
