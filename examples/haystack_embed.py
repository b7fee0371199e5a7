"""Find with Haystack's in-memory store, then rerank; both models inside this process."""

from __future__ import annotations

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_integrations.components.embedders.sie import SIEDocumentEmbedder, SIETextEmbedder
from haystack_integrations.components.rankers.sie import SIERanker

documents = [
    Document(id="museums", content="Berlin is well known for its museums."),
    Document(id="hamburg", content="Many people live in Hamburg, a city near the sea."),
    Document(
        id="population",
        content="Berlin had a population of 3,520,031 registered inhabitants "
        "in an area of 891.82 square kilometers.",
    ),
    Document(id="bananas", content="Bananas are yellow."),
    Document(id="paris", content="Paris is the capital of France."),
]

store = InMemoryDocumentStore()
store.write_documents(SIEDocumentEmbedder(progress_bar=False).run(documents)["documents"])

pipeline = Pipeline()
pipeline.add_component("embedder", SIETextEmbedder())
pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
pipeline.add_component("ranker", SIERanker(top_k=2))
pipeline.connect("embedder.embedding", "retriever.query_embedding")
pipeline.connect("retriever", "ranker")

query = "How many people live in Berlin?"
outputs = pipeline.run({"embedder": {"text": query}, "ranker": {"query": query}})
for document in outputs["ranker"]["documents"]:
    print(f"{document.score:5.1f}  {document.id}")

# Expected output:
#   9.1  population
#  -3.5  hamburg
