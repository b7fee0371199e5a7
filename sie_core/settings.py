"""Defaults with names and units, in frozen dataclasses.

Every number that shapes behaviour stands here once; functions take a settings object rather than
a dozen keyword arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sie_core.errors import InvalidRequestError
from sie_core.types import MODES, Mode

DEFAULT_MODEL = "cross-encoder/ms-marco-MiniLM-L12-v2"
"""The reranker used where none is named: 33 M parameters, English, Apache-2.0."""

DEFAULT_EMBEDDING_MODEL = "BAAI/bge-small-en-v1.5"
"""The first-stage encoder used where none is named: 33 M parameters, English, MIT."""

EMBEDDING_STEP_TEXTS = 512
"""Texts encoded between two reports of progress: as many as one request to a server holds."""


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
        device: `cuda`, `cuda:1`, `cpu`, `mps`, or a list of CUDA devices; None means CUDA where
            there is one, else CPU.
        mode: `exact` computes in float32; `fast` in float16 on CUDA, and in bfloat16 on a CPU that
            is faster in it; `auto` is fast where that can be had.
        dtype: `float32`, `float16` or `bfloat16`, instead of what the mode means.
        num_threads: Cores used on the CPU; None means `SIE_NUM_THREADS`, else all that this process
            may use.
        max_batch_tokens: Tokens per forward pass; None means the device's default. A pair
            that is longer runs alone.
        max_queued_tokens: Bound on what may wait for a model; None means `MAX_QUEUED_TOKENS`.
        token_cache_bytes: Bound on the token ids of documents kept for each model, shared by all
            who use it; 0 keeps none; None means the size that was set last, at first
            `TOKEN_CACHE_BYTES`.
        max_loras: LoRA adapters kept for each model; None means the number that was set last, at
            first `MAX_LORAS`.
        max_loaded_models: Models that this process keeps loaded; None for no bound.
        memory_budget_bytes: Bound on the weights that this process keeps loaded; None for none.
    """

    device: str | Sequence[str] | None = None
    mode: Mode = "auto"
    dtype: str | None = None
    num_threads: int | None = None
    max_batch_tokens: int | None = None
    max_queued_tokens: int | None = None
    token_cache_bytes: int | None = None
    max_loras: int | None = None
    max_loaded_models: int | None = None
    memory_budget_bytes: int | None = None


def check_mode(mode: Mode, dtype: str | None) -> None:
    """Raise InvalidRequestError for an unknown mode, or one that a named format contradicts."""
    if mode not in MODES:
        msg = f"mode must be one of {', '.join(MODES)}, but got {mode!r}"
        raise InvalidRequestError(msg)
    if mode != "auto" and dtype is not None:
        msg = f"mode={mode!r} and dtype={dtype!r} both decide the number format: give one of them"
        raise InvalidRequestError(msg)


CPU_MAX_BATCH_TOKENS = 1024
"""Small enough for a batch's activations to stay in a core's cache."""

CUDA_MAX_BATCH_TOKENS = 32_768
"""Large enough to fill a data-centre GPU with a small model."""

CPU_MIN_BATCH_TOKENS = 256
"""Work is split over idle cores in parts of no less: below, a batch's fixed costs show."""

CUDA_MIN_BATCH_TOKENS = 8192
"""The same for several GPUs."""

MAX_QUEUED_TOKENS = 2**24
"""Waiting for one model: 64 MiB of ids, and minutes of work on a CPU."""

TOKEN_CACHE_BYTES = 16 * 2**20
"""Texts and ids of about 15,000 passages, for each loaded model."""

MAX_LORAS = 8
"""Adapters kept for one model: of rank 16 on a base-sized encoder, some 5 MB each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings:
    """How a server is called. The size limits are those of sie-server 0.10.

    Attributes:
        timeout_seconds: Bound on one whole call, retries and the server's loading included.
        connect_timeout_seconds: How long a server that does not answer at all is waited for.
        restart_seconds: How long a server may be away while it is restarted: one that refuses or
            drops connections is asked again all that time. 0 asks three times more at most.
        provision_timeout_seconds: Own budget for waiting on a machine, on top of
            `timeout_seconds`; None means that this wait counts against `timeout_seconds`.
        max_concurrency: Parts of one large call that are under way at a time.
        max_items: Items per request, and in a server's queue; a larger call is split into parts
            that fit into the queue together, `max_concurrency` at a time.
        max_request_bytes: Bytes per request body, a little under the server's 34 MiB.
        max_item_bytes: Text and metadata of one item; the server takes no larger ones.
        max_reply_bytes: A reply with embeddings is not read further than this.
        keepalive_seconds: How long an unused connection is kept.
    """

    timeout_seconds: float = 180.0
    connect_timeout_seconds: float = 5.0
    restart_seconds: float = 0.0
    provision_timeout_seconds: float | None = None
    max_concurrency: int = 2
    max_items: int = 512
    max_request_bytes: int = 33 * 1024 * 1024
    max_item_bytes: int = 2 * 1024 * 1024
    max_reply_bytes: int = 256 * 1024 * 1024
    keepalive_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a failing backend is left alone, and for how long.

    Attributes:
        num_failures: Failures in a row after which it is not asked any more.
        cooldown_seconds: How long it then rests before one call probes it again.
        max_cooldown_seconds: Each failed probe doubles the rest, up to this.
    """

    num_failures: int = 3
    cooldown_seconds: float = 5.0
    max_cooldown_seconds: float = 60.0
