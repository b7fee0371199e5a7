"""`SIEEmbeddings` in LangChain's own constructs and standard tests."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from sie_core import DEFAULT_EMBEDDING_MODEL
from sie_core.errors import AuthenticationError, InferenceError
from sie_langchain import SIEEmbeddings

HF = "hf_not-to-be-seen"
KEY = "key-not-to-be-seen"


class TestStandardUnit(EmbeddingsUnitTests):
    """LangChain's own unit tests."""

    @property
    def embeddings_class(self) -> type[SIEEmbeddings]:
        return SIEEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "some/model"}


class _StandardIntegration(EmbeddingsIntegrationTests):
    """LangChain's own integration tests, of a model somewhere."""

    params: dict[str, Any]

    @property
    def embeddings_class(self) -> type[SIEEmbeddings]:
        return SIEEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.params


class TestStandardInProcess(_StandardIntegration):
    """In this process."""

    @pytest.fixture(autouse=True)
    def _where(self, tiny_embedder: Path) -> None:
        self.params = {"model": str(tiny_embedder)}


class TestStandardOnServer(_StandardIntegration):
    """On a server."""

    @pytest.fixture(autouse=True)
    def _where(self, encoding_server: str) -> None:
        self.params = {"model": "test/tiny-embedder", "base_url": encoding_server}

    @pytest.fixture
    async def model(self) -> Any:
        """The embeddings, closed afterwards as its user would."""
        async with _closing(SIEEmbeddings(**self.params)) as embeddings:
            yield embeddings


class _closing:  # noqa: N801 -- used as a function
    """Close the component's connections at the end."""

    def __init__(self, embeddings: SIEEmbeddings) -> None:
        self.embeddings = embeddings

    async def __aenter__(self) -> SIEEmbeddings:
        return self.embeddings

    async def __aexit__(self, *_: object) -> None:
        await self.embeddings.aclose()


@pytest.fixture
def embeddings(encoder: Any, async_encoder: Any) -> SIEEmbeddings:
    """Embeddings with a client for each way to call."""
    return SIEEmbeddings(client=encoder, async_client=async_encoder)


def test_a_vector_store_finds_what_it_holds(embeddings: SIEEmbeddings) -> None:
    """Sync and async, through LangChain's in-memory store; ids and metadata are the store's."""
    documents = [
        Document(id="tower", page_content="the eiffel tower in paris", metadata={"page": 1}),
        Document(id="banana", page_content="bananas are yellow", metadata={"page": 2}),
    ]
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents)
    [found] = store.similarity_search("where is the eiffel tower", k=1)
    assert (found.id, found.metadata) == ("tower", {"page": 1})

    async def search() -> list[Document]:
        other = InMemoryVectorStore(embeddings)
        await other.aadd_documents(documents)
        return await other.asimilarity_search("yellow bananas", k=1)

    assert [document.id for document in asyncio.run(search())] == ["banana"]


async def test_queries_and_documents_are_told_apart(
    embeddings: SIEEmbeddings, encoder: Any, async_encoder: Any
) -> None:
    """All texts of a call go in one, and an async call stays on the event loop."""
    documents = embeddings.embed_documents(["a", "b"])
    query = embeddings.embed_query("a")
    assert await embeddings.aembed_documents(["a", "b"]) == documents
    assert await embeddings.aembed_query("a") == query
    for client in (encoder, async_encoder):
        assert client.texts == [["a", "b"], ["a"]]
        assert [given["is_query"] for given in client.arguments] == [False, True]
        assert client.models == [DEFAULT_EMBEDDING_MODEL] * 2
    assert async_encoder.threads == [threading.get_ident()] * 2


def test_settings_reach_the_client(encoder: Any) -> None:
    """Options, machine profile and format with each call; the instruction with queries."""
    embeddings = SIEEmbeddings(
        client=encoder,
        model="other/model",
        instruction="Find cities",
        output_dtype="float16",
        options={"profile": "fast"},
        gpu="l4",
        max_length=64,
        batch_size=2,
    )
    embeddings.embed_query("q")
    embeddings.embed_documents(["d"])
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


async def test_clients_of_sies_own_package_are_taken(
    official_client: Any, official_async_client: Any
) -> None:
    """They are called with the keywords they take, and what else they say is left alone."""
    embeddings = SIEEmbeddings(
        client=official_client,
        async_client=official_async_client,
        instruction="Find cities",
        options={"profile": "fast"},
        gpu="l4",
    )
    assert embeddings.embed_documents(["a"]) == await embeddings.aembed_documents(["a"])
    assert embeddings.embed_query("a") == await embeddings.aembed_query("a")


def test_unknown_and_contradicting_arguments_are_errors() -> None:
    """A typo is not swallowed; `timeout_s` is another name; nothing can be assigned."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        SIEEmbeddings(modell="typo")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="contradict each other"):
        SIEEmbeddings(timeout_s=1, timeout_seconds=2)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="packs vectors into bits"):
        SIEEmbeddings(output_dtype="binary")
    with pytest.raises(ValidationError, match="Extra inputs"):
        SIEEmbeddings(fallback="local")  # type: ignore[call-arg]
    embeddings = SIEEmbeddings(timeout_s=1.5)  # type: ignore[call-arg]
    assert embeddings.timeout_seconds == 1.5
    with pytest.raises(ValidationError, match="frozen"):
        embeddings.model = "other"


def test_a_dump_can_be_read_again() -> None:
    """It holds every setting but secrets and clients."""
    settings: dict[str, Any] = {
        "model": "other/model",
        "base_url": "http://gpu-box:8080",
        "instruction": "Find cities",
        "output_dtype": "float16",
        "timeout_seconds": 2.5,
        "wait_for_capacity": True,
        "options": {"profile": "fast"},
    }
    embeddings = SIEEmbeddings(**settings, api_key=KEY, token=HF)
    dumped = json.loads(embeddings.model_dump_json())
    assert dumped == dumped | settings
    assert SIEEmbeddings(**dumped).model_dump() == embeddings.model_dump()
    assert KEY not in str(dumped) + repr(embeddings)
    assert HF not in str(dumped) + repr(embeddings)
    assert embeddings._embedder._remote_arguments["wait_for_capacity"] is True


async def test_a_key_is_sent_but_shown_nowhere(guard: Any) -> None:
    """A copy keeps it, a pickle does not, and the error of a refusal does not repeat it."""
    embeddings = SIEEmbeddings(model="m", base_url=guard.address, api_key=KEY)
    twin = copy.deepcopy(embeddings)
    assert KEY.encode() not in pickle.dumps(embeddings)
    for one in (embeddings, twin):
        with pytest.raises(AuthenticationError) as caught:
            await one.aembed_query("q")
        assert KEY not in str(caught.value)
        await one.aclose()
    assert guard.keys == [f"Bearer {KEY}"] * 2


def test_a_changed_copy_has_its_own_embedder(encoder: Any) -> None:
    """model_copy(update=...) takes effect."""
    original = SIEEmbeddings(client=encoder)
    original.model_copy(update={"model": "other"}).embed_query("q")
    original.embed_query("q")
    assert encoder.models == ["other", DEFAULT_EMBEDDING_MODEL]


def test_an_error_of_the_model_is_raised(embeddings: SIEEmbeddings, encoder: Any) -> None:
    """There is no fallback, and no vector of zeros."""
    encoder.error = InferenceError("broken")
    with pytest.raises(InferenceError, match="broken"):
        embeddings.embed_documents(["a"])
