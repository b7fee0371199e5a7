import cohere

client = cohere.ClientV2("any key", base_url="http://localhost:8080")
reply = client.rerank(
    model="BAAI/bge-reranker-v2-m3",
    query="how many people live in berlin",
    documents=["a museum in paris", "berlin has a population of many people", "yellow bananas"],
    top_n=2,
)
for result in reply.results:
    print(result.index, result.relevance_score)
