"""Intervals and tests of paired differences."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sie_core.errors import InvalidRequestError
from sie_core.evaluation.significance import paired_difference


def test_the_interval_is_that_of_the_normal_theory_for_many_queries() -> None:
    """Mean ± 1.96 standard errors, as the bootstrap must give for a well-behaved sample."""
    gains = np.random.default_rng(1).normal(0.1, 0.3, 400)
    found = paired_difference([0.0] * 400, gains.tolist())
    error = gains.std() / np.sqrt(400)
    assert found.mean == pytest.approx(gains.mean())
    assert found.low == pytest.approx(gains.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(gains.mean() + 1.96 * error, abs=0.1 * error)
    assert found.verdict == "better"
    assert found.p_value < 0.001


def test_the_p_value_of_few_queries_is_counted_out() -> None:
    """Over all ways to give each gain a sign."""
    gains = [0.2, 0.1, -0.05, 0.3]
    sums = [
        abs(sum(sign * gain for sign, gain in zip(signs, gains, strict=True)))
        for signs in product((1, -1), repeat=4)
    ]
    expected = sum(one >= abs(sum(gains)) - 1e-12 for one in sums) / 16
    assert paired_difference([0.5] * 4, [0.5 + gain for gain in gains]).p_value == expected


def test_the_drawn_p_value_is_near_the_exact_one() -> None:
    """One query more than are counted out, of equal gains: both signs alike, 2 of 2^14."""
    found = paired_difference([0.0] * 14, [0.1] * 14)
    assert found.p_value == pytest.approx(2 / 2**14, abs=5e-4)


def test_no_difference_is_said_to_be_none() -> None:
    """Zero, with a p-value of one."""
    found = paired_difference([0.3, 0.7] * 20, [0.3, 0.7] * 20)
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert found.verdict == "unclear"


def test_a_loss_is_a_loss() -> None:
    """The same interval, mirrored, for the same resamples."""
    before = np.random.default_rng(2).uniform(0.4, 0.6, 50)
    after = before - np.random.default_rng(3).uniform(0.0, 0.2, 50)
    found = paired_difference(before.tolist(), after.tolist())
    mirrored = paired_difference(after.tolist(), before.tolist())
    assert found.verdict == "worse"
    assert mirrored.mean == -found.mean
    assert mirrored.low == pytest.approx(-found.high)
    assert mirrored.p_value == found.p_value


def test_the_seed_decides() -> None:
    """The same seed gives the same interval, another a slightly other one."""
    gains = np.random.default_rng(4).normal(0, 1, 30).tolist()
    one, same, other = (paired_difference([0.0] * 30, gains, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one.low == pytest.approx(other.low, abs=0.1)


def test_other_queries_are_refused() -> None:
    """A paired comparison needs pairs."""
    with pytest.raises(InvalidRequestError, match="got 2 and 1"):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(InvalidRequestError, match="got 0 and 0"):
        paired_difference([], [])
