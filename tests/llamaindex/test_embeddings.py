"""`SIEEmbedding` in LlamaIndex's own constructs, over a client whose vectors can be read off."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding, SimilarityMode
from llama_index.core.bridge.pydantic import Field, ValidationError
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.llama_debug import LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from sie_core import DEFAULT_EMBEDDING_MODEL
from sie_core.errors import AuthenticationError, InferenceError, InvalidRequestError
from sie_llamaindex import SIEEmbedding

HF = "hf_not-to-be-seen"
KEY = "key-not-to-be-seen"


@pytest.fixture
def embedding(encoder: Any, async_encoder: Any) -> SIEEmbedding:
    """An embedding model with a client for each way to call."""
    return SIEEmbedding(client=encoder, async_client=async_encoder)


class EventRecorder(BaseEventHandler):
    """Remember the events of the newer of LlamaIndex's two systems."""

    events: list[BaseEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Note the event."""
        del kwargs
        self.events.append(event)


@pytest.fixture
def events() -> Iterator[list[BaseEvent]]:
    """Every event that is dispatched during the test."""
    recorder, root = EventRecorder(), get_dispatcher()
    root.add_event_handler(recorder)
    yield recorder.events
    root.event_handlers.remove(recorder)


async def test_every_method_of_the_base_class_gives_the_clients_vectors(
    embedding: SIEEmbedding, encoder: Any
) -> None:
    """Queries as queries, texts as texts, sync and async alike."""
    query, text = encoder.vector("a b", is_query=True).tolist(), encoder.vector("a b").tolist()
    assert embedding.get_query_embedding("a b") == query
    assert await embedding.aget_query_embedding("a b") == query
    assert embedding.get_text_embedding("a b") == text
    assert await embedding.aget_text_embedding("a b") == text
    assert embedding.get_text_embedding_batch(["a b", "c"])[0] == text
    assert (await embedding.aget_text_embedding_batch(["a b", "c"]))[0] == text
    assert embedding.get_agg_embedding_from_queries(["a b", "a b"]) == query
    assert await embedding.aget_agg_embedding_from_queries(["a b", "a b"]) == query
    assert encoder.models == [DEFAULT_EMBEDDING_MODEL] * len(encoder.models)


async def test_async_calls_stay_on_the_event_loop(
    embedding: SIEEmbedding, encoder: Any, async_encoder: Any
) -> None:
    """The async client is awaited where the caller is, and the sync one is left alone."""
    await embedding.aget_query_embedding("q")
    await embedding.aget_text_embedding("t")
    await embedding.aget_text_embedding_batch(["t"])
    assert async_encoder.threads == [threading.get_ident()] * 3
    assert encoder.threads == []


@pytest.mark.parametrize("num_workers", [None, 2])
async def test_batches_are_as_large_as_asked(
    encoder: Any, async_encoder: Any, num_workers: int | None
) -> None:
    """`embed_batch_size` texts go in one call, 512 unless said otherwise; the order stays."""
    texts = [f"text {i}" for i in range(1100)]
    vectors = [encoder.vector(text).tolist() for text in texts]
    embedding = SIEEmbedding(client=encoder, async_client=async_encoder, num_workers=num_workers)
    assert embedding.get_text_embedding_batch(texts) == vectors
    assert await embedding.aget_text_embedding_batch(texts) == vectors
    embedding.embed_batch_size = 1000
    assert embedding.get_text_embedding_batch(texts) == vectors
    assert [len(batch) for batch in encoder.texts] == [512, 512, 76, 1000, 100]
    assert sorted(len(batch) for batch in async_encoder.texts) == [76, 512, 512]


def test_similarity_is_the_base_classs(embedding: SIEEmbedding) -> None:
    """Cosine unless said otherwise, on lists of floats."""
    one, other = embedding.get_text_embedding("a b"), embedding.get_text_embedding("a b")
    assert embedding.similarity(one, other) == pytest.approx(1.0)
    assert embedding.similarity(one, other, SimilarityMode.EUCLIDEAN) == 0.0


async def test_both_event_systems_hear_of_each_batch(
    encoder: Any, async_encoder: Any, events: list[BaseEvent]
) -> None:
    """With the texts and their vectors; what describes the model holds no secret."""
    handler = LlamaDebugHandler(print_trace_on_end=False)
    embedding = SIEEmbedding(
        client=encoder, async_client=async_encoder, callback_manager=CallbackManager([handler])
    )
    embedding.get_text_embedding_batch(["a", "b"])
    await embedding.aget_query_embedding("q")
    pairs = handler.get_event_pairs(CBEventType.EMBEDDING)
    payloads = [end.payload or {} for _, end in pairs]
    assert [payload[EventPayload.CHUNKS] for payload in payloads] == [["a", "b"], ["q"]]
    assert [len(payload[EventPayload.EMBEDDINGS]) for payload in payloads] == [2, 1]
    starts = [event for event in events if isinstance(event, EmbeddingStartEvent)]
    ends = [event for event in events if isinstance(event, EmbeddingEndEvent)]
    assert [end.chunks for end in ends] == [["a", "b"], ["q"]]
    assert starts[0].model_dict == {
        "class_name": "SIEEmbedding",
        "model_name": DEFAULT_EMBEDDING_MODEL,
        "embed_batch_size": 512,
    }


def test_llamaindexs_cache_is_asked_first(encoder: Any) -> None:
    """What it holds is not encoded again."""
    embedding = SIEEmbedding(client=encoder, embeddings_cache=SimpleKVStore())
    first = embedding.get_text_embedding_batch(["a", "b"])
    assert embedding.get_text_embedding_batch(["b", "a"]) == first[::-1]
    assert embedding.get_text_embedding("a") == first[0]
    assert len(encoder.texts) == 1


async def test_an_index_finds_what_it_holds(embedding: SIEEmbedding, encoder: Any) -> None:
    """Ids and metadata are kept; the text that is encoded holds the metadata, as always there."""
    nodes = [
        TextNode(id_="tower", text="the eiffel tower in paris", metadata={"page": 1}),
        TextNode(id_="banana", text="bananas are yellow", metadata={"page": 2}),
    ]
    index = VectorStoreIndex(nodes, embed_model=embedding)
    assert encoder.texts[0][0] == nodes[0].get_content(metadata_mode=MetadataMode.EMBED)
    retriever = index.as_retriever(similarity_top_k=1)
    [found] = retriever.retrieve("where is the eiffel tower")
    assert (found.node.node_id, found.node.metadata) == ("tower", {"page": 1})
    [found] = await retriever.aretrieve("yellow bananas")
    assert found.node.node_id == "banana"


def test_it_is_a_step_of_a_pipeline(embedding: SIEEmbedding) -> None:
    """IngestionPipeline takes it as a transformation."""
    [node] = IngestionPipeline(transformations=[embedding]).run(nodes=[TextNode(text="a b")])
    assert node.embedding == embedding.get_text_embedding("a b")


NON_DEFAULTS: dict[str, Any] = {
    "base_url": "http://gpu-box:8080",
    "model_name": "other/model",
    "instruction": "Find cities",
    "output_dtype": "float16",
    "options": {"profile": "fast"},
    "gpu": "l4",
    "embed_batch_size": 64,
    "timeout_seconds": 2.5,
    "wait_for_capacity": True,
    "device": ["cuda:0", "cuda:1"],
    "dtype": "bfloat16",
    "num_threads": 2,
    "max_length": 64,
    "batch_size": 8,
    "revision": "v2",
    "cache_dir": "/somewhere",
    "num_workers": 3,
}


def test_every_argument_survives_serialisation() -> None:
    """Apart from secrets, and from what belongs to this process."""
    parameters = inspect.signature(SIEEmbedding.__init__).parameters
    left_out = {"self", "model", "timeout_s", "mode", "api_key", "token", "client", "async_client"}
    left_out |= {"callback_manager", "embeddings_cache", "rate_limiter"}
    assert set(NON_DEFAULTS) == set(parameters) - left_out
    embedding = SIEEmbedding(**NON_DEFAULTS, api_key=KEY, token=HF)
    for reloaded in (
        SIEEmbedding.from_dict(embedding.to_dict()),
        SIEEmbedding.from_json(embedding.to_json()),
    ):
        for name, value in NON_DEFAULTS.items():
            assert getattr(reloaded, name) == value, name
            assert value != parameters[name].default, name
        assert isinstance(reloaded, SIEEmbedding)
        assert reloaded._embedder._remote_arguments["wait_for_capacity"] is True
    shown = json.dumps(embedding.to_dict()) + embedding.to_json() + repr(embedding)
    assert KEY not in shown
    assert HF not in shown
    assert embedding.to_dict()["class_name"] == "SIEEmbedding"
    assert SIEEmbedding.from_dict(SIEEmbedding(mode="exact").to_dict()).mode == "exact"


def test_a_setting_has_two_names_but_one_value() -> None:
    """`model` and `timeout_s` are what SIE's other components and packages say."""
    embedding = SIEEmbedding(model="other/model", timeout_s=1.5)
    assert (embedding.model_name, embedding.model) == ("other/model", "other/model")
    assert embedding.timeout_seconds == 1.5
    with pytest.raises(InvalidRequestError, match="contradict each other"):
        SIEEmbedding(model_name="a", model="b")
    with pytest.raises(InvalidRequestError, match="contradict each other"):
        SIEEmbedding(timeout_s=1, timeout_seconds=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'modell'"):
        SIEEmbedding(modell="typo")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="frozen"):
        embedding.model_name = "other"


def test_a_client_that_cannot_be_pickled_is_not_lost(encoder: Any) -> None:
    """An unpickled component would quietly ask someone else."""
    encoder.lock = threading.Lock()
    embedding = SIEEmbedding(client=encoder)
    with pytest.raises(InvalidRequestError, match="client cannot be pickled"):
        pickle.dumps(embedding)
    assert embedding.client is encoder


def test_a_changed_copy_has_its_own_embedder(encoder: Any) -> None:
    """model_copy(update=...) takes effect."""
    original = SIEEmbedding(client=encoder)
    original.model_copy(update={"model_name": "other"}).get_query_embedding("q")
    original.get_query_embedding("q")
    assert encoder.models == ["other", DEFAULT_EMBEDDING_MODEL]


def test_a_copy_is_changed_by_either_name_of_the_model(encoder: Any) -> None:
    """`model` is `model_name`, as in the constructor."""
    original = SIEEmbedding(client=encoder)
    assert original.model_copy(update={"model": "other"}).model_name == "other"
    with pytest.raises(InvalidRequestError, match="model_name='a' and model='b' contradict"):
        original.model_copy(update={"model_name": "a", "model": "b"})


async def test_a_key_is_sent_but_shown_nowhere(guard: Any) -> None:
    """A copy keeps it, a pickle does not, and the error of a refusal does not repeat it."""
    embedding = SIEEmbedding(guard.address, "m", api_key=KEY)
    twin = copy.deepcopy(embedding)
    assert KEY.encode() not in pickle.dumps(embedding)
    for one in (embedding, twin):
        with pytest.raises(AuthenticationError) as caught:
            await one.aget_query_embedding("q")
        assert KEY not in str(caught.value)
        await one.aclose()
    assert guard.keys == [f"Bearer {KEY}"] * 2


async def test_clients_of_sies_own_package_are_taken(
    official_client: Any, official_async_client: Any
) -> None:
    """They are called with the keywords they take, and awaited natively."""
    embedding = SIEEmbedding(
        client=official_client, async_client=official_async_client, instruction="x", gpu="l4"
    )
    assert embedding.get_query_embedding("a") == await embedding.aget_query_embedding("a")


def test_an_error_of_the_model_is_raised(embedding: SIEEmbedding, encoder: Any) -> None:
    """There is no fallback, and no vector of zeros."""
    encoder.error = InferenceError("broken")
    with pytest.raises(InferenceError, match="broken"):
        embedding.get_text_embedding_batch(["a"])


def test_it_is_a_base_embedding_that_runs_here(tiny_embedder: Path) -> None:
    """Warm, close, and use again."""
    embedding: BaseEmbedding = SIEEmbedding(model_name=str(tiny_embedder))
    assert isinstance(embedding, SIEEmbedding)
    embedding.warm_up()
    assert len(embedding.get_text_embedding("berlin")) == 64
    embedding.close()
    embedding.close()
    assert len(embedding.get_query_embedding("berlin")) == 64
