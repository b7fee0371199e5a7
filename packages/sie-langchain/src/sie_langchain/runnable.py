"""`RerankRunnable`: what `SIEReranker.as_runnable` gives; it ranks a batch's queries together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableFieldSpec, RunnableConfig, RunnableLambda
from typing_extensions import TypedDict  # pydantic refuses that of `typing` below Python 3.12

from sie_core.deadline import check_timeout_seconds
from sie_core.errors import InvalidRequestError
from sie_langchain.overrides import RerankOverrides, check_overrides

if TYPE_CHECKING:
    from sie_langchain.reranker import SIEReranker


CONFIG_KEY = "rerank"
"""Where a config's `configurable` has what a call says otherwise than the component."""

_NO_TIME_MS = 1e-3
"""The deadline of inputs that are ranked when theirs has passed: they come back unscored."""


class RerankInput(TypedDict):
    """What the runnable takes."""

    query: str
    documents: Sequence[Document]


class RerankRunnable(RunnableLambda[RerankInput, list[Document]]):
    """From `{"query": str, "documents": [Document, ...]}` to documents, best first.

    `batch` and `abatch` rank all queries at once, which then share batches of the model. Each is a
    run of its own; `max_concurrency` has no meaning here. A call's config may say otherwise than
    the component: `config={"configurable": {"rerank": {"top_n": 3, "max_latency_ms": 200}}}`, see
    `RerankOverrides`. Inputs with different ones are ranked one group after the other, and all
    deadlines count from the start of the batch.

    Args:
        reranker: Whose settings hold, also those assigned later.
    """

    def __init__(self, reranker: SIEReranker) -> None:
        def rerank_documents(inputs: RerankInput, config: RunnableConfig) -> list[Document]:
            query, documents = _unpack(inputs)
            callbacks, overrides = config.get("callbacks"), _overrides(config)
            return reranker.compress_documents(documents, query, callbacks, **overrides)

        async def arerank_documents(inputs: RerankInput, config: RunnableConfig) -> list[Document]:
            query, documents = _unpack(inputs)
            callbacks, overrides = config.get("callbacks"), _overrides(config)
            return await reranker.acompress_documents(documents, query, callbacks, **overrides)

        super().__init__(rerank_documents, arerank_documents, name="rerank_documents")
        self._reranker = reranker

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What a config may hold for it."""
        return [
            ConfigurableFieldSpec(
                id=CONFIG_KEY,
                annotation=RerankOverrides | None,
                name="Reranking",
                description="What this call says otherwise than the component.",
                default=None,
            )
        ]

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
        begun_at = monotonic()

        def rank_all(
            inputs: list[RerankInput],
            run_manager: list[Any],  # noqa: ARG001  LangChain looks for the names
            config: list[RunnableConfig],
        ) -> list[Exception | list[Document]]:
            asked = list(map(_asked, inputs, config))
            answers: list[Any] = list(asked)
            for overrides, pairs in _alike(asked):
                left = self._with_time_left(overrides, begun_at)
                ranked = self._reranker.compress_many(list(pairs.values()), **left)
                for place, documents in zip(pairs, ranked, strict=True):
                    answers[place] = documents
            return answers

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
        begun_at = monotonic()

        async def rank_all(
            inputs: list[RerankInput],
            run_manager: list[Any],  # noqa: ARG001  LangChain looks for the names
            config: list[RunnableConfig],
        ) -> list[Exception | list[Document]]:
            asked = list(map(_asked, inputs, config))
            answers: list[Any] = list(asked)
            for overrides, pairs in _alike(asked):
                left = self._with_time_left(overrides, begun_at)
                ranked = await self._reranker.acompress_many(list(pairs.values()), **left)
                for place, documents in zip(pairs, ranked, strict=True):
                    answers[place] = documents
            return answers

        return await self._abatch_with_config(
            rank_all, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    def _with_time_left(self, overrides: RerankOverrides, begun_at: float) -> RerankOverrides:
        """Count a deadline from when the batch began: groups before this one took of it."""
        latency_ms = overrides.get("max_latency_ms") or self._reranker.max_latency_ms
        if latency_ms is None:
            return overrides
        check_timeout_seconds(latency_ms, name="max_latency_ms")  # it may have been assigned
        passed_ms = 1000 * (monotonic() - begun_at)
        return {**overrides, "max_latency_ms": max(latency_ms - passed_ms, _NO_TIME_MS)}


_Pair = tuple[str, Sequence[Document]]
_Asked = tuple[_Pair, RerankOverrides]


def _asked(inputs: Any, config: RunnableConfig) -> _Asked | Exception:
    """Read one input and its config; what is wrong with them stands in their place."""
    try:
        return _unpack(inputs), _overrides(config)
    except InvalidRequestError as exc:
        return exc


def _alike(asked: list[_Asked | Exception]) -> list[tuple[RerankOverrides, dict[int, _Pair]]]:
    """Put together by their places what is ranked together: inputs with the same overrides."""
    groups: list[tuple[RerankOverrides, dict[int, _Pair]]] = []
    for place, one in enumerate(asked):
        if isinstance(one, Exception):
            continue
        pair, overrides = one
        for known, pairs in groups:
            if known == overrides:
                pairs[place] = pair
                break
        else:
            groups.append((overrides, {place: pair}))
    return groups


def _overrides(config: RunnableConfig) -> RerankOverrides:
    """Return what a call's config says of the reranking.

    Raises:
        InvalidRequestError: It is no mapping, or names what is unknown.
    """
    given = (config.get("configurable") or {}).get(CONFIG_KEY) or {}
    if not isinstance(given, Mapping):
        msg = f'configurable["{CONFIG_KEY}"] must be a mapping, but got {type(given).__name__}'
        raise InvalidRequestError(msg)
    check_overrides(given)
    return cast("RerankOverrides", dict(given))


def _unpack(inputs: Any) -> _Pair:
    """Take an input apart.

    Raises:
        InvalidRequestError: It has another shape.
    """
    try:
        query, documents = inputs["query"], inputs["documents"]
    except (KeyError, TypeError) as exc:
        got = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise _wrong_input(got) from exc
    if isinstance(documents, str) or not isinstance(documents, Sequence):
        got = f"documents={documents!r:.80}"
        raise _wrong_input(got)
    others = {type(it).__name__ for it in documents if not isinstance(it, Document)}
    if others:
        got = f"documents with {', '.join(sorted(others))} among them"
        raise _wrong_input(got)
    return query, documents


def _wrong_input(got: object) -> InvalidRequestError:
    msg = f'the input must be {{"query": str, "documents": [Document, ...]}}, but got {got}'
    return InvalidRequestError(msg)
