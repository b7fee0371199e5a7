"""How far scores agree with the reference: their largest difference, and the order they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Agreement:
    """Scores beside the reference's.

    Attributes:
        max_difference: Of raw logits.
        kendall_tau: Of the order, see `kendall_tau`.
    """

    max_difference: float
    kendall_tau: float

    @classmethod
    def of(cls, scores: Sequence[float], reference: Sequence[float]) -> Agreement:
        """Compare scores of the same documents."""
        differences = np.abs(np.asarray(scores) - np.asarray(reference))
        return cls(float(differences.max()), kendall_tau(scores, reference))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's tau-b of two lists of scores: 1 for the same order, -1 for the reverse.

    A pair that ties in one list only counts against the agreement (Kendall, 1945, "The Treatment
    of Ties in Ranking Problems").

    Raises:
        ValueError: All scores of a list are equal, so that it has no order.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    above = np.triu_indices(len(a), 1)
    signs_a = np.sign(a[:, None] - a[None, :])[above]
    signs_b = np.sign(b[:, None] - b[None, :])[above]
    norm = float(np.sqrt(np.abs(signs_a).sum() * np.abs(signs_b).sum()))
    if norm == 0:
        msg = "scores that are all equal have no order to compare"
        raise ValueError(msg)
    return float((signs_a * signs_b).sum() / norm)
