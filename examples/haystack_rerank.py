"""Rerank what a Haystack retriever found, with the model inside this process."""

from __future__ import annotations

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_integrations.components.rankers.sie import SIERanker

store = InMemoryDocumentStore()
store.write_documents(
    [
        Document(id="museums", content="Berlin is well known for its museums."),
        Document(id="hamburg", content="Many people live in Hamburg, a city near the sea."),
        Document(
            id="population",
            content="Berlin had a population of 3,520,031 registered inhabitants "
            "in an area of 891.82 square kilometers.",
        ),
        Document(id="paris", content="Paris is the capital of France."),
    ]
)

pipeline = Pipeline()
pipeline.add_component("retriever", InMemoryBM25Retriever(store))
pipeline.add_component("ranker", SIERanker(top_k=3))
pipeline.connect("retriever", "ranker")

query = "How many people live in Berlin?"
outputs = pipeline.run({"retriever": {"query": query}, "ranker": {"query": query}})
for document in outputs["ranker"]["documents"]:
    print(f"{document.score:5.1f}  {document.id}")

# Expected output:
#   9.1  population
#  -3.5  hamburg
#  -3.9  museums
