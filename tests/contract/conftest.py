"""Every backend and every component behind one face, so that a behaviour is written once.

`Client` is anything with `score`; `Subject` is anything that reranks documents. A new backend or
component joins the suite by a class here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from sie_core import (
    Embedder,
    Item,
    LocalAsyncClient,
    LocalClient,
    Reranker,
    SIEAsyncClient,
    SIEClient,
)
from sie_core.fallback import AsyncFallbackClient, FallbackClient

Texts = Sequence[str | None]


@dataclass(frozen=True)
class View:
    """A document as every framework has it."""

    id: str
    text: str | None
    score: float | None
    metadata: dict[str, Any]


class Client(Protocol):
    """A backend: the calls of an SIE client."""

    model: str
    tolerance: float
    """How far scores of the same pair may be apart: half precision rounds more."""

    def score(self, query: str, items: Sequence[Item], **options: Any) -> Mapping[str, Any]:
        """Score with the backend's tiny model."""


class Subject(Protocol):
    """A component, or the Reranker: documents in, documents out."""

    has_none: bool
    """Whether its documents can have None for a text."""
    server: str | None
    """Address of the server that scores; None in-process."""

    def make(self, model: str, **settings: Any) -> Any:
        """Construct it with the core's names for settings (`top_k`, `score_threshold`, …)."""

    def documents(self, texts: Texts) -> list[Any]:
        """Make the framework's documents, with ids `doc-N` and metadata."""

    def rerank(
        self, component: Any, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        """Rerank, the framework's way."""

    def view(self, document: Any) -> View:
        """Read a document, before or after."""

    def serialised(self, component: Any) -> str:
        """Everything that the component shows of itself in a text, dump or dictionary."""


def metadata(position: int) -> dict[str, Any]:
    """Make the metadata of document `position`, with a nested value."""
    return {"n": position, "nested": {"tags": ["a", str(position)]}}


# --- backends ------------------------------------------------------------------------------------


class Local:
    """`LocalClient`."""

    def __init__(self, folder: Path, server: str) -> None:  # noqa: ARG002  others need it
        self.model = str(folder)
        self.client: Any = self.make()

    def make(self) -> LocalClient:
        return LocalClient()

    @property
    def tolerance(self) -> float:
        return tolerance_of(self.make())

    def score(self, query: str, items: Sequence[Item], **options: Any) -> Mapping[str, Any]:
        reply = self.client.score(self.model, Item(text=query), items, **options)
        return asyncio.run(self.awaited(reply)) if inspect.isawaitable(reply) else reply

    async def awaited(self, reply: Any) -> Mapping[str, Any]:
        return await reply

    def close(self) -> None:
        closing = self.client.close()
        if inspect.isawaitable(closing):
            asyncio.run(self.awaited(closing))


class LocalExact(Local):
    """`LocalClient` in float32, with more workers than batches here."""

    def make(self) -> LocalClient:
        return LocalClient(mode="exact", num_threads=3)


class LocalAsync(Local):
    """`LocalAsyncClient`."""

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder, server)
        self.client = LocalAsyncClient(self.make())


class LocalExactAsync(LocalAsync, LocalExact):
    """The same in float32."""


class Remote(Local):
    """`SIEClient`."""

    def __init__(self, folder: Path, server: str) -> None:  # noqa: ARG002
        self.model = "test/tiny-bert"
        self.client = SIEClient(server)


class RemoteAsync(Remote):
    """`SIEAsyncClient`."""

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder, server)
        self.client = SIEAsyncClient(server)


class Chain(Local):
    """`FallbackClient`: a server that is not there, then this process."""

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder, server)
        self.client = FallbackClient([NOWHERE, "local"])


class ChainAsync(Local):
    """`AsyncFallbackClient`, the same."""

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder, server)
        self.client = AsyncFallbackClient([NOWHERE, "local"])


NOWHERE = "http://127.0.0.1:9"
"""A port that nothing listens on."""


def tolerance_of(client: LocalClient) -> float:
    """Return behaviour 7's tolerance: 1e-4 in float32, 0.05 of a logit where more is rounded."""
    return 1e-4 if client.describe().startswith("exact") else 0.05


_CLIENTS = {
    "LocalClient": Local,
    "LocalClient-exact": LocalExact,
    "LocalAsyncClient": LocalAsync,
    "LocalAsyncClient-exact": LocalExactAsync,
    "SIEClient": Remote,
    "SIEAsyncClient": RemoteAsync,
    "FallbackClient": Chain,
    "AsyncFallbackClient": ChainAsync,
}


_FAMILIES = {
    "XLM-RoBERTa": "tiny_xlmr",
    "ModernBERT": "tiny_modernbert",
    "Jina": "tiny_jina",
    "Gemma": "tiny_gemma",
    "Qwen2": "tiny_qwen2",
    "Qwen3": "short_qwen3",
    "ColBERT": "tiny_colbert",
}
"""A fixture with a tiny checkpoint of every family that scores but BERT, which all backends run.

A new family joins the suite by a line here.
"""


@pytest.fixture(params=[*_CLIENTS, *(f"LocalClient-exact-{family}" for family in _FAMILIES)])
def client(request: pytest.FixtureRequest, sie_server: str) -> Iterator[Client]:
    """Each backend in turn with a BERT, and each other family in this process."""
    backend, _, family = request.param.partition("-exact-")
    checkpoint = request.getfixturevalue(_FAMILIES.get(family, "tiny_bert"))
    kind = LocalExact if family else _CLIENTS[backend]
    client = kind(checkpoint, sie_server)
    yield client
    client.close()


@pytest.fixture(scope="session")
def tolerance() -> float:
    """How far scores of a pair may be apart in this machine's default mode."""
    return tolerance_of(LocalClient())


# --- components ----------------------------------------------------------------------------------


@dataclass
class Plain:
    """A document for the bare Reranker."""

    id: str
    text: str | None
    score: float | None
    metadata: dict[str, Any]


class BareReranker:
    """`Reranker.rerank`."""

    has_none = True

    def make(self, model: str, **settings: Any) -> Reranker:
        return Reranker(model, **settings)

    def documents(self, texts: Texts) -> list[Any]:
        return [Plain(f"doc-{i}", text, 0.5, metadata(i)) for i, text in enumerate(texts)]

    def rerank(
        self, component: Reranker, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        texts, scores = self.columns(documents)
        ranking = component.rerank(query, texts, retrieval_scores=scores, **overrides)
        return self.chosen(documents, ranking)

    def columns(self, documents: list[Any]) -> tuple[list[str | None], list[float | None]]:
        return [document.text for document in documents], [document.score for document in documents]

    def with_scores(self, documents: list[Any], scores: list[float]) -> list[Any]:
        return [replace(one, score=score) for one, score in zip(documents, scores, strict=True)]

    def chosen(self, documents: list[Any], ranking: Any) -> list[Any]:
        originals = [documents[entry.index] for entry in ranking]
        return [
            Plain(
                document.id,
                document.text,
                entry.score,
                document.metadata
                | ranking.marks
                | ({"best_passage": list(entry.span)} if entry.span else {}),
            )
            for document, entry in zip(originals, ranking, strict=True)
        ]

    def view(self, document: Plain) -> View:
        return View(document.id, document.text, document.score, document.metadata)

    def serialised(self, component: Reranker) -> str:
        return repr(component) + str(component)


class BareRerankerAsync(BareReranker):
    """`Reranker.arerank`."""

    def rerank(
        self, component: Reranker, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        texts, scores = self.columns(documents)
        ranking = asyncio.run(component.arerank(query, texts, retrieval_scores=scores, **overrides))
        return self.chosen(documents, ranking)


class LangChain:
    """`SIEReranker.compress_documents`."""

    has_none = False

    def make(self, model: str, **settings: Any) -> Any:
        from sie_langchain import SIEReranker

        return SIEReranker(model=model, **settings)

    def documents(self, texts: Texts) -> list[Any]:
        from langchain_core.documents import Document

        return [
            Document(id=f"doc-{i}", page_content=text or "", metadata=metadata(i))
            for i, text in enumerate(texts)
        ]

    def with_scores(self, documents: list[Any], scores: list[float]) -> list[Any]:
        for document, score in zip(documents, scores, strict=True):
            document.metadata["score"] = score
        return documents

    def rerank(
        self, component: Any, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        return list(component.compress_documents(documents, query, **_top_n(overrides)))

    def view(self, document: Any) -> View:
        rest = {k: v for k, v in document.metadata.items() if k != "relevance_score"}
        score = document.metadata.get("relevance_score")
        return View(document.id, document.page_content, score, rest)

    def serialised(self, component: Any) -> str:
        return repr(component) + str(component.model_dump()) + component.model_dump_json()


class LangChainAsync(LangChain):
    """`SIEReranker.acompress_documents`."""

    def rerank(
        self, component: Any, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        return list(
            asyncio.run(component.acompress_documents(documents, query, **_top_n(overrides)))
        )


class LlamaIndex:
    """`SIENodePostprocessor.postprocess_nodes`."""

    has_none = False

    def make(self, model: str, **settings: Any) -> Any:
        from llama_index.core.schema import MetadataMode

        from sie_llamaindex import SIENodePostprocessor

        if "top_k" in settings:
            settings["top_n"] = settings.pop("top_k")
        return SIENodePostprocessor(model=model, metadata_mode=MetadataMode.NONE, **settings)

    def documents(self, texts: Texts) -> list[Any]:
        from llama_index.core.schema import NodeWithScore, TextNode

        return [
            NodeWithScore(
                node=TextNode(id_=f"doc-{i}", text=text or "", metadata=metadata(i)), score=0.5
            )
            for i, text in enumerate(texts)
        ]

    def with_scores(self, documents: list[Any], scores: list[float]) -> list[Any]:
        for document, score in zip(documents, scores, strict=True):
            document.score = score
        return documents

    def rerank(
        self, component: Any, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        return list(component.postprocess_nodes(documents, _bundle(query, overrides)))

    def view(self, document: Any) -> View:
        node = document.node
        return View(node.node_id, node.text, document.score, node.metadata)

    def serialised(self, component: Any) -> str:
        return repr(component) + str(component.to_dict()) + component.to_json()


class LlamaIndexAsync(LlamaIndex):
    """`SIENodePostprocessor.apostprocess_nodes`."""

    def rerank(
        self, component: Any, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        return list(asyncio.run(component.apostprocess_nodes(documents, _bundle(query, overrides))))


class Haystack:
    """`SIERanker.run`."""

    has_none = True

    def make(self, model: str, **settings: Any) -> Any:
        from haystack.utils import Secret

        from sie_haystack import SIERanker

        if settings.get("score_space") in {"raw", "probability"}:
            settings["scale_score"] = settings.pop("score_space") == "probability"
        if "token" in settings:
            settings["token"] = Secret.from_token(settings["token"])
        names = {"meta_fields": "meta_fields_to_embed", "meta_separator": "embedding_separator"}
        settings = {names.get(name, name): value for name, value in settings.items()}
        return SIERanker(model=model, **{"top_k": None} | settings)

    def documents(self, texts: Texts) -> list[Any]:
        from haystack import Document

        return [
            Document(id=f"doc-{i}", content=text, meta=metadata(i), score=0.5, embedding=[0.1, i])
            for i, text in enumerate(texts)
        ]

    def with_scores(self, documents: list[Any], scores: list[float]) -> list[Any]:
        return [replace(one, score=score) for one, score in zip(documents, scores, strict=True)]

    def rerank(
        self, component: Any, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        return list(component.run(query=query, documents=documents, **overrides)["documents"])

    def view(self, document: Any) -> View:
        return View(document.id, document.content, document.score, document.meta)

    def serialised(self, component: Any) -> str:
        try:
            dumped = str(component.to_dict())
        except ValueError as error:  # Haystack refuses to serialise a token given as a value
            dumped = str(error)
        return repr(component) + dumped


class HaystackAsync(Haystack):
    """`SIERanker.run_async`."""

    def rerank(
        self, component: Any, query: str, documents: list[Any], **overrides: Any
    ) -> list[Any]:
        return list(
            asyncio.run(component.run_async(query=query, documents=documents, **overrides))[
                "documents"
            ]
        )


def _top_n(overrides: dict[str, Any]) -> dict[str, Any]:
    return {"top_n" if name == "top_k" else name: value for name, value in overrides.items()}


def _bundle(query: str, overrides: dict[str, Any]) -> Any:
    from llama_index.core.schema import QueryBundle

    from sie_llamaindex import SIEQueryBundle

    return SIEQueryBundle(query, **_top_n(overrides)) if overrides else QueryBundle(query)


_SUBJECTS = {
    kind.__name__: kind
    for kind in (
        BareReranker,
        BareRerankerAsync,
        LangChain,
        LangChainAsync,
        LlamaIndex,
        LlamaIndexAsync,
        Haystack,
        HaystackAsync,
    )
}


class OnServer:
    """A component that scores on a server: the same, with `base_url` and the model's name there."""

    def __init__(self, subject: Any, server: str) -> None:
        self.subject = subject
        self.server = server

    def make(self, model: str, **settings: Any) -> Any:
        name = model if model == "/no/such/model" else "test/tiny-bert"
        return self.subject.make(name, base_url=self.server, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.subject, name)


@pytest.fixture(params=[f"{name}-{place}" for name in _SUBJECTS for place in ("local", "server")])
def subject(request: pytest.FixtureRequest, sie_server: str) -> Subject:
    """Each component's sync and async face in turn, in this process and on a server."""
    name, place = request.param.split("-")
    subject: Any = _SUBJECTS[name]()
    subject.server = None
    return subject if place == "local" else OnServer(subject, sie_server)


@pytest.fixture(params=_SUBJECTS)
def local_subject(request: pytest.FixtureRequest) -> Subject:
    """Each component's sync and async face in turn, in this process."""
    subject: Any = _SUBJECTS[request.param]()
    subject.server = None
    return subject


# --- embedders -----------------------------------------------------------------------------------


class BareEmbedder:
    """`Embedder.embed`."""

    def make(self, model: str, **settings: Any) -> Any:
        return Embedder(model, **settings)

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        return list(component.embed(texts))

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(component.embed([text], is_query=True)[0])

    def serialised(self, component: Any) -> str:
        return repr(component) + str(component)

    def close(self, component: Any) -> None:
        component.close()


class BareEmbedderAsync(BareEmbedder):
    """`Embedder.aembed`."""

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        return list(asyncio.run(component.aembed(texts)))

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(asyncio.run(component.aembed([text], is_query=True))[0])


class LangChainEmbeddings(BareEmbedder):
    """`SIEEmbeddings`."""

    def make(self, model: str, **settings: Any) -> Any:
        from sie_langchain import SIEEmbeddings

        return SIEEmbeddings(model=model, **settings)

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        return list(component.embed_documents(texts))

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(component.embed_query(text))

    def serialised(self, component: Any) -> str:
        return repr(component) + str(component.model_dump()) + component.model_dump_json()


class LangChainEmbeddingsAsync(LangChainEmbeddings):
    """The same, by its async methods."""

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        return list(asyncio.run(component.aembed_documents(texts)))

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(asyncio.run(component.aembed_query(text)))


class LlamaIndexEmbedding(BareEmbedder):
    """`SIEEmbedding`."""

    def make(self, model: str, **settings: Any) -> Any:
        from sie_llamaindex import SIEEmbedding

        return SIEEmbedding(model_name=model, **settings)

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        return list(component.get_text_embedding_batch(texts))

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(component.get_query_embedding(text))

    def serialised(self, component: Any) -> str:
        shown = repr(component) + str(component.to_dict()) + component.to_json()
        return shown + str(component.to_payload())


class LlamaIndexEmbeddingAsync(LlamaIndexEmbedding):
    """The same, by its async methods."""

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        return list(asyncio.run(component.aget_text_embedding_batch(texts)))

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(asyncio.run(component.aget_query_embedding(text)))


class HaystackEmbedders(BareEmbedder):
    """`SIETextEmbedder` and `SIEDocumentEmbedder`, side by side."""

    def make(self, model: str, **settings: Any) -> Any:
        from haystack.utils import Secret

        from sie_haystack import SIEDocumentEmbedder, SIETextEmbedder

        if "token" in settings:
            settings["token"] = Secret.from_token(settings["token"])
        document_embedder = SIEDocumentEmbedder(model=model, progress_bar=False, **settings)
        return SIETextEmbedder(model=model, **settings), document_embedder

    def documents(self, texts: list[str]) -> list[Any]:
        from haystack import Document

        return [
            Document(id=f"doc-{i}", content=text, meta=metadata(i)) for i, text in enumerate(texts)
        ]

    def vectors(self, documents: list[Any], texts: list[str]) -> list[list[float]]:
        """Return the vectors, having checked that nothing else of the documents has changed."""
        bare = [document.to_dict() | {"embedding": None} for document in documents]
        assert bare == [document.to_dict() for document in self.documents(texts)]
        return [document.embedding for document in documents]

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        given = self.documents(texts)
        embedded = component[1].run(documents=given)["documents"]
        assert all(document.embedding is None for document in given)
        return self.vectors(embedded, texts)

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(component[0].run(text=text)["embedding"])

    def serialised(self, component: Any) -> str:
        shown = repr(component)
        for one in component:
            try:
                shown += str(one.to_dict())
            except ValueError as error:  # Haystack refuses to serialise a token given as a value
                shown += str(error)
        return shown

    def close(self, component: Any) -> None:
        for one in component:
            one.close()


class HaystackEmbeddersAsync(HaystackEmbedders):
    """The same, by `run_async`."""

    def embed_documents(self, component: Any, texts: list[str]) -> list[list[float]]:
        running = component[1].run_async(documents=self.documents(texts))
        return self.vectors(asyncio.run(running)["documents"], texts)

    def embed_query(self, component: Any, text: str) -> list[float]:
        return list(asyncio.run(component[0].run_async(text=text))["embedding"])


_EMBEDDERS = {
    kind.__name__: kind
    for kind in (
        BareEmbedder,
        BareEmbedderAsync,
        LangChainEmbeddings,
        LangChainEmbeddingsAsync,
        LlamaIndexEmbedding,
        LlamaIndexEmbeddingAsync,
        HaystackEmbedders,
        HaystackEmbeddersAsync,
    )
}


class EmbedderHere:
    """An embedder in this process, in float32: what is rounded there is not this suite's affair."""

    def __init__(self, subject: Any) -> None:
        self.bare = subject

    def make(self, model: str, **settings: Any) -> Any:
        return self.bare.make(model, mode="exact", **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


class EmbedderOnServer(EmbedderHere):
    """One that asks a server: the same, with `base_url` and the model's name there."""

    def __init__(self, subject: Any, server: str) -> None:
        super().__init__(subject)
        self.server = server

    def make(self, model: str, **settings: Any) -> Any:
        return self.bare.make(f"test/{Path(model).name}", base_url=self.server, **settings)


@pytest.fixture(params=[f"{name}-{place}" for name in _EMBEDDERS for place in ("local", "server")])
def embedder_subject(request: pytest.FixtureRequest, encoding_server: str) -> Any:
    """Each embedder's sync and async face in turn, in this process and on a server."""
    name, place = request.param.split("-")
    subject = _EMBEDDERS[name]()
    return EmbedderHere(subject) if place == "local" else EmbedderOnServer(subject, encoding_server)
