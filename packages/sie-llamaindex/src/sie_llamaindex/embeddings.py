"""`SIEEmbedding`: LlamaIndex's vectors for queries and texts, from a dense encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, SecretStr
from llama_index.core.callbacks import CallbackManager

from sie_core.embedder import Embedder
from sie_core.setting_names import one_of
from sie_core.settings import DEFAULT_EMBEDDING_MODEL
from sie_core.types import AsyncEncodingClient, EncodingClient, Mode
from sie_llamaindex.backend import SIEBackend, backend_fields

EMBED_BATCH_SIZE = 512
"""Texts per call unless said otherwise: as many as one request to a server holds."""


class SIEEmbedding(SIEBackend, BaseEmbedding):
    """Turn queries and texts into vectors, for any of LlamaIndex's indexes.

    Both are encoded as the model's own files say: their prompts, pooling and normalisation.
    Nothing is loaded before the first call. There is no `fallback`: vectors of another model are
    no use in an index made with this one. A copy keeps `api_key` and `token`; a pickle does not,
    and the process that unpickles it reads `SIE_API_KEY` and `HF_TOKEN`.

    Args:
        base_url: Address of an SIE server; None means `SIE_BASE_URL`, else in this process.
        model_name: Model name or folder; None means `BAAI/bge-small-en-v1.5`.
        instruction: Sent with queries, for models trained with instructions.
        output_dtype: The format in which vectors travel, such as `float16`.
        options: Passed on to the client's `encode`, such as `{"max_length": 256}`.
        gpu: Machine profile on a remote cluster, such as `l4`.
        timeout_s: Another name for `timeout_seconds`.
        embed_batch_size: Texts per call to the model; its forward passes are smaller.
        model: Another name for `model_name`.
        timeout_seconds: Bound on each call to the model, retries and loading included; None means
            180 on a server, and no bound in-process.
        api_key: Sent to the server at `base_url` only; None means `SIE_API_KEY`. It is left out by
            `to_dict`.
        wait_for_capacity: Remote: wait while the cluster starts a machine.
        client: A client to use instead, also one of SIE's own package; it stays the caller's to
            close, and is not serialised.
        async_client: The same for async calls; without one, a given `client` runs in a thread.
        device: In-process: `cuda`, `cuda:1`, `cpu`, `mps`, or a list of CUDA devices that share
            the work; None means CUDA if there, else CPU.
        mode: In-process: `exact` computes in float32, `fast` in half precision where that is
            faster; `auto` is fast where that can be had.
        dtype: In-process: `float32`, `float16`, `bfloat16`, instead of what the mode means.
        num_threads: In-process: cores used on the CPU; None means `SIE_NUM_THREADS`, else all that
            this process may use.
        max_length: Tokens per text; None means the model's own maximum.
        batch_size: Texts per forward pass at most; None lets the token budget alone decide.
        revision: Branch, tag or commit of the model on the hub.
        token: Hub token for gated models; it is left out by `to_dict`.
        cache_dir: Folder for weights; None means `SIE_CACHE_DIR`, else the platform's.
        callback_manager: Handlers that are told of each call.
        num_workers: How many calls of one async batch run at a time; None means all.
        embeddings_cache: LlamaIndex's own store of vectors already made.
        rate_limiter: LlamaIndex's own, asked before each call.

    Raises:
        InvalidRequestError: (a ValueError) An argument is wrong, or two contradict each other.
    """

    _aliases: ClassVar[Mapping[str, str]] = {"timeout_s": "timeout_seconds", "model": "model_name"}

    model_name: str = Field(frozen=True, description="Model name or folder.")
    instruction: str | None = Field(frozen=True, description="Instruction, sent with queries.")
    output_dtype: str | None = Field(frozen=True, description="Format in which vectors travel.")

    def __init__(  # noqa: PLR0917 - the order that users of SIE's own package have
        self,
        base_url: str | None = None,
        model_name: str | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_s: float | None = None,
        embed_batch_size: int = EMBED_BATCH_SIZE,
        *,
        model: str | None = None,
        timeout_seconds: float | None = None,
        api_key: str | SecretStr | None = None,
        wait_for_capacity: bool = False,
        client: EncodingClient | None = None,
        async_client: AsyncEncodingClient | None = None,
        device: str | Sequence[str] | None = None,
        mode: Mode = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        revision: str | None = None,
        token: str | SecretStr | None = None,
        cache_dir: str | Path | None = None,
        callback_manager: CallbackManager | None = None,
        num_workers: int | None = None,
        embeddings_cache: Any = None,
        rate_limiter: Any = None,
    ) -> None:
        fields = backend_fields(
            timeout_seconds=one_of("timeout_seconds", timeout_seconds, "timeout_s", timeout_s),
            base_url=base_url,
            options=options,
            gpu=gpu,
            api_key=api_key,
            wait_for_capacity=wait_for_capacity,
            client=client,
            async_client=async_client,
            device=device,
            mode=mode,
            dtype=dtype,
            num_threads=num_threads,
            max_length=max_length,
            batch_size=batch_size,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
        )
        fields |= {
            "model_name": one_of("model_name", model_name, "model", model)
            or DEFAULT_EMBEDDING_MODEL,
            "instruction": instruction,
            "output_dtype": output_dtype,
            "embed_batch_size": embed_batch_size,
            "callback_manager": callback_manager or CallbackManager(),
            "num_workers": num_workers,
            "embeddings_cache": embeddings_cache,
            "rate_limiter": rate_limiter,
        }
        super().__init__(**fields)
        self._holder = self._make_holder()

    @classmethod
    def class_name(cls) -> str:
        """Name the class in serialised components."""
        return "SIEEmbedding"

    @property
    def model(self) -> str:
        """The model's name, as SIE's other components call it."""
        return self.model_name

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.embed([query], is_query=True)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._embedder.aembed([query], is_query=True))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.embed([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._embedder.aembed([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._embedder.aembed(texts)

    @property
    def _embedder(self) -> Embedder:
        return cast("Embedder", self._holder)

    def _make_holder(self) -> Embedder:
        return Embedder(
            self.model_name,
            instruction=self.instruction,
            output_dtype=self.output_dtype,
            **self._backend_settings,
        )
