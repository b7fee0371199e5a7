"""`SIEEmbeddings`: LangChain's vectors for queries and documents, from a dense encoder."""

from __future__ import annotations

from typing import cast

from langchain_core.embeddings import Embeddings
from pydantic import Field

from sie_core.embedder import Embedder
from sie_core.settings import DEFAULT_EMBEDDING_MODEL
from sie_langchain.backend import SIEBackend


class SIEEmbeddings(SIEBackend, Embeddings):
    """Turn texts into vectors, for any of LangChain's vector stores.

    Queries and documents are encoded as the model's own files say: their prompts, pooling and
    normalisation. Nothing is loaded before the first call. There is no `fallback`: vectors of
    another model are no use in an index made with this one.
    """

    model: str = Field(default=DEFAULT_EMBEDDING_MODEL, frozen=True)
    """Model name or folder."""
    instruction: str | None = Field(default=None, frozen=True)
    """Sent with queries, for models trained with instructions."""
    output_dtype: str | None = Field(default=None, frozen=True)
    """The format in which vectors travel, such as `float16`; None means the model's own."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Turn documents into vectors, one for each of `texts`, in their order.

        Raises:
            SIEError: The model gives no dense vectors, or could not be had, loaded or run.
        """
        return self._embedder.embed(texts)

    def embed_query(self, text: str) -> list[float]:
        """Turn a query into a vector."""
        return self._embedder.embed([text], is_query=True)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Do what `embed_documents` does, without blocking the event loop."""
        return await self._embedder.aembed(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Do what `embed_query` does, without blocking the event loop."""
        return (await self._embedder.aembed([text], is_query=True))[0]

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
