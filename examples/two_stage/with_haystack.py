"""Retrieve from Qdrant (or by BM25, or both), rerank, and hand the best to a chat model.

    python examples/two_stage/with_haystack.py --first-stage hybrid

The first run embeds the passages into --path; later ones find them there.
"""

from __future__ import annotations

from haystack import Document, Pipeline, component
from haystack.components.builders import PromptBuilder
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from passages import (
    COLLECTION,
    DIMENSIONS,
    NUM_ANSWERS,
    NUM_CANDIDATES,
    KeywordIndex,
    arguments,
    first_stage,
    load_passages,
    print_prompt,
)

from haystack_integrations.components.embedders.sie import SIEDocumentEmbedder, SIETextEmbedder
from haystack_integrations.components.rankers.sie import SIERanker

PROMPT = """Answer from these passages, and say which.

{% for document in documents %}[{{ loop.index }}] {{ document.content }}
{% endfor %}
Question: {{ question }}"""

args = arguments(__doc__)
passages = load_passages(args.questions)
documents = {p.id: Document(id=p.id, content=p.text) for p in passages}
keywords = KeywordIndex(passages)

place = {"url": args.url} if args.url else {"path": str(args.path)}
store = QdrantDocumentStore(
    **place, index=COLLECTION, embedding_dim=DIMENSIONS, similarity="cosine", return_embedding=False
)
if is_new := not store.count_documents():
    embedder = SIEDocumentEmbedder(progress_bar=False)
    store.write_documents(embedder.run(list(documents.values()))["documents"])
print(f"{store.count_documents()} passages {'embedded' if is_new else 'found'} in Qdrant\n")


@component
class FirstStage:
    """Joins what Qdrant found with what BM25 finds."""

    @component.output_types(documents=list[Document])
    def run(self, question: str, found: list[Document]) -> dict[str, list[Document]]:
        """Return the candidates for reranking."""

        def dense() -> list[str]:
            return [document.id for document in found]

        def by_keywords() -> list[str]:
            return keywords.search(question, NUM_CANDIDATES)

        names = first_stage(args.first_stage, dense, by_keywords)
        return {"documents": [documents[name] for name in names]}


@component
class ChatModel:
    """Your chat model goes here."""

    @component.output_types()
    def run(self, prompt: str) -> dict[str, object]:
        """Take the prompt."""
        print_prompt(prompt)
        return {}


pipeline = Pipeline()
pipeline.add_component("embedder", SIETextEmbedder())
pipeline.add_component("qdrant", QdrantEmbeddingRetriever(store, top_k=NUM_CANDIDATES))
pipeline.add_component("first_stage", FirstStage())
pipeline.add_component("ranker", SIERanker(top_k=NUM_ANSWERS))
pipeline.add_component("prompt", PromptBuilder(PROMPT, required_variables="*"))
pipeline.add_component("chat", ChatModel())
pipeline.connect("embedder.embedding", "qdrant.query_embedding")
pipeline.connect("qdrant.documents", "first_stage.found")
pipeline.connect("first_stage.documents", "ranker.documents")
pipeline.connect("ranker.documents", "prompt.documents")
pipeline.connect("prompt.prompt", "chat.prompt")
pipeline.run(
    {
        "embedder": {"text": args.question},
        "first_stage": {"question": args.question},
        "ranker": {"query": args.question},
        "prompt": {"question": args.question},
    }
)
