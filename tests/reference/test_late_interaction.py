"""Late interaction against PyLate, on checkpoints of both layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sie_core import Item, LocalClient

pytest.importorskip("pylate.models", exc_type=ImportError)  # needs an older sentence-transformers

Make = Callable[..., Path]

QUERY = "how many people live in berlin?"
TEXTS = [
    "berlin museum",
    "population of the city: 3,520,031 (in 2012)!",
    "river, " * 40,  # longer than the model reads
    "paris is the capital of france",
    "!?",
]


@pytest.mark.parametrize("sees_masks", [False, True])
@pytest.mark.parametrize(
    ("layout", "model_type"), [("colbert", "bert"), ("pylate", "bert"), ("pylate", "modernbert")]
)
def test_vectors_and_order_are_those_of_pylate(
    make_colbert: Make, layout: str, model_type: str, sees_masks: bool
) -> None:
    """Every vector within 1e-4, and the scores that PyLate's own function gives."""
    from pylate import models, scores

    folder = make_colbert(layout=layout, model_type=model_type, sees_masks=sees_masks)
    model = models.ColBERT(str(folder), device="cpu")
    query = model.encode([QUERY], is_query=True)
    documents = model.encode(TEXTS, is_query=False)

    client = LocalClient(mode="exact", device="cpu")
    items = [Item(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    asked = client.encode(str(folder), Item(text=QUERY), is_query=True)["multivector"]
    found = client.encode(str(folder), items)
    scored = client.score(str(folder), Item(text=QUERY), items)["scores"]

    np.testing.assert_allclose(asked, query[0], atol=1e-4)
    for result, document in zip(found, documents, strict=True):
        np.testing.assert_allclose(result["multivector"], document, atol=1e-4)
    # One document at a time: together they are padded with zeros, which PyLate lets win over
    # products below zero.
    asked_alone = torch.from_numpy(query[0])[None]
    wanted = {
        str(i): float(scores.colbert_scores(asked_alone, torch.from_numpy(document)[None]))
        for i, document in enumerate(documents)
    }
    assert [entry["item_id"] for entry in scored] == sorted(wanted, key=lambda i: -wanted[i])
    for entry in scored:
        assert entry["score"] == pytest.approx(wanted[entry["item_id"]], abs=1e-3)
