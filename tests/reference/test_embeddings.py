"""Embeddings against sentence-transformers' encode, and bge-m3 against FlagEmbedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sie_core import Item, LocalClient

pytest.importorskip("sentence_transformers")

Make = Callable[..., Path]

TEXTS = [
    "how many people live in berlin",
    "population of the city: 3,520,031!",
    "river " * 150,  # longer than the model reads
    "",
    "  The Museum  ",
    "中文 😀 naïve",
]
GENERAL = {"prompts": {"query": "the query: ", "document": "of "}, "default_prompt_name": None}


def ours(folder: Path, **how: Any) -> np.ndarray[Any, Any]:
    """Encode in float32; [texts, dims]."""
    client = LocalClient(mode="exact", device="cpu")
    results = client.encode(str(folder), [Item(text=text) for text in TEXTS], **how)
    return np.stack([result["dense"] for result in results])


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "mean_sqrt_len_tokens", "lasttoken"])
@pytest.mark.parametrize("dense", [None, (24, "torch.nn.modules.activation.Tanh")])
def test_embeddings_are_those_of_sentence_transformers(
    make_sentence_encoder: Make, model_type: str, pooling: str, dense: tuple[int, str] | None
) -> None:
    """Queries and documents with their prompts, each within 1e-4."""
    from sentence_transformers import SentenceTransformer

    folder = make_sentence_encoder(
        model_type=model_type,
        pooling=pooling,
        dense=dense,
        sentence={"max_seq_length": 100, "do_lower_case": True},
        general=GENERAL,
    )
    model = SentenceTransformer(str(folder), device="cpu")

    for is_query, encode in ((True, model.encode_query), (False, model.encode_document)):
        np.testing.assert_allclose(ours(folder, is_query=is_query), encode(TEXTS), atol=1e-4)


def test_bge_m3_is_flagembedding_s(make_sentence_encoder: Make) -> None:
    """Dense vectors, vectors of tokens, and the score of the latter."""
    flag = pytest.importorskip("FlagEmbedding")
    folder = make_sentence_encoder(model_type="xlm-roberta", pooling="cls")
    torch.manual_seed(29)
    for name, width in (("colbert", 64), ("sparse", 1)):
        head = {"weight": torch.randn(width, 64) / 8, "bias": torch.randn(width) / 8}
        torch.save(head, folder / f"{name}_linear.pt")
    model = flag.BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    texts = [text for text in TEXTS if text]
    theirs = model.encode(texts, max_length=128, return_dense=True, return_colbert_vecs=True)

    client = LocalClient(mode="exact", device="cpu", allow_pickle=True)
    items = [Item(text=text) for text in texts]
    found = client.encode(str(folder), items, output_types=["dense", "multivector"])
    scores = client.score(str(folder), items[0], items)["scores"]

    for result, dense, tokens in zip(
        found, theirs["dense_vecs"], theirs["colbert_vecs"], strict=True
    ):
        np.testing.assert_allclose(result["dense"], dense, atol=1e-4)
        np.testing.assert_allclose(result["multivector"], tokens, atol=1e-4)
    for entry in scores:
        other = theirs["colbert_vecs"][int(entry["item_id"].removeprefix("item-"))]
        want = float(model.colbert_score(theirs["colbert_vecs"][0], other))
        assert entry["score"] == pytest.approx(want, abs=1e-4)
