import numpy as np
from sie_sdk import SIEClient
from sie_sdk.types import Item

client = SIEClient("http://localhost:8080")
query = "how many people live in berlin"
corpus = [
    "a museum in paris",
    "yellow bananas",
    "berlin has a population of many people",
    "the weather is sunny in berlin",
]

# First stage: vectors, of which the nearest are kept.
documents = client.encode("BAAI/bge-m3", [Item(text=text) for text in corpus])
vectors = np.stack([document["dense"] for document in documents])
query_vector = client.encode("BAAI/bge-m3", Item(text=query), is_query=True)["dense"]
nearest = np.argsort(-vectors @ query_vector)[:3]

# Second stage: query and document are read together.
result = client.score(
    "BAAI/bge-reranker-v2-m3",
    Item(text=query),
    [Item(id=f"doc-{index}", text=corpus[index]) for index in nearest],
)
for entry in result["scores"]:
    print(entry["item_id"], entry["score"])
