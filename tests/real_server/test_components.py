"""The Reranker and all three components against sie-server 0.10.1 itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from sie_core.errors import ModelNotFoundError, SIEConnectionError
from sie_core.remote import SIEClient
from sie_core.reranker import Reranker
from sie_core.types import Item

pytestmark = pytest.mark.real_server

QUERY = "what is python"
TEXTS = ["the weather is sunny today", "python is a programming language", "bananas are yellow"]
TOLERANCE = 1e-4
"""How a server batches a document moves its score a little."""


@dataclass(frozen=True)
class Ranked:
    """A document as it came back."""

    id: str
    score: float | None
    metadata: dict[str, Any]


class Component(Protocol):
    """A framework's component: texts in, as documents with the ids `doc-N`, and documents out."""

    def make(self, model: str, **settings: Any) -> Any:
        """Construct it."""

    def rerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        """Call it."""

    async def arerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        """Call it without blocking."""


class Bare:
    """`Reranker`."""

    def make(self, model: str, **settings: Any) -> Reranker:
        return Reranker(model, **settings)

    def rerank(self, component: Reranker, texts: Sequence[str]) -> list[Ranked]:
        return self.view(component.rerank(QUERY, texts))

    async def arerank(self, component: Reranker, texts: Sequence[str]) -> list[Ranked]:
        return self.view(await component.arerank(QUERY, texts))

    def view(self, ranking: Any) -> list[Ranked]:
        return [Ranked(f"doc-{entry.index}", entry.score, ranking.marks) for entry in ranking]


class LangChain:
    """`SIEReranker`."""

    def make(self, model: str, **settings: Any) -> Any:
        from sie_langchain import SIEReranker

        return SIEReranker(model=model, **settings)

    def rerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        return self.view(component.compress_documents(self.documents(texts), QUERY))

    async def arerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        return self.view(await component.acompress_documents(self.documents(texts), QUERY))

    def documents(self, texts: Sequence[str]) -> list[Any]:
        from langchain_core.documents import Document

        return [Document(id=f"doc-{i}", page_content=text) for i, text in enumerate(texts)]

    def view(self, documents: Sequence[Any]) -> list[Ranked]:
        return [
            Ranked(document.id, document.metadata.get("relevance_score"), document.metadata)
            for document in documents
        ]


class LlamaIndex:
    """`SIENodePostprocessor`."""

    def make(self, model: str, **settings: Any) -> Any:
        from sie_llamaindex import SIENodePostprocessor

        return SIENodePostprocessor(model=model, **settings)

    def rerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        return self.view(component.postprocess_nodes(self.nodes(texts), query_str=QUERY))

    async def arerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        nodes = self.nodes(texts)
        return self.view(await component.apostprocess_nodes(nodes, query_str=QUERY))

    def nodes(self, texts: Sequence[str]) -> list[Any]:
        from llama_index.core.schema import NodeWithScore, TextNode

        return [
            NodeWithScore(node=TextNode(id_=f"doc-{i}", text=text), score=0.5)
            for i, text in enumerate(texts)
        ]

    def view(self, nodes: Sequence[Any]) -> list[Ranked]:
        return [Ranked(node.node_id, node.score, node.metadata) for node in nodes]


class Haystack:
    """`SIERanker`."""

    def make(self, model: str, **settings: Any) -> Any:
        from sie_haystack import SIERanker

        return SIERanker(model=model, top_k=None, **settings)

    def rerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        return self.view(component.run(query=QUERY, documents=self.documents(texts)))

    async def arerank(self, component: Any, texts: Sequence[str]) -> list[Ranked]:
        return self.view(await component.run_async(query=QUERY, documents=self.documents(texts)))

    def documents(self, texts: Sequence[str]) -> list[Any]:
        from haystack import Document

        return [Document(id=f"doc-{i}", content=text) for i, text in enumerate(texts)]

    def view(self, output: dict[str, Any]) -> list[Ranked]:
        return [
            Ranked(document.id, document.score, document.meta) for document in output["documents"]
        ]


@pytest.fixture(params=[Bare, LangChain, LlamaIndex, Haystack], ids=lambda kind: kind.__name__)
def component(request: pytest.FixtureRequest) -> Component:
    """Each of them in turn."""
    subject: Component = request.param()
    return subject


def client_scores(server: Any, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Score with the bare client: ids and scores, best first."""
    items = [Item(id=f"doc-{i}", text=text) for i, text in enumerate(texts)]
    with SIEClient(server.url) as client:
        result = client.score(server.model, Item(text=QUERY), items)
    return [(entry["item_id"], entry["score"]) for entry in result["scores"]]


def pairs(documents: Sequence[Ranked]) -> list[tuple[str, Any]]:
    """List ids and scores, best first."""
    return [(document.id, document.score) for document in documents]


def test_every_component_ranks_as_the_client_does(component: Component, server: Any) -> None:
    """Ids, scores and order are the client's, sync and async; nothing is marked as degraded."""
    reranker = component.make(server.model, base_url=server.url)
    ranked = component.rerank(reranker, TEXTS)
    expected = [
        (document, pytest.approx(score, abs=TOLERANCE))
        for document, score in client_scores(server, TEXTS)
    ]
    assert pairs(ranked) == expected
    assert pairs(asyncio.run(component.arerank(reranker, TEXTS))) == expected
    assert not any("rerank_status" in document.metadata for document in ranked)


@pytest.mark.parametrize("count", [513, 3000])
def test_every_component_ranks_any_number(component: Component, count: int, server: Any) -> None:
    """More than one request holds: each document once, with the client's score, best first."""
    texts = [f"document number {i}" for i in range(count)]
    reranker = component.make(server.model, base_url=server.url)
    expected = dict(client_scores(server, texts))
    for ranked in (
        component.rerank(reranker, texts),
        asyncio.run(component.arerank(reranker, texts)),
    ):
        found = pairs(ranked)
        assert len(found) == count
        assert dict(found) == pytest.approx(expected, abs=TOLERANCE)
        assert found == sorted(found, key=lambda pair: -pair[1])


def test_every_component_says_that_a_model_is_unknown(component: Component, server: Any) -> None:
    """The same exception as in-process, with the server's code."""
    reranker = component.make("no/such", base_url=server.url)
    with pytest.raises(ModelNotFoundError) as caught:
        component.rerank(reranker, TEXTS)
    assert caught.value.code == "MODEL_NOT_FOUND"
    with pytest.raises(ModelNotFoundError):
        asyncio.run(component.arerank(reranker, TEXTS))


def test_every_component_survives_a_crash(component: Component, start_server: Any) -> None:
    """A server killed during calls: an error without a fallback, else the order as it was."""
    server = start_server()
    texts = [f"document number {i}" for i in range(1000)]
    plain = component.make(server.model, base_url=server.url)
    falling = component.make(server.model, base_url=server.url, fallback="retrieval_order")
    calls: dict[str, Callable[[], list[Ranked]]] = {
        "sync": lambda: component.rerank(plain, texts),
        "async": lambda: asyncio.run(component.arerank(plain, texts)),
        "sync, fallback": lambda: component.rerank(falling, texts),
        "async, fallback": lambda: asyncio.run(component.arerank(falling, texts)),
    }
    answered = {name: threading.Event() for name in calls}

    def call_until_it_differs(name: str) -> list[Ranked]:
        while True:
            ranked = calls[name]()
            if ranked[0].score is None:
                return ranked
            answered[name].set()

    with ThreadPoolExecutor(len(calls)) as threads:
        futures = {name: threads.submit(call_until_it_differs, name) for name in calls}
        is_alive = [event.wait(120) for event in answered.values()]
        server.kill()
        killed = time.monotonic()
        outcomes = {name: future.exception(timeout=60) for name, future in futures.items()}
    assert time.monotonic() - killed < 20
    assert all(is_alive)
    assert isinstance(outcomes["sync"], SIEConnectionError)
    assert isinstance(outcomes["async"], SIEConnectionError)
    for name in ("sync, fallback", "async, fallback"):
        ranked = futures[name].result()
        assert [document.id for document in ranked] == [f"doc-{i}" for i in range(1000)]
        for document in ranked:
            assert document.score is None
            assert document.metadata["rerank_status"] == "degraded"
            assert document.metadata["rerank_served_by"] == "retrieval_order"
            assert server.url in document.metadata["rerank_reason"]
