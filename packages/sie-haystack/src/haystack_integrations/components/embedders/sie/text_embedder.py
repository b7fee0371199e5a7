"""`SIETextEmbedder`: the vector of a query, for Haystack's embedding retrievers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from haystack import component
from haystack.utils import ComponentDevice, Secret

from haystack_integrations.common.sie.component import API_KEY, HUB_TOKEN, SIEComponent
from sie_core.embedder import Embedder
from sie_core.settings import DEFAULT_EMBEDDING_MODEL
from sie_core.types import AsyncEncodingClient, EncodingClient, Mode


@component
class SIETextEmbedder(SIEComponent):
    """Turn a query into a vector; `SIEDocumentEmbedder` is for documents.

    It is encoded as a query, with the prompt that the model's own files name for those. Nothing is
    loaded before `warm_up` or the first run. A copy of the component keeps its secrets; a pickle
    keeps the names of environment variables, which are read again, and no values.

    Args:
        base_url: Address of an SIE server; None means `SIE_BASE_URL`, else in this process.
        model: Model name or folder.
        gpu: Machine profile on a remote cluster, such as `l4`.
        options: Passed on to the client's `encode`, such as `{"max_length": 256}`.
        timeout_s: Another name for `timeout_seconds`.
        timeout_seconds: Bound on one whole call, retries and loading included; None means 180 on
            a server, and no bound in-process.
        api_key: Sent to the server at `base_url` only; read when the component is made.
        wait_for_capacity: Remote: wait while the cluster starts a machine.
        device: In-process: a `ComponentDevice`, or `cuda`, `cuda:1`, `cpu`, `mps`, or a list of
            CUDA devices that share the work; None means CUDA if there, else CPU.
        token: Hub token for gated models, read when the component is made.
        prefix: Put before the query, where the model's own files name no prompt.
        suffix: Put after the query.
        instruction: Sent with the query, for models trained with instructions.
        output_dtype: The format in which vectors travel, such as `float16`.
        model_kwargs: `dtype` (or `torch_dtype`) and `revision`, as other embedders take them.
        tokenizer_kwargs: `model_max_length`, the same as `max_length`.
        batch_size: Texts per forward pass at most; None lets the token budget alone decide.
        mode: In-process: `exact` computes in float32, `fast` in half precision where that is
            faster; `auto` is fast where that can be had.
        dtype: In-process: `float32`, `float16`, `bfloat16`, instead of what the mode means.
        num_threads: In-process: cores used on the CPU; None means `SIE_NUM_THREADS`, else all that
            this process may use.
        max_length: Tokens per text; None means the model's own maximum.
        revision: Branch, tag or commit of the model on the hub.
        cache_dir: Folder for weights; None means `SIE_CACHE_DIR`, else the platform's.
        client: A client to use instead, also one of SIE's own package; it stays the caller's to
            close, and cannot be serialised.
        async_client: The same for `run_async`; without one, a given `client` runs in a thread.

    Raises:
        InvalidRequestError: (a ValueError) An argument is wrong, or two contradict each other.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | Path = DEFAULT_EMBEDDING_MODEL,
        *,
        gpu: str | None = None,
        options: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        timeout_seconds: float | None = None,
        api_key: Secret | None = API_KEY,
        wait_for_capacity: bool = False,
        device: ComponentDevice | str | Sequence[str] | None = None,
        token: Secret | None = HUB_TOKEN,
        prefix: str = "",
        suffix: str = "",
        instruction: str | None = None,
        output_dtype: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        mode: Mode = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        client: EncodingClient | None = None,
        async_client: AsyncEncodingClient | None = None,
    ) -> None:
        self._take_backend(
            base_url=base_url,
            model=model,
            gpu=gpu,
            options=options,
            timeout_s=timeout_s,
            timeout_seconds=timeout_seconds,
            api_key=api_key,
            wait_for_capacity=wait_for_capacity,
            device=device,
            token=token,
            model_kwargs=model_kwargs,
            tokenizer_kwargs=tokenizer_kwargs,
            batch_size=batch_size,
            mode=mode,
            dtype=dtype,
            num_threads=num_threads,
            max_length=max_length,
            revision=revision,
            cache_dir=cache_dir,
            client=client,
            async_client=async_client,
        )
        self.prefix = prefix
        self.suffix = suffix
        self.instruction = instruction
        self.output_dtype = output_dtype
        self._holder = self._make_holder()

    _constructor = __init__

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """Turn `text` into a vector.

        Returns:
            `{"embedding": [...]}`.

        Raises:
            TypeError: `text` is no string.
            SIEError: The model gives no dense vectors, or could not be had, loaded or run.
        """
        return {"embedding": self._embedder.embed([self._text(text)], is_query=True)[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, list[float]]:
        """Do what `run` does, without blocking the event loop."""
        return {"embedding": (await self._embedder.aembed([self._text(text)], is_query=True))[0]}

    def _text(self, text: object) -> str:
        if not isinstance(text, str):
            msg = (
                f"SIETextEmbedder takes a string, but got {type(text).__name__}; for a list of "
                "documents use SIEDocumentEmbedder, for several strings run it once for each"
            )
            raise TypeError(msg)
        return f"{self.prefix}{text}{self.suffix}"

    @property
    def _embedder(self) -> Embedder:
        return cast("Embedder", self._holder)

    def _make_holder(self) -> Embedder:
        return Embedder(
            self.model,
            instruction=self.instruction,
            output_dtype=self.output_dtype,
            **self._backend_settings,
        )
