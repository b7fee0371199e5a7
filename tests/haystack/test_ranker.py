"""`SIERanker` in Haystack's own pipelines, over a client whose scores can be read off."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.utils import ComponentDevice, Device, DeviceMap, Secret

import sie_haystack
from haystack_integrations.components.rankers.sie import SIERanker
from sie_core.errors import AuthenticationError, InvalidRequestError
from sie_core.fallback import Backend
from sie_core.settings import DEFAULT_MODEL

QUERY = "paris capital france"
HF = "hf_not-to-be-seen"
KEY = "key-not-to-be-seen"
NOWHERE = "http://127.0.0.1:9"
Run = Callable[..., Awaitable[list[Document]]]


@pytest.fixture(autouse=True)
def _no_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_API_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def documents() -> list[Document]:
    """Documents with one, three, none and two of the query's words, in retrieval order."""
    return [
        Document(id="one", content="paris in spring", score=0.9),
        Document(id="three", content="paris is the capital of france", score=0.8),
        Document(id="none", content="bananas are yellow", score=0.7),
        Document(id="two", content="the capital of france", score=0.6),
    ]


@pytest.fixture
def ranker(client: Any, async_client: Any) -> SIERanker:
    """A ranker with a client for each way to run."""
    return SIERanker(client=client, async_client=async_client)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both ways to run, behind one."""

    async def call(ranker: SIERanker, documents: list[Document], **arguments: Any) -> Any:
        arguments = {"query": QUERY, "documents": documents} | arguments
        if request.param == "sync":
            return ranker.run(**arguments)["documents"]
        return (await ranker.run_async(**arguments))["documents"]

    return call


def ids_and_scores(documents: list[Document]) -> list[tuple[str, float | None]]:
    """What most tests compare."""
    return [(document.id, document.score) for document in documents]


async def test_documents_come_back_best_first_with_their_scores(
    ranker: SIERanker, documents: list[Document], run: Run
) -> None:
    """The order is the scores', and the documents given stay as they are."""
    before = copy.deepcopy(documents)
    ranked = await run(ranker, documents)
    expected = [("three", 3.0), ("two", 2.0), ("one", 1.0), ("none", 0.0)]
    assert ids_and_scores(ranked) == expected
    assert documents == before


async def test_every_field_of_a_document_survives(ranker: SIERanker, run: Run) -> None:
    """Only the score of the copy is new."""
    document = Document(
        id="d",
        content="paris",
        blob=ByteStream(data=b"image", mime_type="image/png"),
        meta={"page": 1},
        score=0.5,
        embedding=[0.1, 0.2],
        sparse_embedding=SparseEmbedding(indices=[1], values=[0.5]),
    )
    [ranked] = await run(ranker, [document])
    assert ranked.to_dict() == document.to_dict() | {"score": 1.0}


async def test_documents_without_text_come_last_unscored(
    client: Any, async_client: Any, run: Run
) -> None:
    """They are not sent, whatever the prefixes, and an old score does not stay."""
    ranker = SIERanker(
        client=client, async_client=async_client, document_prefix="doc: ", document_suffix="."
    )
    documents = [
        Document(id="none", content=None, score=0.9),
        Document(id="blank", content=" \n", score=0.8),
        Document(id="text", content="berlin", score=0.1),
    ]
    ranked = await run(ranker, documents)
    assert ids_and_scores(ranked) == [("text", 0.0), ("none", None), ("blank", None)]
    assert client.texts + async_client.texts == [["doc: berlin."]]


async def test_of_duplicates_the_best_is_kept(ranker: SIERanker, run: Run) -> None:
    """One document per id, the one with the best retrieval score, at the first one's place."""
    documents = [
        Document(id="a", content="first", score=None),
        Document(id="b", content="only", score=0.9),
        Document(id="a", content="best", score=-0.1),
        Document(id="a", content="worse", score=-0.2),
        Document(id="a", content="unknown", score=None),
    ]
    ranked = await run(ranker, documents)
    assert [document.content for document in ranked] == ["best", "only"]


async def test_what_is_scored_is_put_together_as_asked(
    client: Any, async_client: Any, documents: list[Document], run: Run
) -> None:
    """Prefixes, suffixes and metadata fields; a field that is missing or None adds nothing."""
    ranker = SIERanker(
        client=client,
        async_client=async_client,
        query_prefix="query: ",
        query_suffix="?",
        document_prefix="[",
        document_suffix="]",
        meta_fields_to_embed=["title", "year", "author"],
        embedding_separator=" | ",
    )
    documents = [
        Document(content="text", meta={"title": "Title", "year": 1889, "author": None}),
        Document(content=None, meta={"title": "Only a title"}),
    ]
    await run(ranker, documents)
    assert client.queries + async_client.queries == [f"query: {QUERY}?"]
    assert client.texts + async_client.texts == [["[Title | 1889 | text]", "[Only a title | ]"]]


async def test_a_blank_query_is_an_error_whatever_the_prefix(
    client: Any, async_client: Any, documents: list[Document], run: Run
) -> None:
    """A prefix does not make a question of nothing."""
    ranker = SIERanker(client=client, async_client=async_client, query_prefix="query: ")
    with pytest.raises(InvalidRequestError, match="query must be a string with text"):
        await run(ranker, documents, query=" ")


async def test_what_is_given_to_run_wins(
    ranker: SIERanker, documents: list[Document], run: Run
) -> None:
    """top_k and score_threshold of the call replace the component's, a threshold of 0 too."""
    ranker.top_k, ranker.score_threshold = 1, 3.0
    assert len(await run(ranker, documents)) == 1
    ranked = await run(ranker, documents, top_k=3, score_threshold=0.0)
    assert ids_and_scores(ranked) == [("three", 3.0), ("two", 2.0), ("one", 1.0)]
    ranked = await run(ranker, documents, top_k=3, score_threshold=2.0)
    assert ids_and_scores(ranked) == [("three", 3.0), ("two", 2.0)]


async def test_settings_assigned_later_take_effect(
    ranker: SIERanker, client: Any, async_client: Any, documents: list[Document], run: Run
) -> None:
    """What goes with each run may be changed between runs, back to None too."""
    whole = await run(ranker, documents)
    ranker.instruction, ranker.long_documents = "Find cities", "truncate"
    await run(ranker, documents)
    expected = {"instruction": "Find cities", "options": {"long_documents": "truncate"}}
    assert (client.arguments + async_client.arguments)[-1] == expected
    ranker.instruction = ranker.long_documents = None
    again = [replace(documents[0], id="again"), *documents]
    ranker.drop_duplicates = True
    assert [it.id for it in await run(ranker, again)] == ["three", "two", "again", "none"]
    ranker.drop_duplicates = False
    ranker.fuse_retrieval_score = 1.0
    assert [it.id for it in await run(ranker, documents)] == ["one", "three", "none", "two"]
    ranker.fuse_retrieval_score = None
    ranker.max_latency_ms = 1e-3
    assert {it.meta["rerank_status"] for it in await run(ranker, documents)} == {"partial"}
    ranker.max_latency_ms = None
    assert await run(ranker, documents) == whole
    assert (client.arguments + async_client.arguments)[-1] == {}
    ranker.max_latency_ms = -1
    with pytest.raises(InvalidRequestError, match="max_latency_ms must be a positive number"):
        await run(ranker, documents)


async def test_top_k_is_ten_unless_said_otherwise(ranker: SIERanker, run: Run) -> None:
    """As in Haystack's other rankers; None keeps everything."""
    documents = [Document(content=f"text {i}") for i in range(12)]
    assert len(await run(ranker, documents)) == 10
    ranker.top_k = None
    assert len(await run(ranker, documents)) == 12


@pytest.mark.parametrize("top_k", [0, -1])
async def test_a_top_k_below_one_is_an_error(
    ranker: SIERanker, documents: list[Document], run: Run, top_k: int
) -> None:
    """In the constructor and in a run; the message names the value."""
    with pytest.raises(ValueError, match=f"top_k must be at least 1, but got {top_k}"):
        SIERanker(top_k=top_k)
    with pytest.raises(ValueError, match=f"top_k must be at least 1, but got {top_k}"):
        await run(ranker, documents, top_k=top_k)


@pytest.mark.parametrize(
    ("component", "call", "space"),
    [
        (None, None, None),
        (True, None, "probability"),
        (False, None, "raw"),
        (True, False, "raw"),
        (False, True, "probability"),
        (None, False, "raw"),
    ],
)
async def test_scale_score_chooses_the_score_space(
    client: Any, async_client: Any, *, component: bool, call: bool, space: str | None, run: Run
) -> None:
    """True asks for probabilities, False for logits, None for what the model's config says."""
    ranker = SIERanker(client=client, async_client=async_client, scale_score=component)
    await run(ranker, [Document(content="text")], scale_score=call)
    [arguments] = client.arguments + async_client.arguments
    assert arguments == ({} if space is None else {"options": {"score_space": space}})


async def test_no_documents_give_no_documents(ranker: SIERanker, run: Run) -> None:
    """An empty list is answered with an empty list."""
    assert await run(ranker, []) == []


def test_settings_reach_the_client(client: Any, documents: list[Document]) -> None:
    """Options, instruction and machine profile go with the call."""
    ranker = SIERanker(
        client=client,
        instruction="Find cities",
        options={"profile": "fast"},
        tokenizer_kwargs={"model_max_length": 64},
        batch_size=2,
        lora="owner/legal",
        gpu="l4",
    )
    ranker.run(QUERY, documents)
    options = {"profile": "fast", "max_length": 64, "batch_size": 2, "lora": "owner/legal"}
    assert client.arguments == [{"instruction": "Find cities", "options": options, "gpu": "l4"}]


async def test_an_async_run_stays_on_the_event_loop(
    ranker: SIERanker, client: Any, async_client: Any, documents: list[Document]
) -> None:
    """The async client is awaited where the caller is, and the sync one is left alone."""
    await ranker.run_async(QUERY, documents)
    assert async_client.threads == [threading.get_ident()]
    assert client.threads == []


NON_DEFAULTS: dict[str, Any] = {
    "base_url": "http://gpu-box:8080",
    "model": "other/model",
    "top_k": 3,
    "gpu": "l4",
    "options": {"profile": "fast"},
    "timeout_seconds": 2.5,
    "api_key": Secret.from_env_var("ANOTHER_KEY", strict=False),
    "fallback": ["http://spare:8080", "local"],
    "hedge_after_ms": 50.0,
    "wait_for_capacity": True,
    "device": ComponentDevice.from_str("cuda:1"),
    "token": Secret.from_env_var("ANOTHER_TOKEN", strict=False),
    "query_prefix": "a",
    "query_suffix": "b",
    "document_prefix": "c",
    "document_suffix": "d",
    "meta_fields_to_embed": ["title"],
    "embedding_separator": " | ",
    "scale_score": False,
    "score_threshold": 0.25,
    "instruction": "Find cities",
    "model_kwargs": {"torch_dtype": "bfloat16"},
    "tokenizer_kwargs": {"model_max_length": 64},
    "batch_size": 2,
    "calibration": "/somewhere/calibration.json",
    "fuse_retrieval_score": 0.25,
    "score_space": "calibrated",
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
    "meta_template": "{name}: {value}",
    "dtype": "bfloat16",
    "num_threads": 2,
    "max_length": 64,
    "revision": "v2",
    "cache_dir": "/somewhere",
}


def test_every_argument_survives_serialisation() -> None:
    """A new constructor argument must join in: the component is reloaded with nothing lost."""
    parameters = inspect.signature(SIERanker.__init__).parameters
    left_out = {
        "self",
        "timeout_s",
        "client",
        "async_client",
        "on_rerank",
        "mode",
    }  # mode excludes dtype
    assert set(NON_DEFAULTS) == set(parameters) - left_out
    pipeline = Pipeline()
    pipeline.add_component("ranker", SIERanker(**NON_DEFAULTS))
    reloaded: Any = Pipeline.loads(pipeline.dumps()).get_component("ranker")
    for name, value in NON_DEFAULTS.items():
        assert getattr(reloaded, name) == value, name
        assert value != parameters[name].default, name
    assert reloaded._reranker._remote_arguments["wait_for_capacity"] is True


def test_defaults_survive_serialisation() -> None:
    """The same for a component made with nothing, in plain data only."""
    data = SIERanker().to_dict()
    assert data["type"] == "haystack_integrations.components.rankers.sie.ranker.SIERanker"
    assert json.loads(json.dumps(data)) == data
    assert SIERanker.from_dict(data).to_dict() == data
    assert data["init_parameters"]["model"] == DEFAULT_MODEL


def test_paths_and_torch_dtypes_are_serialised_by_name(tmp_path: Path) -> None:
    """What YAML has no type for is stored as text."""
    import torch

    ranker = SIERanker(
        model=tmp_path, cache_dir=tmp_path, model_kwargs={"torch_dtype": torch.bfloat16}
    )
    parameters = ranker.to_dict()["init_parameters"]
    assert parameters["model"] == parameters["cache_dir"] == str(tmp_path)
    assert parameters["model_kwargs"] == {"torch_dtype": "bfloat16"}


def test_the_mode_is_serialised() -> None:
    """It cannot be given together with a dtype, so it stands alone here."""
    ranker = SIERanker(mode="exact")
    assert ranker.to_dict()["init_parameters"]["mode"] == "exact"
    assert SIERanker.from_dict(ranker.to_dict()).mode == "exact"


def test_several_gpus_are_serialised_as_a_list() -> None:
    """A copy of the model on each of them; a tuple becomes what YAML has."""
    ranker = SIERanker(device=("cuda:0", "cuda:1"))
    assert ranker.to_dict()["init_parameters"]["device"] == ["cuda:0", "cuda:1"]
    assert SIERanker.from_dict(ranker.to_dict()).device == ["cuda:0", "cuda:1"]


def test_what_belongs_to_this_process_is_not_serialised(client: Any, async_client: Any) -> None:
    """A component with a client would come back without it: that is an error, not a surprise."""
    with pytest.raises(InvalidRequestError, match="cannot be serialised"):
        SIERanker(client=client).to_dict()
    with pytest.raises(InvalidRequestError, match="cannot be serialised"):
        SIERanker(async_client=async_client).to_dict()
    for fallback in (client, ["local", client], Backend(client=client)):
        ranker = SIERanker(NOWHERE, fallback=fallback)
        with pytest.raises(InvalidRequestError, match="a client in fallback cannot be serialised"):
            ranker.to_dict()
    named = SIERanker(NOWHERE, fallback="local").to_dict()
    assert named["init_parameters"]["fallback"] == "local"


@pytest.mark.parametrize("name", ["token", "api_key"])
def test_a_secret_is_never_shown(name: str) -> None:
    """It is in no repr, and cannot be serialised by value."""
    ranker = SIERanker(
        NOWHERE,
        fallback="retrieval_order",
        **{name: Secret.from_token(HF)},  # type: ignore[arg-type]
    )
    assert HF not in repr(ranker) + str(ranker) + repr(vars(ranker))
    with pytest.raises(ValueError, match="Cannot serialize token-based secret") as caught:
        ranker.to_dict()
    assert HF not in str(caught.value)
    wrong: dict[str, Any] = {name: HF}
    with pytest.raises(InvalidRequestError, match=f"{name} must be a haystack Secret") as caught:
        SIERanker(**wrong)
    assert HF not in str(caught.value)


@pytest.mark.parametrize("name", ["token", "api_key"])
def test_a_strict_secret_must_be_there(name: str) -> None:
    """The error names the argument, and the variable to set."""
    strict: dict[str, Any] = {name: Secret.from_env_var("NOT_SET_ANYWHERE")}
    with pytest.raises(
        InvalidRequestError, match=f"the {name} could not be read .*'NOT_SET_ANYWHERE'"
    ):
        SIERanker(**strict)


async def test_a_secret_goes_to_its_server_and_into_copies_but_no_pickle(
    guard: Any, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies send the key they were given; who unpickles one sends the key of its own process."""
    original = SIERanker(guard.address, api_key=Secret.from_token(KEY), token=Secret.from_token(HF))
    state = pickle.dumps(original)
    assert KEY.encode() not in state
    assert HF.encode() not in state
    monkeypatch.setenv("SIE_API_KEY", "environment")
    unpickled = pickle.loads(state)
    assert (unpickled.api_key, unpickled.token) == (None, None)
    rankers = [original, copy.deepcopy(original), copy.copy(original), unpickled]
    for ranker in rankers:
        with pytest.raises(AuthenticationError):
            ranker.run(QUERY, documents)
        with pytest.raises(AuthenticationError):
            await ranker.run_async(QUERY, documents)
        await ranker.close_async()
    assert guard.keys == [f"Bearer {KEY}"] * 6 + ["Bearer environment"] * 2
    assert [ranker.token for ranker in rankers[:3]] == [Secret.from_token(HF)] * 3


def test_a_key_from_the_environment_is_read_when_the_component_is_made(
    guard: Any, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deep copy keeps what was read; a pickle has the variable's name, which is read again."""
    monkeypatch.setenv("MY_KEY", KEY)
    original = SIERanker(guard.address, api_key=Secret.from_env_var("MY_KEY"))
    monkeypatch.setenv("MY_KEY", "changed")
    state = pickle.dumps(original)
    assert KEY.encode() not in state
    for ranker in (original, copy.deepcopy(original), pickle.loads(state)):
        with pytest.raises(AuthenticationError):
            ranker.run(QUERY, documents)
        ranker.close()
    assert guard.keys == [f"Bearer {KEY}"] * 2 + ["Bearer changed"]


async def test_a_key_that_a_server_repeats_is_not_shown(
    guard: Any, documents: list[Document], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the error, the marks, nor the log."""
    caplog.set_level(logging.DEBUG)
    strict = SIERanker(guard.address, api_key=Secret.from_token(KEY))
    with pytest.raises(AuthenticationError) as caught:
        await run(strict, documents)
    lenient = SIERanker(guard.address, api_key=Secret.from_token(KEY), fallback="retrieval_order")
    ranked = await run(lenient, documents)
    for ranker in (strict, lenient):
        await ranker.close_async()
    assert guard.keys == [f"Bearer {KEY}"] * 2
    assert "nobody knows" in ranked[0].meta["rerank_reason"]
    dumped = [document.to_dict() for document in ranked]
    assert KEY not in repr([caught.value, dumped]) + str(caught.value) + caplog.text


async def test_a_degraded_answer_says_so_until_a_complete_one(
    client: Any, async_client: Any, run: Run
) -> None:
    """Another model's scores come with marks; the next stage removes them if it is complete."""
    documents = [
        Document(id="one", content="paris", meta={"page": 1}),
        Document(id="two", content="paris france", meta={"page": 2}),
    ]
    before = copy.deepcopy(documents)
    spare = Backend(client=client, model="small", name="spare")
    degraded = SIERanker(NOWHERE, fallback=spare, score_threshold=2)
    ranked = await run(degraded, documents)
    await degraded.close_async()
    assert ids_and_scores(ranked) == [("two", 2.0), ("one", 1.0)]
    meta = dict(ranked[0].meta)
    assert NOWHERE in meta.pop("rerank_reason")
    assert meta == {"page": 2, "rerank_status": "degraded", "rerank_served_by": "spare"}
    complete = SIERanker(client=client, async_client=async_client)
    again = await run(complete, ranked)
    assert [document.meta for document in again] == [{"page": 2}, {"page": 1}]
    assert "rerank_status" in ranked[0].meta
    again[0].meta["added"] = True
    assert documents == before


async def test_retrieval_order_leaves_no_score_from_before(
    documents: list[Document], run: Run
) -> None:
    """Where nothing was scored no score stands, and the order is the one given."""
    ranker = SIERanker(NOWHERE, fallback="retrieval_order")
    ranked = await run(ranker, documents)
    await ranker.close_async()
    expected = [("one", None), ("three", None), ("none", None), ("two", None)]
    assert ids_and_scores(ranked) == expected
    assert {document.meta["rerank_served_by"] for document in ranked} == {"retrieval_order"}


async def test_clients_of_the_official_package_are_accepted(
    official_client: Any, official_async_client: Any, documents: list[Document]
) -> None:
    """They are called with what they take, alone and in a fallback, and awaited natively."""
    ranker = SIERanker(
        client=official_client,
        async_client=official_async_client,
        options={"profile": "fast"},
        gpu="l4",
    )
    expected = [("three", 3.0), ("two", 2.0), ("one", 1.0), ("none", 0.0)]
    assert ids_and_scores(ranker.run(QUERY, documents)["documents"]) == expected
    assert ids_and_scores((await ranker.run_async(QUERY, documents))["documents"]) == expected
    assert official_async_client.inner.threads == [threading.get_ident()]
    fallen = SIERanker(
        NOWHERE, fallback=official_client, timeout_seconds=30, wait_for_capacity=True
    )
    assert ids_and_scores(fallen.run(QUERY, documents)["documents"]) == expected
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

    ranker = SIERanker(client=Slow(), fallback=client, hedge_after_ms=1)
    ranked = ranker.run(QUERY, documents)["documents"]
    finish.set()
    assert ids_and_scores(ranked)[0] == ("three", 3.0)


def test_the_existing_package_s_names_are_accepted() -> None:
    """base_url and model by position, timeout_s for timeout_seconds."""
    ranker = SIERanker(None, "model", timeout_s=2.5)
    assert ranker.model == "model"
    assert ranker.timeout_seconds == 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout_s": 1, "timeout_seconds": 2}, "timeout_seconds=2 contradicts 1 from timeout_s"),
        ({"model_kwargs": {"attn_implementation": "x"}}, r"model_kwargs\['attn_implementation'\]"),
        ({"model_kwargs": {"a": 1}}, "accepted are: dtype, torch_dtype, revision"),
        ({"tokenizer_kwargs": {"padding_side": "left"}}, "accepted are: model_max_length"),
        ({"model_kwargs": {"dtype": "float16"}, "dtype": "float32"}, "contradicts 'float16'"),
        ({"model_kwargs": {"dtype": "a", "torch_dtype": "b"}}, "contradicts 'a'"),
        ({"model_kwargs": {"revision": "v1"}, "revision": "v2"}, "contradicts 'v1'"),
        ({"tokenizer_kwargs": {"model_max_length": 64}, "max_length": 32}, "contradicts 64"),
        ({"score_threshold": float("nan")}, "score_threshold must be a finite number"),
        ({"score_space": "percent"}, "score_space must be"),
        ({"fuse_retrieval_score": 2}, "fuse_retrieval_score is the weight"),
        ({"max_latency_ms": -1}, "max_latency_ms must be a positive number"),
        ({"long_documents": "maybe"}, "long_documents must be"),
        ({"drop_duplicates": "maybe"}, "drop_duplicates must be True or False"),
        ({"instruction": 3}, "instruction must be a string"),
        (
            {"device": ComponentDevice.from_multiple(DeviceMap({"": Device.cpu()}))},
            "device must be a single device",
        ),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the argument and what is accepted."""
    with pytest.raises(InvalidRequestError, match=message):
        SIERanker(**arguments)


def test_run_and_run_async_take_the_same() -> None:
    """Haystack requires identical signatures."""
    assert inspect.signature(SIERanker.run) == inspect.signature(SIERanker.run_async)


async def test_lifecycle_calls_may_be_repeated(
    ranker: SIERanker, documents: list[Document]
) -> None:
    """Warming up and closing twice is fine, and a run after closing works."""
    for _ in range(2):
        ranker.warm_up()
        await ranker.warm_up_async()
    for _ in range(2):
        ranker.close()
        await ranker.close_async()
    assert len(ranker.run(QUERY, documents)["documents"]) == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_work_like_the_original(
    client: Any, documents: list[Document], duplicate: Callable[[SIERanker], SIERanker]
) -> None:
    """Deepcopy and pickle keep every setting."""
    duplicated = duplicate(SIERanker(client=client, top_k=2))
    ranked = duplicated.run(QUERY, documents)["documents"]
    assert ids_and_scores(ranked) == [("three", 3.0), ("two", 2.0)]


async def test_it_ranks_inside_a_pipeline(ranker: SIERanker, documents: list[Document]) -> None:
    """A pipeline warms it up, runs it with run-time arguments, and closes it, sync and async."""
    pipeline = Pipeline()
    pipeline.add_component("ranker", ranker)
    inputs = {"ranker": {"query": QUERY, "documents": documents, "top_k": 2}}
    for outputs in (pipeline.run(inputs), await pipeline.run_async(inputs)):
        assert [document.id for document in outputs["ranker"]["documents"]] == ["three", "two"]
    pipeline.close()
    await pipeline.close_async()


def test_the_package_re_exports_the_component() -> None:
    """One class under two names; Haystack knows it by the one it may load."""
    assert sie_haystack.SIERanker is SIERanker
    assert "SIERanker" in dir(sie_haystack)
    assert SIERanker.__module__.startswith("haystack_integrations.")
    with pytest.raises(AttributeError, match="SIERunker"):
        _ = sie_haystack.SIERunker


def run_python(program: str) -> Any:
    """Run a program in a process of its own and read the JSON it prints."""
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output)


def test_importing_it_imports_no_torch() -> None:
    """A process that only imports the package does not pay for torch or transformers."""
    modules = run_python("import json, sys, sie_haystack; print(json.dumps(sorted(sys.modules)))")
    assert "sie_haystack" in modules
    assert not {"torch", "transformers"} & set(modules)


def test_importing_the_component_imports_no_torch_but_haystack_s_own() -> None:
    """Haystack itself imports torch where it is installed; the component adds no import of it."""
    program = """
import importlib.abc, json, sys
asked = []
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            asked.append(name)
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import haystack
asked.clear()
from haystack_integrations.components.rankers.sie import SIERanker
SIERanker().to_dict()
print(json.dumps(asked))
"""
    assert run_python(program) == []
