from langchain_cohere import CohereRerank
from langchain_core.documents import Document

reranker = CohereRerank(
    model="BAAI/bge-reranker-v2-m3",
    base_url="http://localhost:8080",
    cohere_api_key="any key",
    top_n=2,
)
documents = [
    Document("a museum in paris", metadata={"source": "a"}),
    Document("berlin has a population of many people", metadata={"source": "b"}),
    Document("yellow bananas", metadata={"source": "c"}),
]
for document in reranker.compress_documents(documents, "how many people live in berlin"):
    print(document.metadata["source"], document.metadata["relevance_score"])
