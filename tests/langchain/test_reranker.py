"""`SIEReranker` in LangChain's own constructs, over a client whose scores can be read off."""

from __future__ import annotations

import copy
import json
import logging
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
from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from sie_core.errors import AuthenticationError, InferenceError, InvalidRequestError
from sie_core.fallback import Backend
from sie_langchain import RerankInput, SIEReranker

QUERY = "paris capital france"
HF = "hf_not-to-be-seen"
KEY = "key-not-to-be-seen"
NOWHERE = "http://127.0.0.1:9"
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
        lora="owner/legal",
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
                "lora": "owner/legal",
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


@pytest.mark.parametrize("name", ["token", "api_key"])
def test_a_secret_is_never_shown(name: str) -> None:
    """Not in a repr, a dump, a trace of the fields, or the message about another argument."""
    secret: dict[str, Any] = {name: HF}
    reranker = SIEReranker(base_url=NOWHERE, fallback="retrieval_order", **secret)
    shown = [repr(reranker), str(reranker), reranker.model_dump_json(), dumps(reranker)]
    assert HF not in "".join(shown) + str(reranker.model_dump()) + repr(vars(reranker))
    assert name not in reranker.model_dump()
    for wrong in ({"top_n": 0, "top_m": 1}, {"top_n": 0}, {"base_url": "nowhere"}):
        with pytest.raises(ValidationError) as caught:
            SIEReranker(**secret, **wrong)
        assert HF not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_work_like_the_original(
    client: Any, documents: list[Document], duplicate: Callable[[SIEReranker], SIEReranker]
) -> None:
    """Deepcopy and pickle keep the settings."""
    original = SIEReranker(client=client, top_n=2, instruction="Find", fallback="retrieval_order")
    duplicated = duplicate(original)
    assert duplicated.compress_documents(documents, QUERY) == original.compress_documents(
        documents, QUERY
    )
    assert duplicated.instruction == "Find"
    assert duplicated.fallback == "retrieval_order"


async def test_a_secret_goes_to_its_server_and_into_copies_but_no_pickle(
    guard: Any, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies send the key they were given; who unpickles one sends the key of its own process."""
    original = SIEReranker(base_url=guard.address, api_key=KEY, token=HF)  # type: ignore[arg-type]
    state = pickle.dumps(original)
    assert KEY.encode() not in state
    assert HF.encode() not in state
    monkeypatch.setenv("SIE_API_KEY", "environment")
    unpickled = pickle.loads(state)
    assert (unpickled.api_key, unpickled.token) == (None, None)
    assert original.token is not None
    rerankers = [original, copy.deepcopy(original), copy.copy(original), unpickled]
    for reranker in rerankers:
        with pytest.raises(AuthenticationError):
            reranker.compress_documents(documents, QUERY)
        with pytest.raises(AuthenticationError):
            await reranker.acompress_documents(documents, QUERY)
        await reranker.aclose()
    assert guard.keys == [f"Bearer {KEY}"] * 6 + ["Bearer environment"] * 2
    assert [reranker.token for reranker in rerankers[:3]] == [original.token] * 3


async def test_a_key_that_a_server_repeats_is_not_shown(
    guard: Any, documents: list[Document], compress: Compress, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the error, the marks, the log, nor in what a tracer sees."""
    caplog.set_level(logging.DEBUG)
    runs = Recorder()
    arguments = {"base_url": guard.address, "api_key": KEY}
    strict = SIEReranker(**arguments)
    with pytest.raises(AuthenticationError) as caught:
        strict.compress_documents(documents, QUERY, callbacks=[runs])
    lenient = SIEReranker(**arguments, fallback="retrieval_order")
    lenient.compress_documents(documents, QUERY, callbacks=[runs])
    ranked = await compress(lenient, documents, QUERY)
    for reranker in (strict, lenient):
        await reranker.aclose()
    assert guard.keys == [f"Bearer {KEY}"] * 3
    assert "nobody knows" in ranked[0].metadata["rerank_reason"]
    shown = [caught.value, runs.inputs, runs.outputs, runs.errors, ranked, caplog.text]
    assert KEY not in repr(shown) + str(caught.value)


async def test_a_degraded_answer_says_so_until_a_complete_one(
    client: Any, async_client: Any, documents: list[Document], compress: Compress
) -> None:
    """Another model's scores come with marks; the next stage removes them if it is complete."""
    spare = Backend(client=client, model="small", name="spare")
    degraded = SIEReranker(base_url=NOWHERE, fallback=spare, score_threshold=2)
    ranked = await compress(degraded, documents, QUERY)
    await degraded.aclose()
    assert [document.metadata["relevance_score"] for document in ranked] == [3, 2, 1, 0]
    marks = {key: value for key, value in ranked[0].metadata.items() if key.startswith("rerank_")}
    assert NOWHERE in marks.pop("rerank_reason")
    assert marks == {"rerank_status": "degraded", "rerank_served_by": "spare"}
    complete = SIEReranker(client=client, async_client=async_client)
    again = await compress(complete, ranked, QUERY)
    assert again == await compress(complete, documents, QUERY)
    assert set(again[0].metadata) == {"page", "relevance_score"}
    assert all("rerank_status" in document.metadata for document in ranked)


async def test_retrieval_order_leaves_no_score_from_before(
    documents: list[Document], compress: Compress
) -> None:
    """Where nothing was scored no relevance_score stands, and the order is the one given."""
    reranker = SIEReranker(base_url=NOWHERE, fallback="retrieval_order")
    scored = [
        Document(
            id=document.id, page_content=document.page_content, metadata={"relevance_score": 9}
        )
        for document in documents
    ]
    ranked = await compress(reranker, scored, QUERY)
    await reranker.aclose()
    assert [document.id for document in ranked] == ["one", "three", "none", "two"]
    assert all("relevance_score" not in document.metadata for document in ranked)
    assert {document.metadata["rerank_served_by"] for document in ranked} == {"retrieval_order"}


async def test_clients_of_the_official_package_are_accepted(
    official_client: Any, official_async_client: Any, documents: list[Document]
) -> None:
    """They are called with what they take, alone and in a fallback, and awaited natively."""
    reranker = SIEReranker(
        client=official_client,
        async_client=official_async_client,
        options={"profile": "fast"},
        gpu="l4",
    )
    expected = ["three", "two", "one", "none"]
    found = reranker.compress_documents(documents, QUERY)
    assert [document.id for document in found] == expected
    found = await reranker.acompress_documents(documents, QUERY)
    assert [document.id for document in found] == expected
    assert official_async_client.inner.threads == [threading.get_ident()]
    fallen = SIEReranker(
        base_url=NOWHERE, fallback=official_client, timeout_seconds=30, wait_for_capacity=True
    )
    found = fallen.compress_documents(documents, QUERY)
    assert [document.id for document in found] == expected
    fallen.close()
    given = {"instruction": None, "options": {"profile": "fast"}, "gpu": "l4"}
    nothing = {"instruction": None, "options": None, "gpu": None}
    assert official_client.inner.arguments == [given, nothing]


def test_a_slow_client_is_hedged(client: Any, documents: list[Document]) -> None:
    """After hedge_after_ms the next is asked too, and the first answer counts."""
    finish = threading.Event()

    class Slow:
        def score(self, model: str, _: Any, items: list[Any]) -> dict[str, Any]:
            finish.wait(20)
            scores = [{"item_id": item["id"], "score": 0.0, "rank": 0} for item in items]
            return {"model": model, "scores": scores}

    reranker = SIEReranker(client=Slow(), fallback=client, hedge_after_ms=1)
    runs = Recorder()
    ranked = reranker.compress_documents(documents, QUERY, callbacks=[runs])
    finish.set()
    assert [document.id for document in ranked] == ["three", "two", "one", "none"]
    assert runs.outputs["SIEReranker"]["served_by"] == "OverlapClient"
    assert runs.outputs["SIEReranker"]["status"] == "complete"


def test_a_dump_describes_the_backend_but_holds_no_clients(client: Any) -> None:
    """What can be written down can be read again; a fallback with clients is left out."""
    settings: dict[str, Any] = {
        "base_url": "http://gpu-box:8080",
        "fallback": ["http://spare:8080", "local"],
        "hedge_after_ms": 50.0,
        "wait_for_capacity": True,
        "timeout_seconds": 2.5,
        "long_documents": "max_passage",
        "passage_length": 200,
        "passage_overlap": 32,
        "max_passages": 8,
        "meta_fields": ["title"],
        "meta_template": "{name}: {value}",
        "document_prefix": "passage: ",
    }
    original = SIEReranker(**settings)
    for dumped in (original.model_dump(), json.loads(original.model_dump_json())):
        assert dumped == dumped | settings
        assert SIEReranker(**dumped).model_dump() == original.model_dump()
    for fallback in (client, ["local", client], Backend(client=client)):
        reranker = SIEReranker(base_url=NOWHERE, fallback=fallback)
        assert reranker.model_dump()["fallback"] is None
        assert json.loads(reranker.model_dump_json())["fallback"] is None
    assert original._reranker._remote_arguments["wait_for_capacity"] is True


def test_a_changed_copy_has_its_own_backend(client: Any, documents: list[Document]) -> None:
    """model_copy(update=...) takes effect, where an assignment is refused."""
    original = SIEReranker(client=client)
    changed = original.model_copy(update={"options": {"profile": "fast"}})
    changed.compress_documents(documents, QUERY)
    original.compress_documents(documents, QUERY)
    assert client.arguments == [{"options": {"profile": "fast"}}, {}]
    with pytest.raises(ValidationError, match="frozen"):
        original.model = "other"


def test_a_copy_is_changed_by_the_constructor_s_names() -> None:
    """Aliases and a key as a plain string are taken; the key is shown no more than the other."""
    original = SIEReranker(base_url=NOWHERE)
    changed = original.model_copy(update={"top_k": 2, "timeout_s": 5, "api_key": KEY})
    assert (changed.top_n, changed.timeout_seconds) == (2, 5)
    assert changed._reranker.timeout_seconds == 5
    assert changed._reranker._remote_arguments["api_key"] == KEY
    assert KEY not in repr(changed) + repr(vars(changed)) + changed.model_dump_json()
    assert (original.top_n, original.timeout_seconds, original.api_key) == (None, None, None)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"top_m": 2}, "SIEReranker has no field 'top_m'"),
        ({"top_k": 1, "top_n": 2}, "top_n=2 and top_k=1 contradict"),
        ({"top_k": 0}, "top_n must be at least 1, but got 0"),
        ({"max_latency_ms": -1}, "max_latency_ms must be a positive number"),
    ],
)
def test_a_wrong_change_of_a_copy_is_refused(update: dict[str, Any], message: str) -> None:
    """As the constructor refuses it."""
    with pytest.raises(InvalidRequestError, match=message):
        SIEReranker().model_copy(update=update)


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
            "status": "complete",
            "served_by": "OverlapClient",
        }


async def test_a_trace_says_who_answered_and_why(documents: list[Document], client: Any) -> None:
    """A degraded answer, and a complete one that the first backend did not give, show in a run."""
    for fallback, status in (("retrieval_order", "degraded"), (client, "complete")):
        reranker = SIEReranker(base_url=NOWHERE, fallback=fallback)
        sync_runs, async_runs = Recorder(), Recorder()
        reranker.compress_documents(documents, QUERY, callbacks=[sync_runs])
        await reranker.acompress_documents(documents, QUERY, callbacks=[async_runs])
        await reranker.aclose()
        for runs in (sync_runs, async_runs):
            outputs = runs.outputs["SIEReranker"]
            assert outputs["status"] == status
            assert outputs["served_by"] in ("retrieval_order", "OverlapClient")
            assert NOWHERE in outputs["reason"]


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


async def test_a_config_overrides_one_call(
    reranker: SIEReranker, documents: list[Document]
) -> None:
    """Under `rerank` in `configurable`, alone and in a batch, where each input has its own."""
    runnable = reranker.as_runnable()
    inputs: Any = {"query": "berlin", "documents": documents}
    configs: list[Any] = [{"configurable": {"rerank": {"top_n": n}, "other": 1}} for n in (1, 2)]
    assert len(runnable.invoke(inputs, configs[0])) == 1
    assert len(await runnable.ainvoke(inputs, configs[1])) == 2
    whole = runnable.invoke(inputs)
    for ranked in (
        runnable.batch([inputs] * 3, [*configs, {}]),
        await runnable.abatch([inputs] * 3, [*configs, {}]),
    ):
        assert ranked == [whole[:1], whole[:2], whole]
    assert [spec.id for spec in runnable.config_specs] == ["rerank"]


async def test_a_wrong_config_fails_its_own_call(
    reranker: SIEReranker, documents: list[Document]
) -> None:
    """A name that nobody knows is not passed over, and the rest of a batch is ranked."""
    runnable = reranker.as_runnable()
    inputs: Any = {"query": "berlin", "documents": documents}
    wrong: Any = {"configurable": {"rerank": {"top_m": 1}}}
    with pytest.raises(InvalidRequestError, match="unknown override 'top_m'"):
        runnable.invoke(inputs, wrong)
    ranked = runnable.batch([inputs] * 2, [wrong, {}], return_exceptions=True)
    assert isinstance(ranked[0], InvalidRequestError)
    assert ranked[1] == runnable.invoke(inputs)
    with pytest.raises(InvalidRequestError, match="must be a mapping"):
        await runnable.ainvoke(inputs, {"configurable": {"rerank": 3}})


@pytest.mark.parametrize(
    ("changed", "overrides", "complaint"),
    [
        ({}, {"max_latency_ms": -1}, "max_latency_ms must be a positive number"),
        ({}, {"score_threshold": float("nan")}, "score_threshold must be a finite number"),
        ({}, {"instruction": 3}, "instruction must be a string"),
        ({}, {"top_n": 0}, "top_n must be at least 1, but got 0"),
        ({"documents": None}, {}, "but got documents=None"),
        ({"documents": "text"}, {}, "but got documents='text'"),
        ({"documents": ["text", 3]}, {}, "but got documents with int, str among them"),
    ],
)
async def test_a_wrong_value_fails_its_own_input(
    reranker: SIEReranker,
    documents: list[Document],
    changed: dict[str, Any],
    overrides: dict[str, Any],
    complaint: str,
) -> None:
    """The rest of a batch is ranked."""
    runnable = reranker.as_runnable()
    inputs: Any = {"query": QUERY, "documents": documents}
    wrong: Any = inputs | changed
    configs: list[Any] = [{}, {"configurable": {"rerank": overrides}}]
    expected = runnable.invoke(inputs)
    for ranked in (
        runnable.batch([inputs, wrong], configs, return_exceptions=True),
        await runnable.abatch([inputs, wrong], configs, return_exceptions=True),
    ):
        assert ranked[0] == expected
        assert isinstance(ranked[1], InvalidRequestError)
        assert complaint in str(ranked[1])
    with pytest.raises(InvalidRequestError):
        runnable.batch([inputs, wrong], configs)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_deadline_counts_from_the_start_of_the_batch(
    documents: list[Document], monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """Inputs with other overrides have what those before them left; at last nobody is asked."""
    seconds = 0.0
    bounds: list[float] = []

    class Slow:
        """Take 40 seconds for a call."""

        def score(
            self, model: str, _: Any, items: Sequence[Any], *, timeout_seconds: float
        ) -> dict[str, Any]:
            nonlocal seconds
            seconds += 40
            bounds.append(timeout_seconds)
            return {"model": model, "scores": [{"item_id": it["id"], "score": 1} for it in items]}

    monkeypatch.setattr("sie_langchain.runnable.monotonic", lambda: seconds)
    runnable = SIEReranker(client=Slow(), max_latency_ms=60_000).as_runnable()
    inputs: Any = {"query": QUERY, "documents": documents[:1]}
    configs: list[Any] = [{"configurable": {"rerank": {"top_n": n}}} for n in (1, 2, 3)]
    ranked = (
        await runnable.abatch([inputs] * 3, configs)
        if is_async
        else runnable.batch([inputs] * 3, configs)
    )
    assert len(bounds) == 2
    assert 50 < bounds[0] < 60
    assert 10 < bounds[1] < 20
    statuses = [found[0].metadata.get("rerank_status") for found in ranked]
    assert statuses == [None, None, "partial"]


def test_a_deadline_that_was_assigned_wrongly_is_refused_in_a_batch(
    reranker: SIEReranker, documents: list[Document]
) -> None:
    """It is no deadline of which nothing is left."""
    inputs: Any = {"query": QUERY, "documents": documents}
    reranker.max_latency_ms = -1
    with pytest.raises(InvalidRequestError, match="max_latency_ms must be a positive number"):
        reranker.as_runnable().batch([inputs])


def test_a_runnable_describes_itself(reranker: SIEReranker) -> None:
    """Its graph and schemas can be had, on every version of Python."""
    runnable = reranker.as_runnable()
    assert len(runnable.get_graph().nodes) == 3
    taken = runnable.get_input_schema().model_json_schema()
    assert {"query", "documents"} <= set(str(taken).replace("'", " ").split())
    configured = runnable.config_schema().model_json_schema()
    assert "max_latency_ms" in str(configured)


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
