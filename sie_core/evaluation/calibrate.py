"""Fit a `Calibration` on judged pairs, and say how far its probabilities can be believed.

Pairs are split by query, so that what is measured is measured on queries that the fit never saw.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from sie_core.calibration import Calibration, LogisticCurve, Method, RisingSteps
from sie_core.errors import InvalidRequestError, MissingDependencyError
from sie_core.types import ScoreSpace

try:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.optimize import isotonic_regression, minimize  # type: ignore[import-untyped]
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[evaluation]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

Floats = NDArray[np.float64]

NUM_BINS = 10
"""Bins of equal width over which the calibration error is taken."""

MIN_SUPPORT = 20
"""A threshold is recommended only where at least so many pairs of the fit lie above it."""

_CONFIDENCE_Z = 1.959964
"""The normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedScore:
    """A score that a model gave, and whether the document was relevant."""

    query_id: str
    score: float
    is_relevant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One bar of a reliability plot.

    Attributes:
        mean_probability: What was promised, on average.
        fraction_relevant: What came true.
        num_pairs: How many pairs have a probability in this bin.
    """

    mean_probability: float
    fraction_relevant: float
    num_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The lowest calibrated probability above which precision was as wanted.

    Attributes:
        wanted_precision: What was asked for.
        probability: The threshold; None where no threshold separates so well.
        score: The same as a score of the model.
        precision: Of the held-out pairs above it, how many are relevant.
        precision_low: The lower end of that fraction's 95% interval (Wilson, 1927).
        recall: Of the relevant held-out pairs, how many lie above it.
        reason: Why there is none.
    """

    wanted_precision: float
    probability: float | None = None
    score: float | None = None
    precision: float | None = None
    precision_low: float | None = None
    recall: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How far probabilities can be believed, on pairs that nothing was fitted on.

    Attributes:
        ece: Expected calibration error: the mean distance between what was promised and what
            came true, over bins of equal width, weighted by their pairs (Naeini et al., 2015).
        brier: Mean squared distance between probability and truth (Brier, 1950).
        bins: From low to high; empty ones left out.
    """

    ece: float
    brier: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """A fitted calibration, and what it is worth.

    Attributes:
        calibration: What `score_space="calibrated"` applies.
        before: Of the model's own probabilities: the plain sigmoid of its logits.
        after: Of the calibrated ones.
        threshold: For the precision asked for, if one was.
        num_fitted: Pairs that were fitted on.
        num_held_out: Pairs that were measured on.
    """

    calibration: Calibration
    before: Reliability
    after: Reliability
    threshold: Threshold | None
    num_fitted: int
    num_held_out: int


def calibrate(
    judged: Sequence[JudgedScore],
    *,
    model: str,
    score_space: ScoreSpace | None = "raw",
    method: Method | None = None,
    precision: float | None = None,
    held_out: float = 0.3,
    seed: int = 0,
    source: str = "",
) -> CalibrationReport:
    """Fit a map from scores to probabilities, and measure it on held-out queries.

    Args:
        judged: Scores with judgements, of several queries.
        model: Whose scores.
        score_space: Which of its scores.
        method: None takes the better of the two, by cross-validation over the fitted queries.
        precision: Recommend a threshold for this precision.
        held_out: Part of the queries that is measured on, between 0 and 1.
        seed: For the split.
        source: Where the judgements come from, to be kept with the calibration.

    Raises:
        InvalidRequestError: An argument is out of range, or there are too few queries, relevant
            or irrelevant pairs.
    """
    _check_part("held_out", held_out)
    if precision is not None:
        _check_part("precision", precision)
    fitted, measured = _split(judged, held_out, seed)
    scores, labels = _arrays(fitted)
    held_scores, held_labels = _arrays(measured)
    if method is None:
        method = _choose_method(fitted, seed)
    fit = _fit(scores, labels, method)
    before = reliability(_own_probabilities(held_scores, score_space), held_labels)
    after = reliability(_apply(fit, held_scores), held_labels)
    figures = {
        "ece_before": before.ece,
        "ece_after": after.ece,
        "brier_before": before.brier,
        "brier_after": after.brier,
        "held_out_pairs": float(len(measured)),
    }
    return CalibrationReport(
        calibration=Calibration(
            model=model,
            score_space=score_space,
            probability=fit,
            num_pairs=len(fitted),
            source=source,
            created=dt.datetime.now(dt.UTC).date().isoformat(),
            figures=figures,
        ),
        before=before,
        after=after,
        threshold=None
        if precision is None
        else _recommend(fit, (scores, labels), (held_scores, held_labels), precision),
        num_fitted=len(fitted),
        num_held_out=len(measured),
    )


def reliability(probabilities: Floats, labels: Floats) -> Reliability:
    """Compare probabilities with what came true."""
    bin_of = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = [
        Bin(
            mean_probability=float(probabilities[members].mean()),
            fraction_relevant=float(labels[members].mean()),
            num_pairs=int(members.sum()),
        )
        for index in range(NUM_BINS)
        if (members := bin_of == index).any()
    ]
    gaps = [abs(one.mean_probability - one.fraction_relevant) * one.num_pairs for one in bins]
    return Reliability(
        ece=sum(gaps) / len(labels),
        brier=float(((probabilities - labels) ** 2).mean()),
        bins=tuple(bins),
    )


def _check_part(name: str, value: float) -> None:
    if not 0 < value < 1:
        msg = f"{name} must lie between 0 and 1, but is {value!r}"
        raise InvalidRequestError(msg)


def _split(
    judged: Sequence[JudgedScore], held_out: float, seed: int
) -> tuple[list[JudgedScore], list[JudgedScore]]:
    """Split by query; both parts get relevant and irrelevant pairs, or it is an error."""
    if wrong := [one for one in judged if not math.isfinite(one.score)]:
        msg = f"query {wrong[0].query_id!r} has the score {wrong[0].score}, which is no number"
        raise InvalidRequestError(msg)
    queries = list(dict.fromkeys(one.query_id for one in judged))
    random.Random(seed).shuffle(queries)
    num_held_out = round(len(queries) * held_out)
    held = set(queries[:num_held_out])
    parts = (
        [one for one in judged if one.query_id not in held],
        [one for one in judged if one.query_id in held],
    )
    for part, name in zip(parts, ("to fit on", "held out"), strict=True):
        num_relevant = sum(one.is_relevant for one in part)
        if not num_relevant or num_relevant == len(part):
            msg = (
                f"of the {len(part)} pairs {name} {num_relevant} are relevant; a calibration needs "
                "relevant and irrelevant ones of several queries: give more judged pairs"
            )
            raise InvalidRequestError(msg)
    return parts


def _arrays(judged: Sequence[JudgedScore]) -> tuple[Floats, Floats]:
    scores = np.array([one.score for one in judged], dtype=np.float64)
    return scores, np.array([one.is_relevant for one in judged], dtype=np.float64)


def _own_probabilities(scores: Floats, score_space: ScoreSpace | None) -> Floats:
    """Return what a model promises by itself: the sigmoid of logits, or its scores as they are."""
    is_probability = score_space == "probability" or (
        score_space is None and scores.min() >= 0 and scores.max() <= 1
    )
    return scores if is_probability else _sigmoid(scores)


def _sigmoid(x: Floats) -> Floats:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))


def _fit(scores: Floats, labels: Floats, method: Method) -> LogisticCurve | RisingSteps:
    if method == "platt":
        slope, intercept = _fit_platt(scores, labels)
        return LogisticCurve(slope=slope, intercept=intercept)
    knots, probabilities = _fit_isotonic(scores, labels)
    return RisingSteps(scores=knots, probabilities=probabilities)


def _fit_platt(scores: Floats, labels: Floats) -> tuple[float, float]:
    """Fit a logistic curve by maximum likelihood, with Platt's targets a little inside 0 and 1."""
    num_relevant = labels.sum()
    num_other = len(labels) - num_relevant
    targets = np.where(labels > 0, (num_relevant + 1) / (num_relevant + 2), 1 / (num_other + 2))
    mean, spread = scores.mean(), scores.std() or 1.0
    standard = (scores - mean) / spread  # so that the optimiser steps alike along both

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logits = parameters[0] * standard + parameters[1]
        errors = _sigmoid(logits) - targets
        likelihood = np.logaddexp(0, logits) - targets * logits
        return likelihood.sum(), np.array([(errors * standard).sum(), errors.sum()])

    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    slope = float(found.x[0] / spread)
    return slope, float(found.x[1] - slope * mean)


def _fit_isotonic(scores: Floats, labels: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit steps that do not fall, and keep the two ends of each as knots."""
    distinct, place = np.unique(scores, return_inverse=True)
    weights = np.bincount(place).astype(np.float64)
    means = np.bincount(place, weights=labels) / weights
    steps = np.clip(isotonic_regression(means, weights=weights).x, 0.0, 1.0)
    is_end = np.ones(len(distinct), dtype=bool)
    is_end[1:-1] = (steps[1:-1] != steps[:-2]) | (steps[1:-1] != steps[2:])
    return tuple(distinct[is_end].tolist()), tuple(steps[is_end].tolist())


def _choose_method(judged: Sequence[JudgedScore], seed: int) -> Method:
    """Take the method with the smaller Brier score over five folds of queries.

    Isotonic steps need many pairs; where the folds are too small for it, it is the curve.
    """
    queries = list(dict.fromkeys(one.query_id for one in judged))
    random.Random(seed + 1).shuffle(queries)
    fold_of = {query: index % _NUM_FOLDS for index, query in enumerate(queries)}
    losses: dict[Method, float] = {"platt": 0.0, "isotonic": 0.0}
    for fold in range(_NUM_FOLDS):
        inside = _arrays([one for one in judged if fold_of[one.query_id] != fold])
        outside = _arrays([one for one in judged if fold_of[one.query_id] == fold])
        if not len(outside[1]) or not 0 < inside[1].mean() < 1:
            return "platt"
        for method in losses:
            fit = _fit(*inside, method)
            losses[method] += float(((_apply(fit, outside[0]) - outside[1]) ** 2).sum())
    return min(losses, key=losses.__getitem__)


_NUM_FOLDS = 5


def _apply(fit: LogisticCurve | RisingSteps, scores: Floats) -> Floats:
    return np.array([fit(score) for score in scores.tolist()])


def _recommend(
    fit: LogisticCurve | RisingSteps,
    fitted: tuple[Floats, Floats],
    held_out: tuple[Floats, Floats],
    wanted: float,
) -> Threshold:
    """Find the lowest threshold with the precision wanted, and measure it on held-out pairs."""
    scores, labels = fitted
    order = np.argsort(-scores, kind="stable")
    above, relevant = np.arange(1, len(order) + 1), np.cumsum(labels[order])
    is_last_of_equals = np.append(np.diff(scores[order]) != 0, [True])
    fits = (relevant / above >= wanted) & is_last_of_equals & (above >= MIN_SUPPORT)
    if not fits.any():
        best = (relevant / above)[is_last_of_equals & (above >= MIN_SUPPORT)]
        reached = (
            f"the best over at least {MIN_SUPPORT} pairs is {best.max():.2f}"
            if len(best)
            else (f"there are fewer than {MIN_SUPPORT} pairs to fit on")
        )
        return Threshold(
            wanted_precision=wanted,
            reason=f"no threshold separates with a precision of {wanted:.2f}: {reached}",
        )
    score = float(scores[order][np.flatnonzero(fits)[-1]])
    is_above = held_out[0] >= score
    num_above, num_right = int(is_above.sum()), int(held_out[1][is_above].sum())
    low = _wilson_low(num_right, num_above)
    high = 1 - _wilson_low(num_above - num_right, num_above)
    if high < wanted:
        return Threshold(
            wanted_precision=wanted,
            reason=f"the threshold that the fit gives for a precision of {wanted:.2f} reaches only "
            f"{num_right / num_above:.2f} on held-out queries",
        )
    return Threshold(
        wanted_precision=wanted,
        probability=fit(score),
        score=score,
        precision=num_right / num_above if num_above else None,
        precision_low=low,
        recall=num_right / float(held_out[1].sum()),
    )


def _wilson_low(num_right: int, num_all: int) -> float:
    """Return the lower end of a fraction's 95% interval (Wilson, 1927)."""
    if not num_all:
        return 0.0
    z2, fraction = _CONFIDENCE_Z**2, num_right / num_all
    centre = fraction + z2 / (2 * num_all)
    margin = math.sqrt(z2 * (fraction * (1 - fraction) / num_all + z2 / (4 * num_all**2)))
    return (centre - margin) / (1 + z2 / num_all)
