"""What is made small: losses over the scores of queries' documents.

All take scores [queries, documents] in float32 and a mask of the documents that are there, and
return one number, the mean over what counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sie_core.training.settings import Loss

Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes scores, labels, teacher's scores and the mask, each [queries, documents]."""


def binary(
    scores: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy of each pair: is this document relevant?"""
    del teacher
    return nn.functional.binary_cross_entropy_with_logits(scores[mask], labels[mask])


def listwise(
    scores: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy of a query's documents against its labels as a distribution.

    This is ListNet's top-one loss (Cao et al., 2007); with one relevant document it is the
    localised contrastive loss (Gao, Dai and Callan, 2021).
    """
    del teacher
    labels = labels * mask
    wanted = labels / labels.sum(dim=1, keepdim=True).clamp(min=1e-9)
    log_shares = torch.log_softmax(scores.masked_fill(~mask, -torch.inf), dim=1)
    return -(wanted * log_shares.masked_fill(~mask, 0.0)).sum(dim=1).mean()


def margin_mse(
    scores: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the squared error of differences between relevant and other documents.

    Hofstätter et al., 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture
    Knowledge Distillation".
    """
    relevant, other = (labels > 0) & mask, (labels <= 0) & mask
    pairs = relevant[:, :, None] & other[:, None, :]
    margins = scores[:, :, None] - scores[:, None, :]
    wanted = teacher[:, :, None] - teacher[:, None, :]
    return nn.functional.mse_loss(margins[pairs], wanted[pairs])


LOSSES: dict[Loss, Compute] = {
    "binary": binary,
    "listwise": listwise,
    "margin-mse": margin_mse,
}
