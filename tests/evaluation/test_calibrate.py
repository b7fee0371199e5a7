"""Fitted probabilities come true on queries that the fit never saw."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from sie_core.calibration import LogisticCurve, RisingSteps, sigmoid
from sie_core.errors import InvalidRequestError
from sie_core.evaluation.calibrate import JudgedScore, calibrate, reliability


def judged(
    *, slope: float, intercept: float, num_queries: int = 400, seed: int = 1
) -> list[JudgedScore]:
    """Draw scores whose true probability is the sigmoid of a line."""
    dice = random.Random(seed)
    pairs = []
    for query in range(num_queries):
        for _ in range(10):
            score = dice.gauss(0, 4)
            is_relevant = dice.random() < sigmoid(slope * score + intercept)
            pairs.append(JudgedScore(query_id=f"q{query}", score=score, is_relevant=is_relevant))
    return pairs


def test_a_curve_finds_the_line_that_made_the_judgements() -> None:
    """Platt's fit recovers slope and intercept."""
    report = calibrate(judged(slope=0.4, intercept=-1.5), model="m", method="platt")
    curve = report.calibration.probability
    assert isinstance(curve, LogisticCurve)
    assert (curve.slope, curve.intercept) == pytest.approx((0.4, -1.5), abs=0.15)


@pytest.mark.parametrize("method", ["platt", "isotonic", None])
def test_the_error_shrinks_on_queries_not_seen(method: str | None) -> None:
    """The plain sigmoid promises far too much; the fitted map does not."""
    report = calibrate(judged(slope=0.3, intercept=-2.0), model="m", method=method)  # type: ignore[arg-type]
    assert report.before.ece > 0.2
    assert report.after.ece < 0.05
    assert report.after.brier < report.before.brier
    assert report.calibration.figures["ece_after"] == report.after.ece
    assert report.num_fitted + report.num_held_out == 4000
    assert report.calibration.num_pairs == report.num_fitted


def test_steps_follow_what_no_curve_can() -> None:
    """Where relevance jumps twice, the better of the two is the steps."""
    dice = random.Random(2)
    pairs = []
    for query in range(300):
        for _ in range(10):
            score = dice.uniform(-5, 5)
            truth = 0.05 if score < -3 else 0.5 if score < 4 else 0.95
            pairs.append(
                JudgedScore(query_id=f"{query}", score=score, is_relevant=dice.random() < truth)
            )
    report = calibrate(pairs, model="m")
    assert isinstance(report.calibration.probability, RisingSteps)
    assert report.calibration.probability(0.0) == pytest.approx(0.5, abs=0.06)


def test_the_order_is_kept() -> None:
    """A higher score never gets a lower probability."""
    fitted = calibrate(judged(slope=0.4, intercept=0.0), model="m", method="isotonic")
    scores = np.linspace(-20, 20, 999).tolist()
    probabilities = [fitted.calibration.probability(score) for score in scores]
    assert probabilities == sorted(probabilities)


def test_a_threshold_has_the_precision_wanted() -> None:
    """It is measured on held-out pairs, with its interval."""
    pairs = judged(slope=1.0, intercept=-1.0)
    threshold = calibrate(pairs, model="m", precision=0.9).threshold
    assert threshold is not None
    assert threshold.score is not None
    assert threshold.precision is not None
    assert threshold.precision_low is not None
    assert threshold.probability is not None
    above = [pair.is_relevant for pair in pairs if pair.score >= threshold.score]
    assert sum(above) / len(above) == pytest.approx(0.9, abs=0.03)
    assert threshold.precision_low < threshold.precision
    assert 0 < threshold.probability < 1
    assert threshold.recall is not None


def test_where_nothing_separates_it_says_so() -> None:
    """Scores that say nothing give no threshold, and a reason."""
    dice = random.Random(4)
    pairs = [
        JudgedScore(query_id=f"{i // 10}", score=dice.gauss(0, 1), is_relevant=dice.random() < 0.3)
        for i in range(2000)
    ]
    threshold = calibrate(pairs, model="m", precision=0.95).threshold
    assert threshold is not None
    assert threshold.probability is None
    assert threshold.reason is not None
    assert "0.95" in threshold.reason


def test_probabilities_are_taken_as_they_are() -> None:
    """Scores of a model that gives probabilities are not put through a sigmoid again."""
    pairs = [
        JudgedScore(query_id=f"{i // 5}", score=(i % 10) / 10, is_relevant=i % 10 >= 5)
        for i in range(500)
    ]
    report = calibrate(pairs, model="m", score_space="probability", method="platt")
    assert [one.mean_probability for one in report.before.bins] == pytest.approx(
        [i / 10 for i in range(10)]
    )


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    """Two bins of three and one pairs, by hand."""
    found = reliability(np.array([0.1, 0.1, 0.1, 0.9]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert found.ece == pytest.approx((3 * abs(0.1 - 1 / 3) + 1 * 0.1) / 4)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.81 + 0.01) / 4)
    assert [one.num_pairs for one in found.bins] == [3, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0}, "held_out must lie between 0 and 1, but is 0"),
        ({"precision": 1.5}, "precision must lie between 0 and 1, but is 1.5"),
    ],
)
def test_parts_out_of_range_are_errors(change: dict[str, float], message: str) -> None:
    """The message has the value."""
    with pytest.raises(InvalidRequestError, match=message):
        calibrate(judged(slope=1, intercept=0), model="m", **change)  # type: ignore[arg-type]


def test_one_sided_judgements_are_an_error() -> None:
    """Nothing can be fitted where everything is relevant, or there is one query."""
    all_relevant = [JudgedScore(query_id=f"{i}", score=i, is_relevant=True) for i in range(50)]
    with pytest.raises(InvalidRequestError, match="35 are relevant; a calibration needs"):
        calibrate(all_relevant, model="m")
    with pytest.raises(InvalidRequestError, match="give more judged pairs"):
        calibrate([JudgedScore(query_id="q", score=0.0, is_relevant=True)], model="m")
    with pytest.raises(InvalidRequestError, match="has the score nan"):
        calibrate([JudgedScore(query_id="q", score=math.nan, is_relevant=True)], model="m")
