"""Kendall's tau by hand."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [
        ([1, 2, 3], [10, 20, 30], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3], [1, 3, 2], 1 / 3),
        ([1, 2, 3], [1, 2, 2], 2 / 6**0.5),
    ],
)
def test_kendall_tau(first: list[float], second: list[float], tau: float) -> None:
    """A tie in one list only lowers it."""
    from agreement import kendall_tau

    assert kendall_tau(first, second) == pytest.approx(tau)


def test_equal_scores_have_no_order() -> None:
    """A value would say something about nothing."""
    from agreement import kendall_tau

    with pytest.raises(ValueError, match="all equal"):
        kendall_tau([1, 1], [1, 2])


def test_agreement_is_difference_and_order() -> None:
    """The largest difference, wherever it is."""
    from agreement import Agreement

    agreement = Agreement.of([1.0, 2.5, 3.0], [1.0, 2.0, 3.25])
    assert agreement == Agreement(0.5, 1.0)
