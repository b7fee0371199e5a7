"""Encode documents once with a ColBERT, keep their vectors, and score every query against those.

    python examples/colbert_kept_vectors.py [model] [file]

The model is a name on the hub or a folder; the vectors go to an .npz file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sie_core import Item, LocalClient

MODEL = sys.argv[1] if len(sys.argv) > 1 else "answerdotai/answerai-colbert-small-v1"
FILE = Path(sys.argv[2] if len(sys.argv) > 2 else "vectors.npz")  # noqa: PLR2004

documents = [
    Item(id="museums", text="Berlin is well known for its museums."),
    Item(id="population", text="Berlin had a population of 3,520,031 registered inhabitants."),
    Item(id="bananas", text="Bananas are yellow."),
]

client = LocalClient()
if not FILE.exists():  # once; float16 halves the file and changes scores in the third digit
    results = client.encode(MODEL, documents, output_types=["multivector"], output_dtype="float16")
    np.savez(FILE, **{result["id"]: result["multivector"] for result in results})

kept = [Item(id=name, multivector=vectors) for name, vectors in np.load(FILE).items()]
new = Item(id="new", text="About 3.5 million people live in Berlin.")  # texts and vectors mix

for query in ("How many people live in Berlin?", "Which fruit is yellow?"):
    print(query)
    for entry in client.score(MODEL, Item(text=query), [*kept, new])["scores"]:
        print(f"  {entry['score']:6.2f}  {entry['item_id']}")
