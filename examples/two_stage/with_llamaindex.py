"""Retrieve from Qdrant (or by BM25, or both), rerank, and hand the best to a chat model.

    python examples/two_stage/with_llamaindex.py --first-stage hybrid

The first run embeds the passages into --path; later ones find them there.
"""

from __future__ import annotations

from llama_index.core import PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from passages import (
    COLLECTION,
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

from sie_llamaindex import SIEEmbedding, SIENodePostprocessor

args = arguments(__doc__)
passages = load_passages(args.questions)
nodes = {p.id: TextNode(id_=p.id, text=p.text) for p in passages}
keywords = KeywordIndex(passages)

client = QdrantClient(url=args.url) if args.url else QdrantClient(path=str(args.path))
store = QdrantVectorStore(client=client, collection_name=COLLECTION)
if is_new := not client.collection_exists(COLLECTION):
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(
        list(nodes.values()), storage_context=context, embed_model=SIEEmbedding()
    )
else:
    index = VectorStoreIndex.from_vector_store(store, embed_model=SIEEmbedding())
print(f"{client.count(COLLECTION).count} passages {'embedded' if is_new else 'found'} in Qdrant\n")


class FirstStage(BaseRetriever):
    """The retriever whose nodes are reranked."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        question = query_bundle.query_str

        def dense() -> list[str]:
            retriever = index.as_retriever(similarity_top_k=NUM_CANDIDATES)
            return [found.node.node_id for found in retriever.retrieve(question)]

        def by_keywords() -> list[str]:
            return keywords.search(question, NUM_CANDIDATES)

        names = first_stage(args.first_stage, dense, by_keywords)
        return [NodeWithScore(node=nodes[name]) for name in names]


found = FirstStage().retrieve(args.question)
reranker = SIENodePostprocessor(top_n=NUM_ANSWERS)
ranked = reranker.postprocess_nodes(found, query_str=args.question)
texts = "\n".join(f"[{i}] {node.node.get_content()}" for i, node in enumerate(ranked, 1))
prompt = PromptTemplate(PROMPT).format(passages=texts, question=args.question)
print_prompt(prompt)  # your chat model goes here
client.close()
