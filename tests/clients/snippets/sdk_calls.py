"""The other calls of the official client, and what it raises; prints JSON."""

import json
from collections.abc import Callable

from sie_sdk import RequestError, SIEClient
from sie_sdk.types import Item

client = SIEClient("http://localhost:8080", timeout_s=30)
ITEMS = [Item(id="a", text="a museum in paris"), Item(id="b", text="yellow bananas")]


def refusal(call: Callable[[], object]) -> list[object]:
    """Make a call that the server refuses; tell what the client makes of it."""
    try:
        call()
    except RequestError as error:
        return [error.status_code, error.code, str(error)]
    return ["nothing"]


half = client.encode("BAAI/bge-m3", ITEMS, output_dtype="float16")
tokens = client.encode("colbert-ir/colbertv2.0", ITEMS, output_types=["multivector"])
info = client.get_model("BAAI/bge-reranker-v2-m3")
maxsim = client.score("colbert-ir/colbertv2.0", Item(text="where is the museum"), ITEMS)
instructed = client.score(
    "BAAI/bge-reranker-v2-m3", Item(text="bananas"), ITEMS, instruction="what is yellow"
)
short = client.score(
    "BAAI/bge-reranker-v2-m3", Item(text="bananas"), ITEMS, options={"max_length": 8}
)
print(
    json.dumps(
        {
            "models": sorted(model["name"] for model in client.list_models()),
            "outputs": info["outputs"],
            "loaded": info["loaded"],
            "ids": [item["id"] for item in half],
            "half": [str(half[0]["dense"].dtype), half[0]["dense"].tolist()],
            "tokens": [item["multivector"].tolist() for item in tokens],
            "maxsim": {entry["item_id"]: entry["score"] for entry in maxsim["scores"]},
            "instructed": {entry["item_id"]: entry["score"] for entry in instructed["scores"]},
            "short": {entry["item_id"]: entry["score"] for entry in short["scores"]},
            "unknown": refusal(lambda: client.score("no/such", Item(text="a"), ITEMS)),
            "empty": refusal(lambda: client.score("BAAI/bge-reranker-v2-m3", Item(text="a"), [])),
            "wrong": refusal(lambda: client.encode("BAAI/bge-reranker-v2-m3", ITEMS)),
            "retries": client.last_retry_count,
        }
    )
)
