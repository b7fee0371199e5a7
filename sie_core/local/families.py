"""Which family a folder of weights belongs to, and how it is loaded."""

from __future__ import annotations

import torch

from sie_core.local.encoder import PairEncoder
from sie_core.local.model import Model
from sie_core.models.sources import ModelFiles


def load(
    files: ModelFiles, *, device: torch.device, dtype: torch.dtype, allow_pickle: bool = False
) -> Model:
    """Load a model of the family that its files say it is of.

    Raises:
        UnsupportedModelError: It is of none that runs here; the message says why.
        ModelLoadError: Files are missing or broken, or weights do not fit the architecture.
    """
    return PairEncoder.load(files, device=device, dtype=dtype, allow_pickle=allow_pickle)
