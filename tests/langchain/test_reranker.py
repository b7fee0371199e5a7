"""`SIEReranker` in LangChain's own constructs, over a client whose scores can be read off."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from sie_core.errors import InferenceError, InvalidRequestError
from sie_langchain import RerankInput, SIEReranker

QUERY = "paris capital france"
HF = "hf_not-to-be-seen"
Compress = Callable[[SIEReranker, Sequence[Document], str], Awaitable[list[Document]]]


@pytest.fixture
def documents() -> list[Document]:
    """Documents with one, three, none and two of the query's words."""
    return [
        Document(id="one", page_content="paris in spring", metadata={"page": 1}),
        Document(id="three", page_content="paris is the capital of france", metadata={"page": 2}),
        Document(id="none", page_content="bananas are yellow", metadata={"page": 3}),
        Document(id="two", page_content="the capital of france", metadata={"page": 4}),
    ]


@pytest.fixture
def reranker(client: Any, async_client: Any) -> SIEReranker:
    """A reranker with a client for each way to call."""
    return SIEReranker(client=client, async_client=async_client)


@pytest.fixture(params=["sync", "async"])
def compress(request: pytest.FixtureRequest) -> Compress:
    """Both ways to call, behind one."""

    async def call(
        reranker: SIEReranker, documents: Sequence[Document], query: str
    ) -> list[Document]:
        if request.param == "sync":
            return reranker.compress_documents(documents, query)
        return await reranker.acompress_documents(documents, query)

    return call


class Listed(BaseRetriever):
    """A retriever that finds the first `k` of a list, whatever the query."""

    documents: list[Document]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        del query, run_manager
        return self.documents[:k]


class Recorder(BaseCallbackHandler):
    """Remember the runs of chains and retrievers: their names, parents, inputs and ends."""

    def __init__(self) -> None:
        self.names: dict[UUID, str] = {}
        self.parents: dict[str, str | None] = {}
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.errors: dict[str, BaseException] = {}

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: dict[str, Any],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the start of a run."""
        del serialized
        name = kwargs["name"]
        self.names[run_id] = name
        self.parents[name] = self.names.get(parent_run_id) if parent_run_id else None
        self.inputs[name] = inputs

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the start of a retriever's run."""
        self.on_chain_start(
            serialized, {"query": query}, run_id=run_id, parent_run_id=parent_run_id, **kwargs
        )

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the end of a run."""
        del kwargs
        self.outputs[self.names[run_id]] = outputs

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the failure of a run."""
        del kwargs
        self.errors[self.names[run_id]] = error


async def test_documents_come_back_best_first_with_their_scores(
    reranker: SIEReranker, documents: list[Document], compress: Compress
) -> None:
    """The order is the scores', and each document has its own score, id, text and metadata."""
    ranked = await compress(reranker, documents, QUERY)
    assert [document.id for document in ranked] == ["three", "two", "one", "none"]
    assert [document.metadata for document in ranked] == [
        {"page": 2, "relevance_score": 3.0},
        {"page": 4, "relevance_score": 2.0},
        {"page": 1, "relevance_score": 1.0},
        {"page": 3, "relevance_score": 0.0},
    ]
    assert ranked[0].page_content == "paris is the capital of france"
    assert all(type(document.metadata["relevance_score"]) is float for document in ranked)


async def test_the_documents_given_stay_as_they_are(
    reranker: SIEReranker, documents: list[Document], compress: Compress
) -> None:
    """Neither the call nor a change to its result reaches the caller's documents."""
    before = copy.deepcopy(documents)
    for document in await compress(reranker, documents, QUERY):
        document.metadata["added"] = True
    assert documents == before


async def test_a_stale_score_never_wins(reranker: SIEReranker, compress: Compress) -> None:
    """A relevance_score from before is replaced, and removed where there is no new one."""
    stale = {"relevance_score": 99.0}
    documents = [
        Document(page_content=" ", metadata=stale),
        Document(page_content="paris", metadata=stale),
    ]
    ranked = await compress(reranker, documents, QUERY)
    assert [document.metadata for document in ranked] == [{"relevance_score": 1.0}, {}]


async def test_a_subclass_of_document_keeps_its_own_fields(
    reranker: SIEReranker, compress: Compress
) -> None:
    """A copy is of the same class, with every field."""

    class Page(Document):
        number: int

    [ranked] = await compress(reranker, [Page(page_content="paris", number=7)], QUERY)
    assert isinstance(ranked, Page)
    assert ranked.number == 7


async def test_top_n_and_threshold_cut(
    client: Any, async_client: Any, documents: list[Document], compress: Compress
) -> None:
    """A document stays if it is among the first top_n and its score is at the threshold."""
    both = {"client": client, "async_client": async_client}
    first = await compress(SIEReranker(top_n=1, **both), documents, QUERY)
    assert [document.id for document in first] == ["three"]
    above = await compress(SIEReranker(score_threshold=2, **both), documents, QUERY)
    assert [document.id for document in above] == ["three", "two"]


async def test_settings_assigned_later_take_effect(
    reranker: SIEReranker, documents: list[Document], compress: Compress
) -> None:
    """What goes with each call may be changed between calls, back to None too."""
    reranker.top_n = 2
    assert len(await compress(reranker, documents, QUERY)) == 2
    reranker.top_n = None
    assert len(await compress(reranker, documents, QUERY)) == 4


async def test_no_documents_give_no_documents(reranker: SIEReranker, compress: Compress) -> None:
    """An empty list is answered with an empty list."""
    assert await compress(reranker, [], QUERY) == []


def test_settings_reach_the_client(client: Any, documents: list[Document]) -> None:
    """Options, instruction, score space and machine profile go with the call."""
    reranker = SIEReranker(
        client=client,
        instruction="Find cities",
        score_space="probability",
        options={"profile": "fast"},
        max_length=64,
        batch_size=2,
        gpu="l4",
    )
    reranker.compress_documents(documents, QUERY)
    assert client.arguments == [
        {
            "instruction": "Find cities",
            "options": {
                "profile": "fast",
                "max_length": 64,
                "batch_size": 2,
                "score_space": "probability",
            },
            "gpu": "l4",
        }
    ]


async def test_an_async_call_stays_on_the_event_loop(
    reranker: SIEReranker, client: Any, async_client: Any, documents: list[Document]
) -> None:
    """The async client is awaited where the caller is, and the sync one is left alone."""
    await reranker.acompress_documents(documents, QUERY)
    assert async_client.threads == [threading.get_ident()]
    assert client.threads == []


def test_names_of_the_existing_package_are_accepted(client: Any) -> None:
    """top_k and timeout_s mean top_n and timeout_seconds."""
    assert SIEReranker(top_k=3, client=client).top_n == 3  # type: ignore[call-arg]
    assert SIEReranker(top_k=3, top_n=3, client=client).top_n == 3  # type: ignore[call-arg]
    assert SIEReranker(timeout_s=2.5).timeout_seconds == 2.5  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 3, "top_n": 4}, "top_n=4 and top_k=3 contradict"),
        ({"timeout_s": 1, "timeout_seconds": 2}, "timeout_seconds=2 and timeout_s=1 contradict"),
        ({"top_n": 0}, "top_n must be at least 1, but got 0"),
        ({"top_k": -1}, "top_n must be at least 1, but got -1"),
        ({"score_threshold": float("nan")}, "score_threshold must be a finite number"),
        ({"score_space": "percent"}, "score_space"),
        ({"top_m": 3}, "top_m"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    """A ValueError names the argument; nothing is swallowed."""
    with pytest.raises(ValueError, match=message):
        SIEReranker(**arguments)


def test_the_token_is_never_shown() -> None:
    """Not in a repr, a dump, a trace of the fields, or the message about another argument."""
    reranker = SIEReranker(token=HF)  # type: ignore[arg-type]  # pydantic wraps it
    assert HF not in repr(reranker)
    assert "token" not in reranker.model_dump()
    assert HF not in reranker.model_dump_json()
    with pytest.raises(ValidationError) as caught:
        SIEReranker(token=HF, top_n=0, top_m=1)  # type: ignore[arg-type, call-arg]
    assert HF not in str(caught.value)
    with pytest.raises(ValidationError) as caught:
        SIEReranker(token=HF, top_n=0)  # type: ignore[arg-type]
    assert HF not in str(caught.value)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_work_like_the_original(
    client: Any, documents: list[Document], duplicate: Callable[[SIEReranker], SIEReranker]
) -> None:
    """Deepcopy and pickle keep the settings, the token among them."""
    original = SIEReranker(client=client, top_n=2, instruction="Find", token=HF)  # type: ignore[arg-type]
    duplicated = duplicate(original)
    assert duplicated.compress_documents(documents, QUERY) == original.compress_documents(
        documents, QUERY
    )
    assert duplicated.instruction == "Find"
    assert duplicated.token == original.token


def test_a_changed_copy_has_its_own_backend(client: Any, documents: list[Document]) -> None:
    """model_copy(update=...) takes effect, where an assignment is refused."""
    original = SIEReranker(client=client)
    changed = original.model_copy(update={"options": {"profile": "fast"}})
    changed.compress_documents(documents, QUERY)
    original.compress_documents(documents, QUERY)
    assert client.arguments == [{"options": {"profile": "fast"}}, {}]
    with pytest.raises(ValidationError, match="frozen"):
        original.model = "other"


def test_lifecycle_calls_may_be_repeated(reranker: SIEReranker, documents: list[Document]) -> None:
    """close() twice is fine, and a call after it works."""
    reranker.warm_up()
    reranker.close()
    reranker.close()
    assert len(reranker.compress_documents(documents, QUERY)) == 4


async def test_async_lifecycle_calls_may_be_repeated(
    reranker: SIEReranker, documents: list[Document]
) -> None:
    """The same for the async ones."""
    await reranker.awarm_up()
    await reranker.aclose()
    await reranker.aclose()
    assert len(await reranker.acompress_documents(documents, QUERY)) == 4


async def test_it_compresses_inside_a_retriever(
    reranker: SIEReranker, documents: list[Document]
) -> None:
    """ContextualCompressionRetriever and a compressor pipeline use it, sync and async."""
    pipeline = DocumentCompressorPipeline(transformers=[reranker])
    for compressor in (reranker, pipeline):
        retriever = ContextualCompressionRetriever(
            base_compressor=compressor, base_retriever=Listed(documents=documents)
        )
        for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY)):
            assert [document.id for document in found] == ["three", "two", "one", "none"]


async def test_each_call_is_a_run_below_the_callers(
    client: Any, async_client: Any, documents: list[Document]
) -> None:
    """A tracer sees query, model, top_n and counts go in, and counts, scores and usage come out."""
    reranker = SIEReranker(model="m", client=client, async_client=async_client, top_n=2)
    retriever = ContextualCompressionRetriever(
        base_compressor=reranker, base_retriever=Listed(documents=documents)
    )
    sync_runs, async_runs = Recorder(), Recorder()
    retriever.invoke(QUERY, {"callbacks": [sync_runs]})
    await retriever.ainvoke(QUERY, {"callbacks": [async_runs]})
    for runs in (sync_runs, async_runs):
        assert runs.parents["SIEReranker"] == "ContextualCompressionRetriever"
        assert runs.inputs["SIEReranker"] == {
            "query": QUERY,
            "model": "m",
            "top_n": 2,
            "num_documents": 4,
        }
        assert runs.outputs["SIEReranker"] == {
            "num_documents": 2,
            "scores": [3.0, 2.0],
            "usage": {"input_tokens": 7},
        }


async def test_a_failed_call_ends_its_run_with_the_error(
    reranker: SIEReranker, client: Any, async_client: Any, documents: list[Document]
) -> None:
    """The error reaches the handlers and then the caller, unchanged."""
    client.error = async_client.error = error = InferenceError("out of order")
    runs = Recorder()
    with pytest.raises(InferenceError):
        reranker.compress_documents(documents, QUERY, callbacks=[runs])
    assert runs.errors == {"SIEReranker": error}
    runs = Recorder()
    with pytest.raises(InferenceError):
        await reranker.acompress_documents(documents, QUERY, callbacks=[runs])
    assert runs.errors == {"SIEReranker": error}


async def test_as_a_runnable_it_takes_part_in_a_chain(
    reranker: SIEReranker, client: Any, async_client: Any, documents: list[Document]
) -> None:
    """It pipes, awaits natively, and its call is a run below the runnable's."""

    def ids(found: list[Document]) -> list[str | None]:
        return [document.id for document in found]

    chain = reranker.as_runnable() | RunnableLambda(ids)
    inputs: RerankInput = {"query": QUERY, "documents": documents}
    expected = ["three", "two", "one", "none"]
    runs = Recorder()
    assert chain.invoke(inputs, {"callbacks": [runs]}) == expected
    assert runs.parents["SIEReranker"] == "rerank_documents"
    assert len(client.queries) == 1
    runs = Recorder()
    assert await chain.ainvoke(inputs, {"callbacks": [runs]}) == expected
    assert runs.parents["SIEReranker"] == "rerank_documents"
    assert async_client.threads == [threading.get_ident()]
    assert chain.batch([inputs, inputs]) == [expected, expected]


@pytest.mark.parametrize("inputs", [{"query": QUERY}, [QUERY]])
def test_a_runnable_says_what_it_takes(reranker: SIEReranker, inputs: Any) -> None:
    """Input of another shape is an error that shows the right one."""
    with pytest.raises(InvalidRequestError, match="the input must be"):
        reranker.as_runnable().invoke(inputs)


def test_importing_it_imports_no_torch() -> None:
    """A process that only imports the package does not pay for torch or transformers."""
    program = "import json, sys, sie_langchain; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    modules = json.loads(output)
    assert "sie_langchain.reranker" in modules
    assert not {"torch", "transformers"} & set(modules)


class TestStandardRetrieverBehaviour(RetrieversIntegrationTests):
    """LangChain's own tests of retrievers, over one that reranks."""

    @pytest.fixture(autouse=True)
    def _given(self, client: Any, documents: list[Document]) -> None:
        self._client, self._documents = client, documents

    @property
    def retriever_constructor(self) -> Any:
        """Make a retriever that finds everything and reranks it to `k`."""

        def construct(k: int | None = None) -> BaseRetriever:
            return ContextualCompressionRetriever(
                base_compressor=SIEReranker(client=self._client, top_n=k),
                base_retriever=Listed(documents=self._documents),
            )

        return construct

    @property
    def retriever_query_example(self) -> str:
        """A query with answers."""
        return QUERY
