"""`Prefix`: what all documents of a query are read behind, computed once; `DecoderSequence`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sie_core.local.tokenization import Int32s

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""The keys and the values of one layer; [tokens, key/value heads, head size] each."""


class Prefix:
    """Tokens that several sequences of one call begin with, and what a model made of them.

    The worker that first needs its keys and values computes them with its batch and leaves them
    here. One that needs them meanwhile does not wait but computes them too: it would have nothing
    else to do, and there is nobody to wait for in vain. They go when the call's sequences go.

    Args:
        token_ids: The tokens; int32.
    """

    def __init__(self, token_ids: Int32s) -> None:
        self.token_ids = token_ids
        self._kept: dict[torch.device, Sequence[KeyValue]] = {}

    def __len__(self) -> int:
        return len(self.token_ids)

    def kept(self, device: torch.device) -> Sequence[KeyValue] | None:
        """Return keys and values of every layer on a device, None where nobody left any."""
        return self._kept.get(device)

    def keep(self, device: torch.device, layers: Sequence[KeyValue]) -> None:
        """Leave keys and values for later batches of the same device."""
        self._kept[device] = layers


@dataclass(frozen=True, slots=True, eq=False)
class DecoderSequence:
    """A prompt with a document in it.

    Attributes:
        prefix: What it begins with, shared with others; None where all of it is its own.
        token_ids: What follows; int32, at least one.
        is_truncated: Whether query or document lost its end.
    """

    prefix: Prefix | None
    token_ids: Int32s
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        """Count the tokens that are computed for it alone."""
        return len(self.token_ids)

    @property
    def length(self) -> int:
        """Count all tokens that the model reads."""
        return len(self.token_ids) + (0 if self.prefix is None else len(self.prefix))

    def whole(self) -> DecoderSequence:
        """Return the same tokens with nothing shared."""
        if self.prefix is None:
            return self
        token_ids = np.concatenate((self.prefix.token_ids, self.token_ids))
        return DecoderSequence(None, token_ids, self.is_truncated)
