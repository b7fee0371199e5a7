"""`SIEDocumentEmbedder`: Haystack documents to new documents with their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from haystack import Document, component
from haystack.utils import ComponentDevice, Secret
from tqdm import tqdm  # type: ignore[import-untyped]  # ships no types

from haystack_integrations.common.sie.component import API_KEY, HUB_TOKEN, SIEComponent
from sie_core.document_text import DocumentText
from sie_core.embedder import Embedder, Progress
from sie_core.settings import DEFAULT_EMBEDDING_MODEL
from sie_core.types import AsyncEncodingClient, EncodingClient, Mode


@component
class SIEDocumentEmbedder(SIEComponent):
    """Give documents their vectors; `SIETextEmbedder` is for queries.

    Documents come back as copies with `embedding` set, in the same order; those without content
    get the vector of an empty text, as in Haystack's own embedders. Nothing is loaded before
    `warm_up` or the first run. A copy of the component keeps its secrets; a pickle keeps the names
    of environment variables, which are read again, and no values.

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
        prefix: Put before each document's text, where the model's own files name no prompt.
        suffix: Put after each document's text.
        meta_fields_to_embed: Metadata fields whose values are encoded with the content.
        embedding_separator: Stands between those values and the content.
        progress_bar: Show one on the standard error stream.
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
        meta_fields_to_embed: Sequence[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = True,
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
        self.meta_fields_to_embed = list(meta_fields_to_embed or [])
        self.embedding_separator = embedding_separator
        self.progress_bar = progress_bar
        self.output_dtype = output_dtype
        self._holder = self._make_holder()

    _constructor = __init__

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Give `documents`, which stay as they are, their vectors.

        Returns:
            `{"documents": [...]}`, copies in the same order.

        Raises:
            TypeError: `documents` is no list of documents.
            SIEError: The model gives no dense vectors, or could not be had, loaded or run.
        """
        texts = self._texts(documents)
        with self._progress(len(texts)) as bar:
            vectors = self._embedder.embed(texts, on_progress=self._told(bar))
        return {"documents": _with_vectors(documents, vectors)}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Do what `run` does, without blocking the event loop."""
        texts = self._texts(documents)
        with self._progress(len(texts)) as bar:
            vectors = await self._embedder.aembed(texts, on_progress=self._told(bar))
        return {"documents": _with_vectors(documents, vectors)}

    def _texts(self, documents: list[Document]) -> list[str]:
        is_list = isinstance(documents, list)
        if not is_list or not all(isinstance(document, Document) for document in documents):
            msg = (
                f"SIEDocumentEmbedder takes a list of documents, but got {_kind(documents)}; for a "
                "string use SIETextEmbedder"
            )
            raise TypeError(msg)
        fields, separator = self.meta_fields_to_embed, self.embedding_separator
        joined = DocumentText(meta_fields=fields, meta_separator=separator)
        found = joined.texts_of((document.content, document.meta) for document in documents)
        texts = [
            document.content or "" if text is None else text
            for document, text in zip(documents, found, strict=True)
        ]
        return [f"{self.prefix}{text}{self.suffix}" for text in texts]

    def _progress(self, num_texts: int) -> tqdm[Any]:
        is_shown = self.progress_bar and num_texts > 0
        return tqdm(total=num_texts, desc="Calculating embeddings", disable=not is_shown)

    def _told(self, bar: tqdm[Any]) -> Progress | None:
        return bar.update if self.progress_bar else None

    @property
    def _embedder(self) -> Embedder:
        return cast("Embedder", self._holder)

    def _make_holder(self) -> Embedder:
        return Embedder(
            self.model,
            output_dtype=self.output_dtype,
            **self._backend_settings,
        )


def _with_vectors(documents: list[Document], vectors: list[list[float]]) -> list[Document]:
    pairs = zip(documents, vectors, strict=True)
    return [replace(document, embedding=vector) for document, vector in pairs]


def _kind(given: Any) -> str:
    """Name a type, and that of the first element that is no document."""
    wrong = [it for it in given if not isinstance(it, Document)] if isinstance(given, list) else []
    return f"a list with {type(wrong[0]).__name__} in it" if wrong else type(given).__name__
