"""Find with LangChain's in-memory vector store, then rerank; both models inside this process."""

from __future__ import annotations

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from sie_langchain import SIEEmbeddings, SIEReranker

documents = [
    Document(id="museums", page_content="Berlin is well known for its museums."),
    Document(id="hamburg", page_content="Many people live in Hamburg, a city near the sea."),
    Document(
        id="population",
        page_content="Berlin had a population of 3,520,031 registered inhabitants "
        "in an area of 891.82 square kilometers.",
    ),
    Document(id="bananas", page_content="Bananas are yellow."),
    Document(id="paris", page_content="Paris is the capital of France."),
]

store = InMemoryVectorStore(SIEEmbeddings())
store.add_documents(documents)

retriever = ContextualCompressionRetriever(
    base_compressor=SIEReranker(top_n=2),
    base_retriever=store.as_retriever(search_kwargs={"k": 3}),
)

for document in retriever.invoke("How many people live in Berlin?"):
    print(f"{document.metadata['relevance_score']:5.1f}  {document.id}")

# Expected output:
#   9.1  population
#  -3.5  hamburg
