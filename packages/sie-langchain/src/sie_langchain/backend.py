"""The fields that say which model answers, and where: shared by all components of this package."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SkipValidation,
    field_serializer,
    model_validator,
)

from sie_core.cascade import to_stages
from sie_core.client_holder import ClientHolder, sharing_given
from sie_core.deadline import check_timeout_seconds
from sie_core.long_documents import Handling
from sie_core.reranker import Fallback, Reranker
from sie_core.score_cache import ScoreCache
from sie_core.setting_names import check_known, renamed
from sie_core.settings import DEFAULT_MODEL
from sie_core.telemetry import RerankStats
from sie_core.types import Mode, RerankSpace

_SECRETS = ("api_key", "token")
"""Fields that are part of no dump and no pickle."""


class SIEBackend(BaseModel):
    """Hold what calls the model, made from the fields, which cannot be assigned afterwards.

    `model_copy(update={...})` gives a changed copy. Nothing is loaded before the first call. A
    copy keeps `api_key` and `token`; a pickle does not, and the process that unpickles it reads
    `SIE_API_KEY` and `HF_TOKEN`.

    Raises:
        pydantic.ValidationError: (a ValueError) An argument is unknown or wrong. It never shows
            the values, for one of them may be a secret.
    """

    _aliases: ClassVar[Mapping[str, str]] = {"timeout_s": "timeout_seconds"}
    """Other names that the constructor and `model_copy` take for fields."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    model: str = Field(frozen=True)
    """Model name or folder."""
    base_url: str | None = Field(default=None, frozen=True)
    """Address of an SIE server; None means `SIE_BASE_URL`, else in this process."""
    api_key: SecretStr | None = Field(default=None, frozen=True, exclude=True)
    """Sent to that server only; None means `SIE_API_KEY`. Not part of a dump or pickle."""
    client: SkipValidation[Any] = Field(default=None, frozen=True, exclude=True, repr=False)
    """A client to use instead, also one of SIE's own package; it stays the caller's to close."""
    async_client: SkipValidation[Any] = Field(default=None, frozen=True, exclude=True, repr=False)
    """The same for async calls; without one, a given `client` runs in a thread."""
    options: Mapping[str, Any] | None = Field(default=None, frozen=True)
    """Passed on to the client, such as `{"max_length": 256}`."""
    gpu: str | None = Field(default=None, frozen=True)
    """Machine profile on a remote cluster, such as `l4`."""
    wait_for_capacity: bool = Field(default=False, frozen=True)
    """Remote: wait while the cluster starts a machine."""
    timeout_seconds: float | None = Field(default=None, frozen=True)
    """Bound on one whole call, retries and loading included; None means 180 on a server, and no
    bound in-process. `timeout_s` is accepted too."""
    device: str | Sequence[str] | None = Field(default=None, frozen=True)
    """In-process: `cuda`, `cuda:1`, `cpu`, `mps`, or a list of CUDA devices that share the work;
    None means CUDA if there, else CPU."""
    mode: Mode = Field(default="auto", frozen=True)
    """In-process: `exact` computes in float32, `fast` in half precision where that is faster;
    `auto` is fast where that can be had."""
    dtype: str | None = Field(default=None, frozen=True)
    """In-process: `float32`, `float16`, `bfloat16`, instead of what the mode means."""
    num_threads: int | None = Field(default=None, frozen=True)
    """In-process: cores used on the CPU; None means `SIE_NUM_THREADS`, else all that this process
    may use."""
    max_length: int | None = Field(default=None, frozen=True)
    """Tokens per pair, or per text to embed; None means the model's own maximum."""
    batch_size: int | None = Field(default=None, frozen=True)
    """Pairs, or texts, per forward pass at most; None lets the token budget alone decide."""
    revision: str | None = Field(default=None, frozen=True)
    """Branch, tag or commit of the model on the hub."""
    token: SecretStr | None = Field(default=None, frozen=True, exclude=True)
    """Hub token for gated models; not part of a dump or pickle."""
    cache_dir: str | Path | None = Field(default=None, frozen=True)
    """Folder for weights; None means `SIE_CACHE_DIR`, else the platform's."""

    _holder: ClientHolder = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _accept_aliases(cls, values: Any) -> Any:
        return renamed(values, cls._aliases) if isinstance(values, dict) else values

    def model_post_init(self, context: Any, /) -> None:
        """Make the holder, which checks the fields."""
        super().model_post_init(context)
        self._holder = self._make_holder()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy, with the fields in `update` changed: those of the constructor, by its names.

        Raises:
            InvalidRequestError: A name is unknown, or a value is wrong.
        """
        changes = renamed(update or {}, self._aliases)
        check_known(changes, type(self).model_fields, component=type(self).__name__)
        for name in changes.keys() & _SECRETS:
            if isinstance(changes[name], str):
                changes[name] = SecretStr(changes[name])
        source = copy.deepcopy(self) if deep else self
        copied = super(SIEBackend, source).model_copy(update=changes)
        if changes:
            copied.model_post_init(None)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy deeply; clients and the hook are shared, as they stay the caller's."""
        return super().__deepcopy__(sharing_given(self, memo))

    def __getstate__(self) -> dict[Any, Any]:
        """Leave secrets out of a pickle; copies are made without this method, and keep them."""
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | dict.fromkeys(_SECRETS)}

    def warm_up(self) -> None:
        """Fetch and load the model now, so that the first call does not pay for it."""
        self._holder.warm_up()

    async def awarm_up(self) -> None:
        """Do what `warm_up` does, without blocking the event loop."""
        await self._holder.awarm_up()

    def close(self) -> None:
        """Release the model; the next call opens it again. May be called twice."""
        self._holder.close()

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        await self._holder.aclose()

    @abstractmethod
    def _make_holder(self) -> ClientHolder:
        """Make what calls the model."""

    @property
    def _backend_settings(self) -> dict[str, Any]:
        """The arguments of every kind of holder."""
        return {
            "base_url": self.base_url,
            "api_key": _revealed(self.api_key),
            "client": self.client,
            "async_client": self.async_client,
            "options": self.options,
            "gpu": self.gpu,
            "wait_for_capacity": self.wait_for_capacity,
            "timeout_seconds": self.timeout_seconds,
            "device": self.device,
            "mode": self.mode,
            "dtype": self.dtype,
            "num_threads": self.num_threads,
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "revision": self.revision,
            "token": _revealed(self.token),
            "cache_dir": self.cache_dir,
        }


class SIEScoring(SIEBackend):
    """Hold a `Reranker`: what all components share that score."""

    model: str = Field(default=DEFAULT_MODEL, frozen=True)
    """Model name or folder."""
    fallback: SkipValidation[Fallback | Sequence[Fallback] | None] = Field(
        default=None, frozen=True, repr=False
    )
    """Who answers where that fails: `local`, `retrieval_order`, another address or client, or a
    list of them, asked in turn; None raises the error. One with clients is not part of a dump."""
    hedge_after_ms: float | None = Field(default=None, frozen=True)
    """Ask the next of them too where there is no answer after this time."""
    instruction: str | None = None
    """Put before the query, for models trained with instructions."""
    score_space: RerankSpace | None = None
    """`raw` logits, `probability`, or `calibrated` by what `sie calibrate` fitted; None means what
    the model's own config says."""
    calibration: str | Path | None = Field(default=None, frozen=True)
    """For `calibrated`: a file; None means the one that was stored under the model's name."""

    lora: str | None = Field(default=None, frozen=True)
    """Adapter to score with: a folder, or a name on the hub or the server."""
    long_documents: Handling | None = None
    """What is done with documents that are longer than the model reads: `truncate` cuts their end
    off, `max_passage` takes the best of overlapping passages, `error` refuses the call; None means
    `truncate`."""
    passage_length: int | None = Field(default=None, frozen=True)
    """Tokens of the document in a passage; None means as many as the model reads."""
    passage_overlap: int | None = Field(default=None, frozen=True)
    """Tokens that neighbouring passages share; None means 64."""
    max_passages: int | None = Field(default=None, frozen=True)
    """Passages of one document at most; None means 32."""
    max_latency_ms: float | None = None
    """Return after this time with what is scored by then; the rest follows in retrieval order."""
    score_cache: SkipValidation[Any] = Field(default=None, frozen=True)
    """Bytes of scores to keep, or a `sie_core.ScoreCache` that several share; None keeps none."""
    cascade: SkipValidation[Any] = Field(default=None, frozen=True)
    """Cheaper models that score before, each with the part of the documents that go on: a list of
    `sie_core.Stage`, or of pairs such as `("cross-encoder/ms-marco-TinyBERT-L2-v2", 0.3)`."""
    stop_when_stable: int | None = Field(default=None, frozen=True)
    """Stop after so many batches in a row that left the top as it was: a heuristic."""
    on_rerank: SkipValidation[Any] = Field(default=None, frozen=True, exclude=True, repr=False)
    """Told of each call that has ended, by a `sie_core.RerankEvent`; not part of a dump or pickle.
    What it raises is logged once and fails no call."""

    def stats(self) -> RerankStats:
        """Count what this component's calls came to since it was made; see `Reranker.stats`."""
        return self._reranker.stats()

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the hook out of a pickle as well: a function need not be one that can be."""
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | {"on_rerank": None}}

    @field_serializer("score_cache")
    def _dump_score_cache(self, score_cache: Any) -> Any:
        return score_cache.to_dict() if isinstance(score_cache, ScoreCache) else score_cache

    @field_serializer("cascade")
    def _dump_cascade(self, cascade: Any) -> list[dict[str, Any]] | None:
        return None if cascade is None else [stage.to_dict() for stage in to_stages(cascade)]

    @field_serializer("fallback")
    def _dump_fallback(self, fallback: Any) -> str | list[str] | None:
        """Keep names and addresses; clients belong to this process, and may hold secrets."""
        if fallback is None or isinstance(fallback, str):
            return fallback
        is_named = isinstance(fallback, Sequence) and all(isinstance(it, str) for it in fallback)
        return list(fallback) if is_named else None

    def model_post_init(self, context: Any, /) -> None:
        """Check what goes with each call, and make the reranker."""
        check_timeout_seconds(self.max_latency_ms, name="max_latency_ms")
        super().model_post_init(context)

    @property
    def _reranker(self) -> Reranker:
        return cast("Reranker", self._holder)

    def _make_holder(self) -> Reranker:
        return Reranker(
            self.model,
            fallback=self.fallback,
            hedge_after_ms=self.hedge_after_ms,
            lora=self.lora,
            passage_length=self.passage_length,
            passage_overlap=self.passage_overlap,
            max_passages=self.max_passages,
            calibration=self.calibration,
            score_cache=self.score_cache,
            cascade=self.cascade,
            stop_when_stable=self.stop_when_stable,
            on_rerank=self.on_rerank,
            **self._backend_settings,
        )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
