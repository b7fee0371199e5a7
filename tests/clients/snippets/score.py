from sie_sdk import SIEClient
from sie_sdk.types import Item

client = SIEClient("http://localhost:8080")
result = client.score(
    "BAAI/bge-reranker-v2-m3",
    Item(text="how many people live in berlin"),
    [
        Item(text="berlin has a population of many people"),
        Item(text="a museum in paris"),
        Item(text="yellow bananas"),
    ],
)
for entry in result["scores"]:
    print(entry["rank"], entry["item_id"], entry["score"])
