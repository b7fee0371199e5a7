import asyncio

from sie_sdk import SIEAsyncClient
from sie_sdk.types import Item


async def main() -> None:
    async with SIEAsyncClient("http://localhost:8080") as client:
        results = await asyncio.gather(
            *(
                client.score(
                    "BAAI/bge-reranker-v2-m3",
                    Item(text=query),
                    [Item(text="a museum in paris"), Item(text="yellow bananas")],
                )
                for query in ("where is the museum", "what is yellow")
            )
        )
    for result in results:
        for entry in result["scores"]:
            print(entry["item_id"], entry["score"])


asyncio.run(main())
