"""The losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sie_core.training.losses import LOSSES, binary, listwise, margin_mse
from sie_core.training.settings import Loss

SCORES = torch.tensor([[2.0, 0.0, 99.0], [1.0, -1.0, 0.5]])
LABELS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
TEACHER = torch.tensor([[5.0, 1.0, 0.0], [0.0, 2.0, 3.0]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_binary() -> None:
    """-log sigmoid(s) of relevant pairs, -log sigmoid(-s) of others; what is not there is not."""

    def cost(score: float) -> float:
        return math.log(1 + math.exp(-score))

    expected = (cost(2) + cost(-0.0) + cost(-1) + cost(-1) + cost(0.5)) / 5
    assert float(binary(SCORES, LABELS, TEACHER, MASK)) == pytest.approx(expected)


def test_listwise() -> None:
    """Two relevant documents want half of the softmax each."""
    first = -(2 - math.log(math.exp(2) + math.exp(0)))
    total = math.log(math.exp(1) + math.exp(-1) + math.exp(0.5))
    second = -0.5 * (-1 - total) - 0.5 * (0.5 - total)
    assert float(listwise(SCORES, LABELS, TEACHER, MASK)) == pytest.approx((first + second) / 2)


def test_margin_mse() -> None:
    """Each relevant document against each other one, in the teacher's differences."""
    first = [(2 - 0) - (5 - 1)]
    second = [(-1 - 1) - (2 - 0), (0.5 - 1) - (3 - 0)]
    expected = sum(one**2 for one in [*first, *second]) / 3
    assert float(margin_mse(SCORES, LABELS, TEACHER, MASK)) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_there_has_no_gradient(name: Loss) -> None:
    """Padding of a short list must not be learnt; everything else must, and finitely."""
    scores = SCORES.clone().requires_grad_()
    LOSSES[name](scores, LABELS, TEACHER, MASK).backward()
    assert scores.grad is not None
    assert float(scores.grad[0, 2]) == 0
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[MASK] != 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_following_it_puts_answers_on_top(name: Loss) -> None:
    """Whatever the loss, going down its gradient sorts every list."""
    scores = (-SCORES).requires_grad_()
    for _ in range(200):
        loss = LOSSES[name](scores, LABELS, TEACHER, MASK)
        (gradient,) = torch.autograd.grad(loss, scores)
        scores = (scores - gradient).detach().requires_grad_()
    assert scores[0, 0] > scores[0, 1]
    assert scores[1, 1:].min() > scores[1, 0]
