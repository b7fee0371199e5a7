"""Find with LlamaIndex's in-memory index, then rerank; both models inside this process."""

from __future__ import annotations

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import TextNode

from sie_llamaindex import SIEEmbedding, SIENodePostprocessor

nodes = [
    TextNode(id_="museums", text="Berlin is well known for its museums."),
    TextNode(id_="hamburg", text="Many people live in Hamburg, a city near the sea."),
    TextNode(
        id_="population",
        text="Berlin had a population of 3,520,031 registered inhabitants "
        "in an area of 891.82 square kilometers.",
    ),
    TextNode(id_="bananas", text="Bananas are yellow."),
    TextNode(id_="paris", text="Paris is the capital of France."),
]

engine = RetrieverQueryEngine(
    VectorStoreIndex(nodes, embed_model=SIEEmbedding()).as_retriever(similarity_top_k=3),
    response_synthesizer=NoText(llm=MockLLM()),  # we only look at the nodes, not at an answer
    node_postprocessors=[SIENodePostprocessor(top_n=2)],
)

for node in engine.query("How many people live in Berlin?").source_nodes:
    print(f"{node.score:5.1f}  {node.node_id}")

# Expected output:
#   9.1  population
#  -3.5  hamburg
