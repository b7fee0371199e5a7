"""Find the nearest of a few texts with a dense encoder inside this process."""

from __future__ import annotations

import numpy as np

from sie_core import Item, LocalClient

MODEL = "BAAI/bge-small-en-v1.5"

documents = [
    Item(id="museums", text="Berlin is well known for its museums."),
    Item(
        id="population",
        text="Berlin had a population of 3,520,031 registered inhabitants "
        "in an area of 891.82 square kilometers.",
    ),
    Item(id="bananas", text="Bananas are yellow."),
]

client = LocalClient(mode="exact")
query = client.encode(MODEL, Item(text="How many people live in Berlin?"), is_query=True)["dense"]
vectors = [(result["id"], result["dense"]) for result in client.encode(MODEL, documents)]

# The vectors have the length 1: their product is their cosine.
for name, vector in sorted(vectors, key=lambda entry: -float(np.dot(entry[1], query))):
    print(f"{np.dot(vector, query):.2f}  {name}")

# Expected output:
# 0.79  population
# 0.72  museums
# 0.29  bananas
