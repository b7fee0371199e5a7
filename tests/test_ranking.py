"""The order of candidates, as properties of every list of scores."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sie_core.errors import InvalidRequestError, InvalidResponseError
from sie_core.ranking import match_scores, rank

# Few distinct values, so that ties are common.
finite = st.one_of(st.sampled_from([-1.0, 0.0, -0.0, 0.5]), st.floats(-1e6, 1e6))
scores_or_none = st.lists(st.one_of(st.none(), finite), max_size=60)


@given(scores_or_none)
def test_without_limits_the_order_is_a_permutation(scores: list[float | None]) -> None:
    """Every candidate stands in the order exactly once, with its own score and rank."""
    entries = rank(scores)
    assert sorted(entry.index for entry in entries) == list(range(len(scores)))
    assert [entry.rank for entry in entries] == list(range(len(scores)))
    assert all(entry.score == scores[entry.index] for entry in entries)


@given(scores_or_none)
def test_order_is_stable(scores: list[float | None]) -> None:
    """Scores never rise down the order, equal ones keep retrieval order, unscored ones are last."""
    entries = rank(scores)
    for above, below in pairwise(entries):
        if above.score is None:
            assert below.score is None
        if above.score == below.score:
            assert above.index < below.index
        elif above.score is not None and below.score is not None:
            assert above.score > below.score


@given(scores_or_none, st.integers(1, 70))
def test_top_k_is_a_prefix(scores: list[float | None], top_k: int) -> None:
    """`top_k` cuts the full order and changes nothing above the cut."""
    assert rank(scores, top_k=top_k) == rank(scores)[:top_k]


@given(scores_or_none, finite)
def test_threshold_cuts_only_scores_below_it(scores: list[float | None], threshold: float) -> None:
    """What is scored below the threshold goes; what is on or above it, or unscored, stays."""
    kept = [entry.index for entry in rank(scores, score_threshold=threshold)]
    expected = [
        entry.index for entry in rank(scores) if entry.score is None or entry.score >= threshold
    ]
    assert kept == expected


@given(scores_or_none, st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_a_score_that_is_not_finite_is_an_error(
    scores: list[float | None], bad: float, data: st.DataObject
) -> None:
    """NaN and infinities are never ordered, wherever they stand."""
    position = data.draw(st.integers(0, len(scores)))
    with pytest.raises(InvalidResponseError, match=f"candidate {position} "):
        rank([*scores[:position], bad, *scores[position:]])


@pytest.mark.parametrize("top_k", [0, -1, True, 2.5, "3"])
def test_bad_top_k_is_named(top_k: object) -> None:
    """A `top_k` that is not an integer of at least 1 is a ValueError naming the value."""
    with pytest.raises(ValueError, match=f"top_k must be .* got {top_k!r}"):
        rank([1.0], top_k=top_k)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [math.nan, math.inf, "0.5", True])
def test_bad_threshold_is_named(threshold: object) -> None:
    """A threshold that is not a finite number is a ValueError naming the value."""
    with pytest.raises(InvalidRequestError, match=f"score_threshold .* got {threshold!r}"):
        rank([1.0], score_threshold=threshold)  # type: ignore[arg-type]


@given(st.lists(finite, max_size=30), st.randoms())
def test_scores_are_matched_by_id_not_by_position(scores: list[float], random: object) -> None:
    """Whatever the order of a reply, each id gets its own score."""
    ids = [f"id-{i}" for i in range(len(scores))]
    reply = [{"item_id": i, "score": s} for i, s in zip(ids, scores, strict=True)]
    random.shuffle(reply)  # type: ignore[attr-defined]
    assert match_scores(reply, ids) == scores


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ([], "no score for 2 of 2 items: 'a', 'b'"),
        ([("a", 1.0)], "no score for 1 of 2 items: 'b'"),
        ([("a", 1.0), ("a", 2.0), ("b", 1.0)], "item 'a' twice"),
        ([("a", 1.0), ("b", 1.0), ("c", 1.0)], "not sent: 'c'"),
        ([("a", 1.0), (0, 1.0)], "not sent: 0"),
        ([("a", math.nan), ("b", 1.0)], "item 'a' is not a finite number: nan"),
        ([("a", None), ("b", 1.0)], "item 'a' is not a finite number: None"),
        ([("a", "1"), ("b", 1.0)], "item 'a' is not a finite number: '1'"),
        ([("a", True), ("b", 1.0)], "item 'a' is not a finite number: True"),
    ],
)
def test_a_reply_that_does_not_account_for_every_item_is_an_error(
    entries: list[tuple[object, object]], complaint: str
) -> None:
    """Missing, doubled, unknown and non-finite scores are named; none becomes 0.0."""
    reply = [{"item_id": item_id, "score": score} for item_id, score in entries]
    with pytest.raises(InvalidResponseError, match=complaint):
        match_scores(reply, ["a", "b"])
