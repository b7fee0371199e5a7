"""`SIETextEmbedder` and `SIEDocumentEmbedder` in Haystack's own pipelines."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice, Secret

import sie_haystack
from haystack_integrations.components.embedders.sie import SIEDocumentEmbedder, SIETextEmbedder
from sie_core import Embedder
from sie_core.errors import AuthenticationError, InferenceError, InvalidRequestError
from sie_core.settings import DEFAULT_EMBEDDING_MODEL

KEY = "key-not-to-be-seen"
HF = "hf_not-to-be-seen"
Run = Callable[..., Awaitable[Any]]
KINDS: list[Any] = [SIETextEmbedder, SIEDocumentEmbedder]


@pytest.fixture(autouse=True)
def _no_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_API_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both ways to run, behind one."""

    async def call(component: Any, **arguments: Any) -> Any:
        if request.param == "sync":
            return component.run(**arguments)
        return await component.run_async(**arguments)

    return call


@pytest.fixture
def clients(encoder: Any, async_encoder: Any) -> dict[str, Any]:
    """A client for each way to run, as arguments."""
    return {"client": encoder, "async_client": async_encoder}


def sent(clients: dict[str, Any]) -> list[str]:
    """List the texts that were sent, whichever way."""
    batches = clients["client"].texts + clients["async_client"].texts
    return [text for batch in batches for text in batch]


async def test_a_query_gets_its_vector(clients: dict[str, Any], encoder: Any, run: Run) -> None:
    """As a query, with what is put around it."""
    embedder = SIETextEmbedder(**clients, prefix="a ", suffix=" c")
    assert await run(embedder, text="b") == {
        "embedding": encoder.vector("a b c", is_query=True).tolist()
    }


async def test_documents_get_their_vectors(clients: dict[str, Any], run: Run) -> None:
    """On copies in the same order; every other field survives, and the originals stay."""
    documents = [
        Document(
            id="d",
            content="paris",
            blob=ByteStream(data=b"image", mime_type="image/png"),
            meta={"page": 1},
            score=0.5,
            embedding=[0.1, 0.2],
            sparse_embedding=SparseEmbedding(indices=[1], values=[0.5]),
        ),
        Document(id="e", content="berlin"),
        Document(id="d", content="the same id"),
    ]
    before = copy.deepcopy(documents)
    embedder = SIEDocumentEmbedder(**clients, progress_bar=False)
    embedded = (await run(embedder, documents=documents))["documents"]
    vector = clients["client"].vector
    assert [document.to_dict() for document in embedded] == [
        document.to_dict() | {"embedding": vector(document.content).tolist()} for document in before
    ]
    assert documents == before
    assert not {id(document) for document in embedded} & {id(document) for document in documents}


async def test_what_is_encoded_is_put_together_as_asked(clients: dict[str, Any], run: Run) -> None:
    """Prefix, suffix and metadata; without content it is what is left, as in Haystack's own."""
    embedder = SIEDocumentEmbedder(
        **clients,
        prefix="[",
        suffix="]",
        meta_fields_to_embed=["title", "year", "author"],
        embedding_separator=" | ",
        progress_bar=False,
    )
    documents = [
        Document(content="text", meta={"title": "Title", "year": 1889, "author": None}),
        Document(content=None, meta={"title": "Only a title"}),
        Document(content=None),
        Document(content=" "),
    ]
    embedded = (await run(embedder, documents=documents))["documents"]
    assert sent(clients) == ["[Title | 1889 | text]", "[Only a title | ]", "[]", "[ ]"]
    assert all(document.embedding is not None for document in embedded)


async def test_no_documents_give_no_documents(clients: dict[str, Any], run: Run) -> None:
    """An empty list is answered with an empty list, and nobody is asked."""
    assert await run(SIEDocumentEmbedder(**clients), documents=[]) == {"documents": []}
    assert sent(clients) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [(["a", "b"], "list"), (Document(content="a"), "Document"), (None, "NoneType")],
)
async def test_a_text_embedder_takes_a_string(
    clients: dict[str, Any], run: Run, text: Any, kind: str
) -> None:
    """Anything else is a TypeError that names the remedy."""
    with pytest.raises(TypeError, match=f"takes a string, but got {kind}; .*SIEDocumentEmbedder"):
        await run(SIETextEmbedder(**clients), text=text)


@pytest.mark.parametrize(
    ("documents", "kind"),
    [
        ("a", "str"),
        (["a"], "a list with str in it"),
        ([Document(content="a"), "b"], "a list with str in it"),
        (Document(content="a"), "Document"),
        (None, "NoneType"),
    ],
)
async def test_a_document_embedder_takes_documents(
    clients: dict[str, Any], run: Run, documents: Any, kind: str
) -> None:
    """Anything else is a TypeError that names the remedy."""
    complaint = f"takes a list of documents, but got {kind}; .*SIETextEmbedder"
    with pytest.raises(TypeError, match=complaint):
        await run(SIEDocumentEmbedder(**clients), documents=documents)


async def test_a_progress_bar_is_shown_as_asked(
    clients: dict[str, Any], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default, as in Haystack's own; it counts every document."""
    documents = [Document(content=f"text {i}") for i in range(600)]
    await run(SIEDocumentEmbedder(**clients, progress_bar=False), documents=documents)
    await run(SIEDocumentEmbedder(**clients), documents=[])
    assert capsys.readouterr().err == ""
    await run(SIEDocumentEmbedder(**clients), documents=documents)
    shown = capsys.readouterr().err
    assert "Calculating embeddings: 100%" in shown
    assert "600/600" in shown


def test_settings_reach_the_client(encoder: Any) -> None:
    """Options, format and machine profile with each call; the instruction with queries."""
    settings: dict[str, Any] = {
        "client": encoder,
        "options": {"profile": "fast"},
        "output_dtype": "float16",
        "tokenizer_kwargs": {"model_max_length": 64},
        "batch_size": 2,
        "gpu": "l4",
    }
    SIETextEmbedder(**settings, instruction="Find cities").run("q")
    SIEDocumentEmbedder(**settings, progress_bar=False).run([Document(content="d")])
    common = {
        "output_types": ["dense"],
        "output_dtype": "float16",
        "options": {"profile": "fast", "max_length": 64, "batch_size": 2},
        "gpu": "l4",
    }
    assert encoder.arguments == [
        common | {"is_query": True, "instruction": "Find cities"},
        common | {"is_query": False},
    ]
    assert encoder.models == [DEFAULT_EMBEDDING_MODEL] * 2


async def test_async_runs_stay_on_the_event_loop(
    clients: dict[str, Any], encoder: Any, async_encoder: Any
) -> None:
    """The async client is awaited where the caller is, and the sync one is left alone."""
    await SIETextEmbedder(**clients).run_async("q")
    await SIEDocumentEmbedder(**clients, progress_bar=False).run_async([Document(content="d")])
    assert async_encoder.threads == [threading.get_ident()] * 2
    assert encoder.threads == []


def pipelines(server: dict[str, Any]) -> tuple[Any, Any]:
    """Make a pipeline that writes into a store, and one that asks it."""
    store = InMemoryDocumentStore()
    writing = Pipeline()
    writing.add_component("embedder", SIEDocumentEmbedder(**server, progress_bar=False))
    writing.add_component("writer", DocumentWriter(store))
    writing.connect("embedder", "writer")
    asking = Pipeline()
    asking.add_component("embedder", SIETextEmbedder(**server))
    asking.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    asking.connect("embedder.embedding", "retriever.query_embedding")
    return writing, asking


@pytest.mark.parametrize("place", ["local", "server"])
def test_pipelines_write_and_find(tiny_embedder: Path, encoding_server: str, place: str) -> None:
    """In this process and on a server; a reloaded pipeline finds the same."""
    server = {"model": "test/tiny-embedder", "base_url": encoding_server}
    where: dict[str, Any] = {"model": str(tiny_embedder)} if place == "local" else server
    writing, asking = pipelines(where)
    texts = ["the eiffel tower", "yellow banana fruit", "weather in berlin"]
    writing.run({"embedder": {"documents": [Document(content=text) for text in texts]}})
    embedder = Embedder(str(tiny_embedder), mode="exact")
    products = np.dot(embedder.embed(texts), embedder.embed(["a banana"], is_query=True)[0])
    reloaded: Any = Pipeline.loads(asking.dumps())
    store: Any = asking.get_component("retriever")
    reloaded.get_component("retriever").document_store = store.document_store
    for pipeline in (asking, reloaded):
        outputs = pipeline.run({"embedder": {"text": "a banana"}})
        [found] = outputs["retriever"]["documents"]
        assert found.content == texts[int(np.argmax(products))]
    for used in (writing, asking, reloaded):
        used.get_component("embedder").close()


async def test_an_async_pipeline_runs_it(clients: dict[str, Any], async_encoder: Any) -> None:
    """By its own coroutine."""
    pipeline = Pipeline()
    pipeline.add_component("embedder", SIETextEmbedder(**clients))
    outputs = await pipeline.run_async({"embedder": {"text": "a"}})
    assert outputs["embedder"]["embedding"] == async_encoder.vector("a", is_query=True).tolist()
    assert async_encoder.threads == [threading.get_ident()]


NON_DEFAULTS: dict[str, Any] = {
    "base_url": "http://gpu-box:8080",
    "model": "other/model",
    "gpu": "l4",
    "options": {"profile": "fast"},
    "timeout_seconds": 2.5,
    "api_key": Secret.from_env_var("ANOTHER_KEY", strict=False),
    "wait_for_capacity": True,
    "device": ComponentDevice.from_str("cuda:1"),
    "token": Secret.from_env_var("ANOTHER_TOKEN", strict=False),
    "prefix": "a",
    "suffix": "b",
    "output_dtype": "float16",
    "model_kwargs": {"torch_dtype": "bfloat16"},
    "tokenizer_kwargs": {"model_max_length": 64},
    "batch_size": 2,
    "dtype": "bfloat16",
    "num_threads": 2,
    "max_length": 64,
    "revision": "v2",
    "cache_dir": "/somewhere",
}
OWN: dict[Any, dict[str, Any]] = {
    SIETextEmbedder: {"instruction": "Find cities"},
    SIEDocumentEmbedder: {
        "meta_fields_to_embed": ["title"],
        "embedding_separator": " | ",
        "progress_bar": False,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_survives_serialisation(kind: Any) -> None:
    """Through YAML, in the namespace that Haystack loads from; nothing falls back to a default."""
    settings = NON_DEFAULTS | OWN[kind]
    parameters = inspect.signature(kind.__init__).parameters
    left_out = {"self", "timeout_s", "client", "async_client", "mode"}  # mode excludes dtype
    assert set(settings) == set(parameters) - left_out
    pipeline = Pipeline()
    pipeline.add_component("embedder", kind(**settings))
    reloaded: Any = Pipeline.loads(pipeline.dumps()).get_component("embedder")
    for name, value in settings.items():
        assert getattr(reloaded, name) == value, name
        assert value != parameters[name].default, name
    assert reloaded._embedder._remote_arguments["wait_for_capacity"] is True
    assert kind.from_dict(kind(mode="exact").to_dict()).mode == "exact"


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_survive_serialisation(kind: Any) -> None:
    """In plain data only, under the name by which Haystack finds the class."""
    data = kind().to_dict()
    assert data["type"].startswith("haystack_integrations.components.embedders.sie.")
    assert json.loads(json.dumps(data)) == data
    assert kind.from_dict(data).to_dict() == data
    assert data["init_parameters"]["model"] == DEFAULT_EMBEDDING_MODEL
    assert getattr(sie_haystack, kind.__name__) is kind


@pytest.mark.parametrize("kind", KINDS)
def test_what_belongs_to_this_process_is_not_serialised(kind: Any, encoder: Any) -> None:
    """A client, and a secret given by its value."""
    with pytest.raises(InvalidRequestError, match=f"a {kind.__name__} with client cannot be"):
        kind(client=encoder).to_dict()
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        kind(api_key=Secret.from_token(KEY)).to_dict()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_key_is_sent_but_shown_nowhere(kind: Any, guard: Any) -> None:
    """A copy keeps it, a pickle does not, and the error of a refusal does not repeat it."""
    secrets: Any = {"api_key": Secret.from_token(KEY), "token": Secret.from_token(HF)}
    embedder = kind(guard.address, "m", **secrets)
    pickled = pickle.dumps(embedder)
    assert KEY.encode() not in pickled
    assert HF.encode() not in pickled
    assert pickle.loads(pickled).api_key is None
    given: Any = "q" if kind is SIETextEmbedder else [Document(content="d")]
    for one in (embedder, copy.copy(embedder), copy.deepcopy(embedder)):
        with pytest.raises(AuthenticationError) as caught:
            await one.run_async(given)
        assert KEY not in str(caught.value)
        await one.close_async()
    assert guard.keys == [f"Bearer {KEY}"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_named(kind: Any) -> None:
    """When the component is made; an unknown one is a TypeError."""
    with pytest.raises(InvalidRequestError, match="device_map"):
        kind(model_kwargs={"device_map": "auto"})
    with pytest.raises(InvalidRequestError, match="contradicts"):
        kind(max_length=8, tokenizer_kwargs={"model_max_length": 16})
    with pytest.raises(InvalidRequestError, match="api_key must be a haystack Secret"):
        kind(api_key=KEY)
    with pytest.raises(TypeError, match="fallback"):
        kind(fallback="local")


async def test_an_error_of_the_model_is_raised(clients: dict[str, Any], run: Run) -> None:
    """No document comes back without its vector."""
    error = InferenceError("broken")
    clients["client"].error = clients["async_client"].error = error
    with pytest.raises(InferenceError, match="broken"):
        await run(SIEDocumentEmbedder(**clients), documents=[Document(content="d")])


async def test_it_warms_up_and_closes(tiny_embedder: Path) -> None:
    """Both may be repeated, and a run after closing works."""
    embedder = SIETextEmbedder(model=tiny_embedder)
    await embedder.warm_up_async()
    embedder.warm_up()
    assert len(embedder.run("berlin")["embedding"]) == 64
    embedder.close()
    await embedder.close_async()
    assert len((await embedder.run_async("berlin"))["embedding"]) == 64
    embedder.close()
