"""Retrieve from Qdrant (or by BM25, or both), rerank, and hand the best to a chat model.

    python examples/two_stage/with_langchain.py --first-stage hybrid

The first run embeds the passages into --path; later ones find them there.
"""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_qdrant import QdrantVectorStore
from passages import (
    COLLECTION,
    DIMENSIONS,
    NUM_ANSWERS,
    NUM_CANDIDATES,
    PROMPT,
    KeywordIndex,
    arguments,
    first_stage,
    load_passages,
    print_prompt,
)
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

from sie_langchain import SIEEmbeddings, SIEReranker

args = arguments(__doc__)
passages = load_passages(args.questions)
documents = {p.id: Document(id=p.id, page_content=p.text) for p in passages}
keywords = KeywordIndex(passages)

client = QdrantClient(url=args.url) if args.url else QdrantClient(path=str(args.path))
if is_new := not client.collection_exists(COLLECTION):
    vectors = VectorParams(size=DIMENSIONS, distance=Distance.COSINE)
    client.create_collection(COLLECTION, vectors_config=vectors)
store = QdrantVectorStore(client=client, collection_name=COLLECTION, embedding=SIEEmbeddings())
if is_new:
    store.add_documents(list(documents.values()), ids=list(documents))
print(f"{client.count(COLLECTION).count} passages {'embedded' if is_new else 'found'} in Qdrant\n")


def candidates(question: str) -> list[Document]:
    """Run the first stage."""

    def dense() -> list[str]:
        found = store.similarity_search(question, k=NUM_CANDIDATES)
        return [document.metadata["_id"] for document in found]

    def by_keywords() -> list[str]:
        return keywords.search(question, NUM_CANDIDATES)

    return [documents[name] for name in first_stage(args.first_stage, dense, by_keywords)]


def numbered(ranked: list[Document]) -> str:
    """Number the passages for the prompt."""
    return "\n".join(f"[{i}] {document.page_content}" for i, document in enumerate(ranked, 1))


rerank = SIEReranker(top_n=NUM_ANSWERS).as_runnable()
search = {"query": RunnablePassthrough(), "documents": RunnableLambda(candidates)} | rerank
chain = (
    {"question": RunnablePassthrough(), "passages": search | numbered}
    | PromptTemplate.from_template(PROMPT)
    | (lambda prompt: print_prompt(prompt.text))  # your chat model goes here
)
chain.invoke(args.question)
client.close()
