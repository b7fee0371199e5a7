"""Which family a folder of weights belongs to, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from sie_core.local import embedding, late_interaction
from sie_core.local.decoder import CausalReranker
from sie_core.local.device import Execution
from sie_core.local.encoder import PairEncoder
from sie_core.local.model import Model
from sie_core.models.recognition import Kind, recognise
from sie_core.models.sources import ModelFiles

_LOADERS: dict[Kind, Callable[..., Model]] = {
    "causal-reranker": CausalReranker.load,
    "cross-encoder": PairEncoder.load,
    "dense": embedding.load,
    "late-interaction": late_interaction.load,
}


def suit(execution: Execution, files: ModelFiles) -> Execution:
    """Return how a model of this kind runs where nobody named a number format.

    Language models are trained in bfloat16 and overflow in float16, whose largest number is 65,504.
    """
    if execution.dtype is not torch.float16 or recognise(files.folder) != "causal-reranker":
        return execution
    reason = "language models overflow in float16"
    return replace(execution, dtype=torch.bfloat16, dtype_reason=reason)


def load(
    files: ModelFiles, *, device: torch.device, dtype: torch.dtype, allow_pickle: bool = False
) -> Model:
    """Load a model of the family that its files say it is of.

    Raises:
        UnsupportedModelError: It is of none that runs here; the message says why.
        ModelLoadError: Files are missing or broken, or weights do not fit the architecture.
    """
    return _LOADERS[recognise(files.folder)](
        files, device=device, dtype=dtype, allow_pickle=allow_pickle
    )
