"""Pairs to batches: similar lengths together, as many tokens as the budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sie_core.local.tokenization import Pair


@dataclass(frozen=True, slots=True)
class Batch:
    """Model inputs of shape [pairs, longest], on the CPU."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor


def plan_batches(
    lengths: Sequence[int], *, max_tokens: int, max_pairs: int | None = None
) -> list[list[int]]:
    """Group positions into batches, longest first, so that memory peaks at the start.

    Args:
        lengths: Tokens of each pair.
        max_tokens: Bound on pairs times longest length; a pair above it makes a batch alone.
        max_pairs: Bound on pairs per batch; None for no bound.

    Returns:
        Lists of positions into `lengths`; each position stands in exactly one.
    """
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch = batches[-1] if batches else []
        is_full = (len(batch) + 1) * longest > max_tokens or len(batch) == max_pairs
        if not batch or is_full:
            batches.append([position])
            longest = lengths[position]
        else:
            batch.append(position)
    return batches


def pad(pairs: Sequence[Pair], *, pad_token_id: int) -> Batch:
    """Put pairs into rows of equal length, padded at the end."""
    longest = max(len(pair.token_ids) for pair in pairs)
    input_ids = torch.full((len(pairs), longest), pad_token_id, dtype=torch.long)
    token_type_ids = torch.zeros((len(pairs), longest), dtype=torch.long)
    attention_mask = torch.zeros((len(pairs), longest), dtype=torch.long)
    for row, pair in enumerate(pairs):
        length = len(pair.token_ids)
        input_ids[row, :length] = torch.tensor(pair.token_ids)
        token_type_ids[row, :length] = torch.tensor(pair.type_ids)
        attention_mask[row, :length] = 1
    return Batch(input_ids, attention_mask, token_type_ids)
