"""Rerank what a LangChain retriever found, with the model inside this process."""

from __future__ import annotations

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from sie_langchain import SIEReranker

documents = [
    Document(id="museums", page_content="Berlin is well known for its museums."),
    Document(id="hamburg", page_content="Many people live in Hamburg, a city near the sea."),
    Document(
        id="population",
        page_content="Berlin had a population of 3,520,031 registered inhabitants "
        "in an area of 891.82 square kilometers.",
    ),
    Document(id="paris", page_content="Paris is the capital of France."),
]

# Any retriever goes here; this one finds every document, in the order above.
base_retriever: RunnableLambda[str, list[Document]] = RunnableLambda(lambda _query: documents)

retriever = ContextualCompressionRetriever(
    base_compressor=SIEReranker(top_n=3),
    base_retriever=base_retriever,
)

for document in retriever.invoke("How many people live in Berlin?"):
    print(f"{document.metadata['relevance_score']:5.1f}  {document.id}")

# Expected output:
#   9.1  population
#  -3.5  hamburg
#  -3.9  museums
