"""From a model's scores to probabilities that can be believed: a fitted map, in a small file.

A sigmoid of a logit lies between 0 and 1, but of the documents it gives 0.8 to, rarely 80 of 100
are relevant. A `Calibration` is fitted on judged pairs (`sie calibrate`,
`sie_core.evaluation.calibrate`), kept as JSON under the model's name, and applied by `Reranker`
where `score_space="calibrated"` is asked for. It never changes an order: the map does not fall.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sie_core.errors import InvalidRequestError
from sie_core.models.cache import cache_folder
from sie_core.ranking import check_score_space
from sie_core.types import ScoreSpace

Method = Literal["platt", "isotonic"]
"""`platt`: a logistic curve (Platt, 1999). `isotonic`: steps that do not fall, joined by lines
(Zadrozny and Elkan, 2002)."""

METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticCurve:
    """The probability is the sigmoid of `slope * score + intercept` (Platt, 1999).

    Raises:
        InvalidRequestError: A number is not finite, or the slope is negative.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (_are_finite((self.slope, self.intercept)) and self.slope >= 0):
            msg = (
                "a logistic curve needs finite numbers and a slope that is not negative, but has "
                f"slope={self.slope!r}, intercept={self.intercept!r}"
            )
            raise InvalidRequestError(msg)

    def __call__(self, score: float) -> float:
        """Return the probability of a score."""
        return sigmoid(self.slope * score + self.intercept)


@dataclass(frozen=True, slots=True, kw_only=True)
class RisingSteps:
    """Probabilities at given scores, lines between, the nearest outside (Zadrozny, Elkan, 2002).

    Raises:
        InvalidRequestError: The scores do not rise, or the probabilities fall or leave 0 to 1.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        scores, probabilities = self.scores, self.probabilities
        is_usable = (
            0 < len(scores) == len(probabilities)
            and _are_finite((*scores, *probabilities))
            and all(a < b for a, b in itertools.pairwise(scores))
            and all(a <= b for a, b in itertools.pairwise((0.0, *probabilities, 1.0)))
        )
        if not is_usable:
            msg = (
                f"{len(scores)} scores must rise, and as many probabilities (here "
                f"{len(probabilities)}) not fall, between 0 and 1"
            )
            raise InvalidRequestError(msg)

    def __call__(self, score: float) -> float:
        """Return the probability of a score."""
        xs, ys = self.scores, self.probabilities
        right = bisect.bisect_right(xs, score)
        if right in {0, len(xs)}:
            return ys[0] if right == 0 else ys[-1]
        x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
        return y0 + (y1 - y0) * (score - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A map from one model's scores to probabilities.

    Attributes:
        model: Whose scores.
        score_space: Which of its scores; None means those that a server gives unasked.
        probability: The map: call it with a score.
        num_pairs: Judged pairs that it was fitted on.
        source: Where those came from.
        created: The day, as YYYY-MM-DD.
        figures: What was measured on pairs that it was not fitted on.
    """

    model: str
    score_space: ScoreSpace | None
    probability: LogisticCurve | RisingSteps
    num_pairs: int = 0
    source: str = ""
    created: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        """Return the kind of map."""
        return "platt" if isinstance(self.probability, LogisticCurve) else "isotonic"

    def save(self, path: Path | None = None, *, cache_dir: Path | None = None) -> Path:
        """Write it as JSON, by default where `find` looks for it by the model's name."""
        target = calibration_path(self.model, cache_dir=cache_dir) if path is None else path
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.new")
        content = {"method": self.method, **asdict(self)}
        staged.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        staged.replace(target)  # in one step: a reader finds the old one or the new one
        return target

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            InvalidRequestError: There is no such file, or it is no calibration.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            numbers, method = content.pop("probability"), content.pop("method")
            content["probability"] = _read_map(method, numbers)
            check_score_space(content.get("score_space"))
            return cls(**content)
        except FileNotFoundError as exc:
            msg = f"there is no calibration {path}; fit one with `sie calibrate`"
            raise InvalidRequestError(msg) from exc
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
            msg = f"{path} is no calibration that `sie calibrate` wrote: {exc}"
            raise InvalidRequestError(msg) from exc

    @classmethod
    def find(cls, model: str, *, cache_dir: Path | None = None) -> Calibration:
        """Read the calibration that was stored for a model.

        Raises:
            InvalidRequestError: There is none; the message says how to make one.
        """
        path = calibration_path(model, cache_dir=cache_dir)
        if path.exists():
            return cls.load(path)
        msg = (
            f"score_space='calibrated' needs a calibration of {model}, and {path} does not exist; "
            f"fit one with `sie calibrate PAIRS.jsonl --model {model}`, or pass calibration=FILE"
        )
        raise InvalidRequestError(msg)


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^-x), for any x."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    power = math.exp(x)
    return power / (1 + power)


def calibration_path(model: str, *, cache_dir: Path | None = None) -> Path:
    """Return where a model's calibration is kept: in the cache, under the model's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", model.strip("/")) or "model"
    return cache_folder(cache_dir) / "calibrations" / f"{name}.json"


def _read_map(method: object, numbers: dict[str, Any]) -> LogisticCurve | RisingSteps:
    if method == "platt":
        return LogisticCurve(**numbers)
    if method == "isotonic":
        return RisingSteps(**{name: tuple(values) for name, values in numbers.items()})
    msg = f"its method is {method!r}, not one of {', '.join(METHODS)}"
    raise ValueError(msg)


def _are_finite(numbers: Sequence[object]) -> bool:
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
