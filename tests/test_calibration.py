"""A fitted map from scores to probabilities survives its file, and refuses to lie."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sie_core.calibration import Calibration, LogisticCurve, RisingSteps, calibration_path, sigmoid
from sie_core.errors import InvalidRequestError

STEPS = RisingSteps(scores=(-2.0, 0.0, 4.0), probabilities=(0.1, 0.1, 0.9))


def calibration(**changes: Any) -> Calibration:
    """Make one."""
    fields: dict[str, Any] = {"model": "owner/model", "score_space": "raw", "probability": STEPS}
    return Calibration(**fields | changes)


@pytest.mark.parametrize(
    ("score", "probability"),
    [(-99, 0.1), (-2, 0.1), (-1, 0.1), (0, 0.1), (1, 0.3), (3, 0.7), (4, 0.9), (99, 0.9)],
)
def test_between_two_scores_is_a_line(score: float, probability: float) -> None:
    """Outside the ends it is the nearest value."""
    assert STEPS(score) == pytest.approx(probability)


def test_a_curve_is_a_sigmoid_of_a_line() -> None:
    """It rises from 0 to 1 and overflows nowhere."""
    curve = LogisticCurve(slope=0.5, intercept=-1.0)
    assert curve(2.0) == 0.5
    assert curve(6.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert (curve(-1e9), curve(1e9)) == (0.0, 1.0)
    assert sigmoid(-3.0) == pytest.approx(1 - sigmoid(3.0))


@pytest.mark.parametrize("space", ["raw", "probability", None])
@pytest.mark.parametrize("fitted", [STEPS, LogisticCurve(slope=1.5, intercept=-0.25)])
def test_it_survives_its_file(
    tmp_path: Path, fitted: LogisticCurve | RisingSteps, space: str | None
) -> None:
    """What is found by the model's name is what was saved."""
    saved = calibration(
        score_space=space,
        probability=fitted,
        num_pairs=7,
        source="a file",
        created="2026-01-02",
        figures={"ece_after": 0.01},
    )
    path = saved.save(cache_dir=tmp_path)
    assert path == calibration_path("owner/model", cache_dir=tmp_path)
    assert Calibration.find("owner/model", cache_dir=tmp_path) == saved
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_folder_as_a_model_gets_a_name_of_one_part(tmp_path: Path) -> None:
    """A path's separators cannot leave the folder of calibrations."""
    path = calibration_path("/home/me/../models/my reranker", cache_dir=tmp_path)
    assert path.parent == tmp_path / "calibrations"


def test_a_model_without_one_is_told_how_to_get_one(tmp_path: Path) -> None:
    """The message has the command."""
    with pytest.raises(InvalidRequestError, match=r"sie calibrate PAIRS\.jsonl --model owner"):
        Calibration.find("owner/model", cache_dir=tmp_path)
    with pytest.raises(InvalidRequestError, match="there is no calibration"):
        Calibration.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "its method is 'magic'"),
        ({"score_space": "percent"}, "score_space must be"),
        ({"probability": {"scores": [1, 0], "probabilities": [0, 1]}}, "2 scores must rise"),
        ({"probability": {"slope": 1}}, "is no calibration"),
        ({"more": 1}, "more"),
    ],
)
def test_a_file_that_is_none_is_an_error(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The message names the file and what is wrong in it."""
    path = calibration().save(tmp_path / "c.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidRequestError, match=message):
        Calibration.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(InvalidRequestError, match=r"c\.json is no calibration"):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("scores", "probabilities"),
    [((), ()), ((1.0,), ()), ((1.0, 1.0), (0.1, 0.2)), ((1.0, 2.0), (0.2, 0.1)), ((1.0,), (1.1,)),
     ((math.nan,), (0.5,)), ((1.0,), (-0.1,))],
)  # fmt: skip
def test_steps_that_fall_are_refused(
    scores: tuple[float, ...], probabilities: tuple[float, ...]
) -> None:
    """They would change the order."""
    with pytest.raises(InvalidRequestError, match="must rise"):
        RisingSteps(scores=scores, probabilities=probabilities)


@pytest.mark.parametrize(("slope", "intercept"), [(-1.0, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_a_curve_that_falls_is_refused(slope: float, intercept: float) -> None:
    """So would a negative slope."""
    with pytest.raises(InvalidRequestError, match="a logistic curve needs"):
        LogisticCurve(slope=slope, intercept=intercept)
