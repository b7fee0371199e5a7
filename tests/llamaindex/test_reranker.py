"""`SIENodePostprocessor` in LlamaIndex's own constructs, over a client with readable scores."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import (
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

from sie_core import Item, LocalClient
from sie_core.errors import AuthenticationError, InferenceError, InvalidRequestError
from sie_core.fallback import Backend
from sie_llamaindex import SIENodePostprocessor, SIEQueryBundle
from sie_llamaindex.reranker import dispatcher

QUERY = "paris capital france"
HF = "hf_not-to-be-seen"
KEY = "key-not-to-be-seen"
NOWHERE = "http://127.0.0.1:9"
Postprocess = Callable[
    [SIENodePostprocessor, list[NodeWithScore], str], Awaitable[list[NodeWithScore]]
]


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    """Nodes with one, three, none and two of the query's words, in retrieval order."""
    texts = {
        "one": "paris in spring",
        "three": "paris is the capital of france",
        "none": "bananas are yellow",
        "two": "the capital of france",
    }
    return [
        NodeWithScore(
            node=TextNode(
                id_=id_,
                text=text,
                embedding=[float(i)],
                metadata={"page": i},
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")},
            ),
            score=0.9 - i / 10,
        )
        for i, (id_, text) in enumerate(texts.items())
    ]


@pytest.fixture
def reranker(client: Any, async_client: Any) -> SIENodePostprocessor:
    """A postprocessor with a client for each way to call."""
    return SIENodePostprocessor(client=client, async_client=async_client)


@pytest.fixture(params=["sync", "async"])
def postprocess(request: pytest.FixtureRequest) -> Postprocess:
    """Both ways to call, behind one."""

    async def call(
        reranker: SIENodePostprocessor, nodes: list[NodeWithScore], query: str
    ) -> list[NodeWithScore]:
        if request.param == "sync":
            return reranker.postprocess_nodes(nodes, query_str=query)
        return await reranker.apostprocess_nodes(nodes, query_str=query)

    return call


class EventRecorder(BaseEventHandler):
    """Remember the events of the newer of LlamaIndex's two systems."""

    events: list[BaseEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Note the event."""
        del kwargs
        self.events.append(event)


class CallbackRecorder(BaseCallbackHandler):
    """Remember the events of the older one."""

    def __init__(self) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self.starts: list[tuple[CBEventType, dict[str, Any]]] = []
        self.ends: list[tuple[CBEventType, dict[str, Any]]] = []

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Note the start."""
        del parent_id, kwargs
        self.starts.append((event_type, payload or {}))
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Note the end."""
        del event_id, kwargs
        self.ends.append((event_type, payload or {}))

    def start_trace(self, trace_id: str | None = None) -> None:
        """Traces are not looked at."""

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        """Traces are not looked at."""


@pytest.fixture
def events() -> Iterator[list[BaseEvent]]:
    """The events sent while the test runs."""
    recorder = EventRecorder()
    dispatcher.add_event_handler(recorder)
    yield recorder.events
    dispatcher.event_handlers.remove(recorder)


@pytest.fixture
def spans() -> Iterator[list[SimpleSpan]]:
    """The spans finished while the test runs."""
    handler = SimpleSpanHandler()
    dispatcher.add_span_handler(handler)
    yield handler.completed_spans
    dispatcher.span_handlers.remove(handler)


def ids_and_scores(nodes: list[NodeWithScore]) -> list[tuple[str, float | None]]:
    """What most tests compare."""
    return [(node.node_id, node.score) for node in nodes]


async def test_nodes_come_back_best_first_with_their_scores(
    reranker: SIENodePostprocessor, nodes: list[NodeWithScore], postprocess: Postprocess
) -> None:
    """The order is the scores', and each node is the one that was given, with every field."""
    ranked = await postprocess(reranker, nodes, QUERY)
    expected = [("three", 3.0), ("two", 2.0), ("one", 1.0), ("none", 0.0)]
    assert ids_and_scores(ranked) == expected
    given = {node.node_id: node.node for node in nodes}
    assert all(node.node is given[node.node_id] for node in ranked)


async def test_the_nodes_given_stay_as_they_are(
    client: Any, async_client: Any, nodes: list[NodeWithScore], postprocess: Postprocess
) -> None:
    """Neither scores nor metadata of the caller's nodes change, kept scores or not."""
    before = copy.deepcopy(nodes)
    for keep in (False, True):
        reranker = SIENodePostprocessor(
            client=client, async_client=async_client, keep_retrieval_score=keep
        )
        await postprocess(reranker, nodes, QUERY)
        assert nodes == before


async def test_the_retrieval_score_is_kept_out_of_every_text(
    client: Any, async_client: Any, nodes: list[NodeWithScore], postprocess: Postprocess
) -> None:
    """It stands in a copy's metadata, but not in what is embedded, prompted with or scored."""
    reranker = SIENodePostprocessor(
        client=client, async_client=async_client, keep_retrieval_score=True
    )
    best = (await postprocess(reranker, nodes, QUERY))[0].node
    assert best.metadata == {"page": 1, "retrieval_score": 0.8}
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert "retrieval_score" not in best.get_content(metadata_mode=mode)
    assert best.embedding == [1.0]
    assert best.source_node is not None
    assert best.source_node.node_id == "book"


async def test_an_unknown_retrieval_score_is_not_kept(
    client: Any, async_client: Any, postprocess: Postprocess
) -> None:
    """Where a retriever gave no score there is nothing to keep."""
    reranker = SIENodePostprocessor(
        client=client, async_client=async_client, keep_retrieval_score=True
    )
    nodes = [NodeWithScore(node=TextNode(text="paris"))]
    [ranked] = await postprocess(reranker, nodes, QUERY)
    assert ranked.metadata == {}


async def test_nodes_without_text_come_last_unscored(
    reranker: SIENodePostprocessor, client: Any, async_client: Any, postprocess: Postprocess
) -> None:
    """A blank node is not sent, even if it has metadata, and its old score does not stay."""
    nodes = [
        NodeWithScore(node=TextNode(id_="blank", text=" \n", metadata={"a": "paris"}), score=0.9),
        NodeWithScore(node=TextNode(id_="text", text="berlin"), score=0.1),
    ]
    ranked = await postprocess(reranker, nodes, QUERY)
    assert ids_and_scores(ranked) == [("text", 0.0), ("blank", None)]
    assert client.texts + async_client.texts == [["berlin"]]


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (MetadataMode.EMBED, "shown: a\n\ntext"),
        (MetadataMode.NONE, "text"),
        (MetadataMode.ALL, "shown: a\nhidden: b\n\ntext"),
    ],
)
def test_the_text_scored_has_the_metadata_asked_for(
    client: Any, mode: MetadataMode, text: str
) -> None:
    """By default what would be embedded is scored; metadata_mode changes that."""
    node = TextNode(
        text="text",
        metadata={"shown": "a", "hidden": "b"},
        excluded_embed_metadata_keys=["hidden"],
    )
    reranker = SIENodePostprocessor(client=client, metadata_mode=mode)
    reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert client.texts == [[text]]
    assert SIENodePostprocessor().metadata_mode is MetadataMode.EMBED


@pytest.mark.parametrize("blanks", ["", "\n", " \n "])
def test_the_best_passage_is_a_place_in_the_content(tiny_bert: Path, blanks: str) -> None:
    """Behind the metadata, though LlamaIndex strips what it puts together."""
    content = blanks + " ".join(f"river {i}" for i in range(200)) + blanks
    node = TextNode(text=content, metadata={"title": "berlin"})
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    options = {"long_documents": "max_passage"}
    reply = LocalClient().score(
        str(tiny_bert), Item(text=QUERY), [Item(id="0", text=text)], options=options
    )
    begin, end = reply["scores"][0]["span"]
    reranker = SIENodePostprocessor(model=str(tiny_bert), long_documents="max_passage")
    [ranked] = reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    place = ranked.node.metadata["best_passage"]
    assert content[slice(*place)] == text[begin:end].removeprefix("title: berlin\n\n")


async def test_top_n_and_threshold_cut(
    reranker: SIENodePostprocessor, nodes: list[NodeWithScore], postprocess: Postprocess
) -> None:
    """A node stays if it is among the first top_n and its score is at the threshold."""
    reranker.top_n = 1
    assert ids_and_scores(await postprocess(reranker, nodes, QUERY)) == [("three", 3.0)]
    reranker.top_n, reranker.score_threshold = None, 2.0
    ranked = await postprocess(reranker, nodes, QUERY)
    assert ids_and_scores(ranked) == [("three", 3.0), ("two", 2.0)]


def test_settings_reach_the_client(client: Any, nodes: list[NodeWithScore]) -> None:
    """Options, instruction, score space and machine profile go with the call."""
    reranker = SIENodePostprocessor(
        client=client,
        instruction="Find cities",
        score_space="probability",
        options={"profile": "fast"},
        max_length=64,
        batch_size=2,
        lora="owner/legal",
        gpu="l4",
    )
    reranker.postprocess_nodes(nodes, query_str=QUERY)
    options = {"profile": "fast", "max_length": 64, "batch_size": 2, "lora": "owner/legal"}
    options["score_space"] = "probability"
    assert client.arguments == [{"instruction": "Find cities", "options": options, "gpu": "l4"}]


async def test_an_async_call_stays_on_the_event_loop(
    reranker: SIENodePostprocessor, client: Any, async_client: Any, nodes: list[NodeWithScore]
) -> None:
    """The async client is awaited where the caller is, and the sync one is left alone."""
    await reranker.apostprocess_nodes(nodes, query_str=QUERY)
    assert async_client.threads == [threading.get_ident()]
    assert client.threads == []


async def test_a_missing_query_is_an_error(
    reranker: SIENodePostprocessor, nodes: list[NodeWithScore]
) -> None:
    """Without a query there is nothing to rank by: a ValueError says what to pass."""
    with pytest.raises(InvalidRequestError, match="pass query_bundle or query_str"):
        reranker.postprocess_nodes(nodes)
    with pytest.raises(InvalidRequestError, match="pass query_bundle or query_str"):
        await reranker.apostprocess_nodes(nodes)


async def test_both_event_systems_are_told(
    reranker: SIENodePostprocessor,
    nodes: list[NodeWithScore],
    postprocess: Postprocess,
    events: list[BaseEvent],
) -> None:
    """Start and end carry the query, the model, how many are wanted, and the nodes."""
    callbacks = CallbackRecorder()
    reranker.callback_manager = CallbackManager([callbacks])
    ranked = await postprocess(reranker, nodes, QUERY)
    [start] = [event for event in events if isinstance(event, ReRankStartEvent)]
    [end] = [event for event in events if isinstance(event, ReRankEndEvent)]
    assert (start.query, start.top_n, start.model_name) == (QUERY, 4, reranker.model)
    assert start.nodes == nodes
    assert end.nodes == ranked
    payload = {
        EventPayload.NODES: nodes,
        EventPayload.MODEL_NAME: reranker.model,
        EventPayload.QUERY_STR: QUERY,
        EventPayload.TOP_K: 4,
    }
    assert callbacks.starts == [(CBEventType.RERANKING, payload)]
    assert callbacks.ends == [(CBEventType.RERANKING, {EventPayload.NODES: ranked})]


async def test_every_start_has_an_end(
    *,
    reranker: SIENodePostprocessor,
    client: Any,
    async_client: Any,
    nodes: list[NodeWithScore],
    postprocess: Postprocess,
    events: list[BaseEvent],
) -> None:
    """With no nodes, and when the client fails, the end is sent all the same."""
    kinds = [ReRankStartEvent, ReRankEndEvent]
    assert await postprocess(reranker, [], QUERY) == []
    assert [type(event) for event in events if type(event) in kinds] == kinds
    events.clear()
    callbacks = CallbackRecorder()
    reranker.callback_manager = CallbackManager([callbacks])
    client.error = async_client.error = error = InferenceError("out of order")
    with pytest.raises(InferenceError):
        await postprocess(reranker, nodes, QUERY)
    assert [type(event) for event in events if type(event) in kinds] == kinds
    assert callbacks.ends == [(CBEventType.RERANKING, {EventPayload.EXCEPTION: error})]


async def test_both_ways_to_call_are_spans(
    reranker: SIENodePostprocessor,
    nodes: list[NodeWithScore],
    spans: list[SimpleSpan],
) -> None:
    """A tracer sees the async call as it sees the sync one."""
    reranker.postprocess_nodes(nodes, query_str=QUERY)
    await reranker.apostprocess_nodes(nodes, query_str=QUERY)
    names = [span.id_.split("-")[0] for span in spans]
    assert names == [
        "SIENodePostprocessor._postprocess_nodes",
        "SIENodePostprocessor._apostprocess_nodes",
    ]


def test_the_existing_package_s_positional_arguments_are_accepted() -> None:
    """They keep their order; timeout_s is timeout_seconds."""
    reranker = SIENodePostprocessor(None, "model", 3, {"a": 1}, "l4", 2.5)
    assert reranker.model == "model"
    assert reranker.top_n == 3
    assert reranker.options == {"a": 1}
    assert reranker.gpu == "l4"
    assert reranker.timeout_seconds == 2.5
    assert SIENodePostprocessor(timeout_s=2.5, timeout_seconds=2.5).timeout_seconds == 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_n": 0}, "top_n must be at least 1, but got 0"),
        ({"score_threshold": float("inf")}, "score_threshold must be a finite number"),
        ({"timeout_s": 1, "timeout_seconds": 2}, "timeout_seconds=2 and timeout_s=1 contradict"),
        ({"metadata_mode": "some"}, "metadata_mode"),
        ({"score_space": "percent"}, "score_space"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    """A ValueError names the argument."""
    with pytest.raises(ValueError, match=message):
        SIENodePostprocessor(**arguments)


def test_an_unknown_argument_is_refused() -> None:
    """A mistyped name is not swallowed."""
    with pytest.raises(TypeError, match="top_m"):
        SIENodePostprocessor(top_m=3)  # type: ignore[call-arg]


NON_DEFAULTS: dict[str, Any] = {
    "base_url": "http://gpu-box:8080",
    "model": "other/model",
    "top_n": 3,
    "options": {"profile": "fast"},
    "gpu": "l4",
    "timeout_seconds": 2.5,
    "fallback": ["http://spare:8080", "local"],
    "hedge_after_ms": 50.0,
    "wait_for_capacity": True,
    "score_threshold": 0.25,
    "score_space": "raw",
    "instruction": "Find cities",
    "metadata_mode": MetadataMode.LLM,
    "keep_retrieval_score": True,
    "device": ["cuda:0", "cuda:1"],
    "dtype": "bfloat16",
    "num_threads": 2,
    "max_length": 64,
    "batch_size": 2,
    "calibration": "/somewhere/calibration.json",
    "fuse_retrieval_score": 0.25,
    "lora": "owner/legal",
    "max_latency_ms": 80.0,
    "score_cache": 1_000_000,
    "cascade": [{"model": "tiny/model", "keep": 0.3, "options": {"max_length": 64}}],
    "stop_when_stable": 2,
    "drop_duplicates": True,
    "long_documents": "max_passage",
    "passage_length": 200,
    "passage_overlap": 32,
    "max_passages": 8,
    "meta_fields": ["title"],
    "meta_template": "{name}: {value}",
    "meta_separator": " | ",
    "query_prefix": "query: ",
    "query_suffix": " ?",
    "document_prefix": "passage: ",
    "document_suffix": " .",
    "revision": "v2",
    "cache_dir": "/somewhere",
}
NOT_SERIALISED = {
    "self",
    "timeout_s",
    "client",
    "async_client",
    "api_key",
    "token",
    "callback_manager",
    "on_rerank",
    "mode",  # excludes dtype; has a test of its own
}


def test_every_argument_survives_serialisation() -> None:
    """to_dict and to_json carry all that describes the component; a new argument must join in."""
    parameters = set(inspect.signature(SIENodePostprocessor.__init__).parameters)
    assert set(NON_DEFAULTS) == parameters - NOT_SERIALISED
    original = SIENodePostprocessor(**NON_DEFAULTS)
    restored = [
        SIENodePostprocessor.from_dict(original.to_dict()),
        SIENodePostprocessor.from_json(original.to_json()),
        pickle.loads(pickle.dumps(original)),
        copy.deepcopy(original),
    ]
    for one in restored:
        assert {name: getattr(one, name) for name in NON_DEFAULTS} == NON_DEFAULTS
        assert one._reranker._remote_arguments["wait_for_capacity"] is True
    assert original.to_dict()["class_name"] == "SIENodePostprocessor"


def test_the_mode_is_serialised() -> None:
    """It cannot be given together with a dtype, so it stands alone here."""
    original = SIENodePostprocessor(mode="exact")
    assert SIENodePostprocessor.from_dict(original.to_dict()).mode == "exact"
    assert SIENodePostprocessor.from_json(original.to_json()).mode == "exact"


def test_a_fallback_with_clients_is_not_serialised(client: Any) -> None:
    """Clients belong to this process; a name alone is kept."""
    for fallback in (client, ["local", client], Backend(client=client)):
        reranker = SIENodePostprocessor(NOWHERE, fallback=fallback)
        assert reranker.to_dict()["fallback"] is None
        assert json.loads(reranker.to_json())["fallback"] is None
    assert SIENodePostprocessor(NOWHERE, fallback="local").to_dict()["fallback"] == "local"


@pytest.mark.parametrize("name", ["token", "api_key"])
def test_a_secret_is_never_shown(name: str) -> None:
    """Not in a repr, a serialised component, or the message about another argument."""
    secret: dict[str, Any] = {name: HF}
    reranker = SIENodePostprocessor(NOWHERE, fallback="retrieval_order", **secret)
    shown = [repr(reranker), str(reranker), reranker.to_json(), reranker.model_dump_json()]
    assert HF not in "".join(shown) + str(reranker.to_dict()) + repr(vars(reranker))
    assert name not in reranker.to_dict()
    wrongs: list[dict[str, Any]] = [{"metadata_mode": "some"}, {"base_url": "nowhere"}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
            SIENodePostprocessor(**secret, **wrong)
        assert HF not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_work_like_the_original(
    client: Any,
    nodes: list[NodeWithScore],
    duplicate: Callable[[SIENodePostprocessor], SIENodePostprocessor],
) -> None:
    """Deepcopy and pickle keep the client and every setting."""
    original = SIENodePostprocessor(client=client, top_n=2, fallback="retrieval_order")
    duplicated = duplicate(original)
    ranked = duplicated.postprocess_nodes(nodes, query_str=QUERY)
    assert ids_and_scores(ranked) == [("three", 3.0), ("two", 2.0)]
    assert duplicated.fallback == "retrieval_order"


async def test_a_secret_goes_to_its_server_and_into_copies_but_no_pickle(
    guard: Any, nodes: list[NodeWithScore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies send the key they were given; who unpickles one sends the key of its own process."""
    original = SIENodePostprocessor(guard.address, api_key=KEY, token=HF)
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
            reranker.postprocess_nodes(nodes, query_str=QUERY)
        with pytest.raises(AuthenticationError):
            await reranker.apostprocess_nodes(nodes, query_str=QUERY)
        await reranker.aclose()
    assert guard.keys == [f"Bearer {KEY}"] * 6 + ["Bearer environment"] * 2
    assert [reranker.token for reranker in rerankers[:3]] == [original.token] * 3


def test_a_client_that_cannot_be_pickled_is_an_error_and_stays() -> None:
    """Without it the component would score in-process elsewhere; here it works as before."""

    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def score(self, model: str, *_: Any) -> dict[str, Any]:
            return {"model": model, "scores": [{"item_id": "0", "score": 0.5, "rank": 0}]}

    client = Locked()
    for name in ("client", "fallback"):
        given: dict[str, Any] = {name: client}
        reranker = SIENodePostprocessor(**given)
        with pytest.raises(InvalidRequestError, match=f"^{name} cannot be pickled"):
            pickle.dumps(reranker)
        assert getattr(reranker, name) is client
    [ranked] = SIENodePostprocessor(client=client).postprocess_nodes(
        [NodeWithScore(node=TextNode(text="paris"))], query_str=QUERY
    )
    assert ranked.score == 0.5


async def test_a_key_that_a_server_repeats_is_not_shown(
    *,
    guard: Any,
    nodes: list[NodeWithScore],
    postprocess: Postprocess,
    events: list[BaseEvent],
    spans: list[SimpleSpan],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in the error, the marks, the log, nor in events, spans and callback payloads."""
    caplog.set_level(logging.DEBUG)
    callbacks = CallbackRecorder()
    strict = SIENodePostprocessor(
        guard.address, api_key=KEY, callback_manager=CallbackManager([callbacks])
    )
    with pytest.raises(AuthenticationError) as caught:
        await postprocess(strict, nodes, QUERY)
    lenient = strict.model_copy(update={"fallback": "retrieval_order"})
    ranked = await postprocess(lenient, nodes, QUERY)
    for reranker in (strict, lenient):
        await reranker.aclose()
    assert guard.keys == [f"Bearer {KEY}"] * 2
    assert "nobody knows" in ranked[0].metadata["rerank_reason"]
    dumped = [event.model_dump_json() for event in events if isinstance(event, ReRankEndEvent)]
    assert len(dumped) == 2
    shown = [caught.value, ranked, events, dumped, spans, callbacks.starts, callbacks.ends]
    assert KEY not in repr(shown) + str(caught.value) + caplog.text


async def test_a_degraded_answer_says_so_until_a_complete_one(
    client: Any, async_client: Any, nodes: list[NodeWithScore], postprocess: Postprocess
) -> None:
    """Another model's scores come with marks on copies; the next stage removes them."""
    before = copy.deepcopy(nodes)
    spare = Backend(client=client, model="small", name="spare")
    degraded = SIENodePostprocessor(
        NOWHERE, fallback=spare, score_threshold=2, keep_retrieval_score=True
    )
    ranked = await postprocess(degraded, nodes, QUERY)
    await degraded.aclose()
    expected = [("three", 3.0), ("two", 2.0), ("one", 1.0), ("none", 0.0)]
    assert ids_and_scores(ranked) == expected
    metadata = dict(ranked[0].metadata)
    assert NOWHERE in metadata.pop("rerank_reason")
    assert metadata == {
        "page": 1,
        "retrieval_score": 0.8,
        "rerank_status": "degraded",
        "rerank_served_by": "spare",
    }
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert ranked[0].get_content(metadata_mode=mode) == nodes[1].get_content(metadata_mode=mode)
    assert ranked[0].node.embedding == [1.0]
    complete = SIENodePostprocessor(client=client, async_client=async_client)
    again = await postprocess(complete, ranked, QUERY)
    assert ids_and_scores(again) == expected
    best = again[0].node
    assert best.metadata == {"page": 1, "retrieval_score": 0.8}
    assert best.excluded_embed_metadata_keys == ["retrieval_score"]
    assert best.excluded_llm_metadata_keys == ["retrieval_score"]
    assert "rerank_status" in ranked[0].metadata
    assert nodes == before


async def test_retrieval_order_leaves_no_score_from_before(
    nodes: list[NodeWithScore], postprocess: Postprocess
) -> None:
    """Where nothing was scored no score stands, and the order is the one given."""
    reranker = SIENodePostprocessor(NOWHERE, fallback="retrieval_order")
    ranked = await postprocess(reranker, nodes, QUERY)
    await reranker.aclose()
    expected = [("one", None), ("three", None), ("none", None), ("two", None)]
    assert ids_and_scores(ranked) == expected
    assert {node.metadata["rerank_served_by"] for node in ranked} == {"retrieval_order"}


async def test_clients_of_the_official_package_are_accepted(
    official_client: Any, official_async_client: Any, nodes: list[NodeWithScore]
) -> None:
    """They are called with what they take, alone and in a fallback, and awaited natively."""
    reranker = SIENodePostprocessor(
        client=official_client,
        async_client=official_async_client,
        options={"profile": "fast"},
        gpu="l4",
    )
    expected = [("three", 3.0), ("two", 2.0), ("one", 1.0), ("none", 0.0)]
    assert ids_and_scores(reranker.postprocess_nodes(nodes, query_str=QUERY)) == expected
    assert ids_and_scores(await reranker.apostprocess_nodes(nodes, query_str=QUERY)) == expected
    assert official_async_client.inner.threads == [threading.get_ident()]
    fallen = SIENodePostprocessor(
        NOWHERE, fallback=official_client, timeout_seconds=30, wait_for_capacity=True
    )
    assert ids_and_scores(fallen.postprocess_nodes(nodes, query_str=QUERY)) == expected
    fallen.close()
    given = {"instruction": None, "options": {"profile": "fast"}, "gpu": "l4"}
    nothing = {"instruction": None, "options": None, "gpu": None}
    assert official_client.inner.arguments == [given, nothing]


def test_a_slow_client_is_hedged(client: Any, nodes: list[NodeWithScore]) -> None:
    """After hedge_after_ms the next is asked too, and the first answer counts."""
    finish = threading.Event()

    class Slow:
        def score(self, model: str, _: Any, items: list[Any]) -> dict[str, Any]:
            finish.wait(20)
            scores = [{"item_id": item["id"], "score": 0.0, "rank": 0} for item in items]
            return {"model": model, "scores": scores}

    reranker = SIENodePostprocessor(client=Slow(), fallback=client, hedge_after_ms=1)
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    finish.set()
    assert ids_and_scores(ranked)[0] == ("three", 3.0)


def test_a_changed_copy_has_its_own_backend(client: Any, nodes: list[NodeWithScore]) -> None:
    """model_copy(update=...) takes effect, where an assignment is refused."""
    original = SIENodePostprocessor(client=client)
    changed = original.model_copy(update={"options": {"profile": "fast"}})
    changed.postprocess_nodes(nodes, query_str=QUERY)
    original.postprocess_nodes(nodes, query_str=QUERY)
    assert client.arguments == [{"options": {"profile": "fast"}}, {}]
    with pytest.raises(ValueError, match="frozen"):
        original.model = "other"


def test_a_copy_is_changed_by_the_constructor_s_names() -> None:
    """Aliases and a key as a plain string are taken; the key is shown no more than the other."""
    original = SIENodePostprocessor(NOWHERE)
    changed = original.model_copy(update={"top_n": 2, "timeout_s": 5, "api_key": KEY})
    assert (changed.top_n, changed.timeout_seconds) == (2, 5)
    assert changed._reranker.timeout_seconds == 5
    assert changed._reranker._remote_arguments["api_key"] == KEY
    assert KEY not in repr(changed) + repr(vars(changed)) + changed.to_json()
    assert (original.top_n, original.timeout_seconds, original.api_key) == (None, None, None)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"top_k": 2}, "SIENodePostprocessor has no field 'top_k'"),
        ({"timeout_s": 1, "timeout_seconds": 2}, "timeout_seconds=2 and timeout_s=1 contradict"),
        ({"timeout_s": -1}, "timeout_seconds must be a positive number"),
    ],
)
def test_a_wrong_change_of_a_copy_is_refused(update: dict[str, Any], message: str) -> None:
    """As the constructor refuses it."""
    with pytest.raises(InvalidRequestError, match=message):
        SIENodePostprocessor().model_copy(update=update)


async def test_lifecycle_calls_may_be_repeated(
    reranker: SIENodePostprocessor, nodes: list[NodeWithScore]
) -> None:
    """Closing twice is fine, and a call after it works."""
    reranker.warm_up()
    reranker.close()
    reranker.close()
    await reranker.awarm_up()
    await reranker.aclose()
    await reranker.aclose()
    assert len(reranker.postprocess_nodes(nodes, query_str=QUERY)) == 4


class Listed(BaseRetriever):
    """A retriever that finds the same nodes whatever the query."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        self._nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        del query_bundle
        return self._nodes


async def test_it_postprocesses_inside_a_query_engine(
    reranker: SIENodePostprocessor, nodes: list[NodeWithScore]
) -> None:
    """A query engine's answer is made from the reranked nodes, sync and async."""
    engine = RetrieverQueryEngine(
        Listed(nodes),
        response_synthesizer=NoText(llm=MockLLM()),
        node_postprocessors=[reranker],
    )
    expected = ["three", "two", "one", "none"]
    for response in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert [node.node_id for node in response.source_nodes] == expected


async def test_a_query_brings_its_own_settings_through_an_engine(
    reranker: SIENodePostprocessor, nodes: list[NodeWithScore]
) -> None:
    """A bundle travels with the query, and its settings are gone with it."""
    engine = RetrieverQueryEngine(
        Listed(nodes),
        response_synthesizer=NoText(llm=MockLLM()),
        node_postprocessors=[reranker],
    )
    bundle = SIEQueryBundle(QUERY, top_n=2)
    for response in (engine.query(bundle), await engine.aquery(bundle)):
        assert [node.node_id for node in response.source_nodes] == ["three", "two"]
    assert len(engine.query(QUERY).source_nodes) == len(nodes)
    with pytest.raises(InvalidRequestError, match="top_n must be at least 1, but got 0"):
        engine.query(SIEQueryBundle(QUERY, top_n=0))


def test_importing_it_imports_no_torch() -> None:
    """A process that only imports the package does not pay for torch or transformers."""
    program = "import json, sys, sie_llamaindex; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    modules = json.loads(output)
    assert "sie_llamaindex.reranker" in modules
    assert not {"torch", "transformers"} & set(modules)
