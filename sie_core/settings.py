"""Defaults with names and units, in frozen dataclasses.

Every number that shapes behaviour stands here once; functions take a settings object rather than
a dozen keyword arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_MODEL = "cross-encoder/ms-marco-MiniLM-L12-v2"
"""The reranker used where none is named: 33 M parameters, English, Apache-2.0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Where model weights may come from.

    Attributes:
        cache_dir: Our own cache; None means `SIE_CACHE_DIR`, else the platform's cache folder.
        revision: Branch, tag or commit on the hub; None means its default branch.
        token: Hub token for gated models; None means what huggingface_hub finds itself.
        hub_timeout_seconds: How long an unreachable hub is waited for, once per process.
        allow_pickle: Accept pickled weights (`pytorch_model.bin`), which may run code on loading.
    """

    cache_dir: Path | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    hub_timeout_seconds: float = 5.0
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How a model runs in this process.

    Attributes:
        device: `cuda`, `cuda:1`, `cpu`, `mps`; None means CUDA where there is one, else CPU.
        dtype: `float32`, `float16` or `bfloat16`; None means float16 on CUDA, else float32.
        max_batch_tokens: Tokens per forward pass, padding included; None means the device's
            default. A pair that is longer alone runs alone.
    """

    device: str | None = None
    dtype: str | None = None
    max_batch_tokens: int | None = None


CPU_MAX_BATCH_TOKENS = 1024
"""Small enough for a batch's activations to stay in a core's cache."""

CUDA_MAX_BATCH_TOKENS = 32_768
"""Large enough to fill a data-centre GPU with a small model."""
