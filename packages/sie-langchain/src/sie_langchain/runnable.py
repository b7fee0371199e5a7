"""`RerankRunnable`: what `SIEReranker.as_runnable` gives; it ranks a batch's queries together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, RunnableLambda

from sie_core.errors import InvalidRequestError

if TYPE_CHECKING:
    from sie_langchain.reranker import SIEReranker


class RerankInput(TypedDict):
    """What the runnable takes."""

    query: str
    documents: Sequence[Document]


class RerankRunnable(RunnableLambda[RerankInput, list[Document]]):
    """From `{"query": str, "documents": [Document, ...]}` to documents, best first.

    `batch` and `abatch` rank all queries at once, which then share batches of the model. Each is a
    run of its own; `max_concurrency` has no meaning here.

    Args:
        reranker: Whose settings hold, also those assigned later.
    """

    def __init__(self, reranker: SIEReranker) -> None:
        def rerank_documents(inputs: RerankInput, config: RunnableConfig) -> list[Document]:
            query, documents = _unpack(inputs)
            return reranker.compress_documents(documents, query, config.get("callbacks"))

        async def arerank_documents(inputs: RerankInput, config: RunnableConfig) -> list[Document]:
            query, documents = _unpack(inputs)
            return await reranker.acompress_documents(documents, query, config.get("callbacks"))

        super().__init__(rerank_documents, arerank_documents, name="rerank_documents")
        self._reranker = reranker

    def batch(
        self,
        inputs: list[RerankInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Rank all queries at once.

        Args:
            inputs: Queries with their documents.
            config: For each query, or for all.
            return_exceptions: An error stands in the place of its query's documents; otherwise the
                first is raised when all are done.
            kwargs: None are known.
        """

        def rank_all(inputs: list[RerankInput]) -> list[Exception | list[Document]]:
            pairs = _pairs(inputs)
            return _in_places(pairs, self._reranker.compress_many(_sound(pairs)))

        return self._batch_with_config(
            rank_all, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[RerankInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Do what `batch` does, without blocking the event loop."""

        async def rank_all(inputs: list[RerankInput]) -> list[Exception | list[Document]]:
            pairs = _pairs(inputs)
            return _in_places(pairs, await self._reranker.acompress_many(_sound(pairs)))

        return await self._abatch_with_config(
            rank_all, inputs, config, return_exceptions=return_exceptions, **kwargs
        )


_Pair = tuple[str, Sequence[Document]]


def _pairs(inputs: list[RerankInput]) -> list[_Pair | Exception]:
    return [_unpacked(one) for one in inputs]


def _unpacked(inputs: Any) -> _Pair | Exception:
    try:
        return _unpack(inputs)
    except InvalidRequestError as exc:
        return exc


def _sound(pairs: list[_Pair | Exception]) -> list[_Pair]:
    return [pair for pair in pairs if not isinstance(pair, Exception)]


def _in_places(
    pairs: list[_Pair | Exception], ranked: list[list[Document] | Exception]
) -> list[Exception | list[Document]]:
    """Put the errors of inputs that were not understood between the others' answers."""
    answers = iter(ranked)
    return [pair if isinstance(pair, Exception) else next(answers) for pair in pairs]


def _unpack(inputs: Any) -> _Pair:
    try:
        return inputs["query"], inputs["documents"]
    except (KeyError, TypeError) as exc:
        got = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        msg = f'the input must be {{"query": str, "documents": [Document, ...]}}, but got {got}'
        raise InvalidRequestError(msg) from exc
