from sie_sdk import SIEClient
from sie_sdk.types import Item

client = SIEClient("http://localhost:8080")
documents = {
    "doc-1": "berlin has a population of many people",
    "doc-2": "a museum in paris",
    "doc-3": "yellow bananas",
}
result = client.score(
    "BAAI/bge-reranker-v2-m3",
    Item(id="query-1", text="how many people live in berlin"),
    [Item(id=name, text=text) for name, text in documents.items()],
)
print(result["model"], result["query_id"])
for entry in result["scores"]:
    print(entry["item_id"], entry["score"])
