"""Causal-LM rerankers against FlagEmbedding's FlagLLMReranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from FlagEmbedding import FlagLLMReranker

from sie_core import Item, LocalClient
from sie_core.local.prompts import PROMPTS
from sie_core.local.tokenization import read_tokenizer

QUERY = "how many people live in berlin"
TEXTS = [
    "berlin museum of the river",
    "the population of the city is one of many",
    "",
    "a band and a film director " * 30,
    "中文 😀 naïve",
    " leading space\nand a line",
]
LONG_QUERY = "where is the city of berlin " * 20


def theirs(folder: Path, query: str, **settings: Any) -> list[float]:
    """Score with the authors' class."""
    model = FlagLLMReranker(str(folder), use_fp16=False, devices="cpu", batch_size=4)
    pairs = [(query, text) for text in TEXTS]
    return [float(score) for score in model.compute_score(pairs, **settings)]


def ours(
    folder: Path, query: str, *, instruction: str | None = None, **options: Any
) -> list[float]:
    """Score in float32, in the order sent."""
    client = LocalClient(mode="exact", device="cpu")
    items = [Item(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    result = client.score(
        str(folder), Item(text=query), items, instruction=instruction, options=options
    )
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [found[str(i)] for i in range(len(TEXTS))]


def same_length(folder: Path, max_length: int, instruction: str | None = None) -> int:
    """Return our `max_length` for theirs, which does not count the closing and allows it twice."""
    tokenizer = read_tokenizer(folder)
    parts = PROMPTS["gemma"].closings(instruction)
    closing = sum(len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts)
    return max_length + 2 * closing


def test_gemma(tiny_gemma: Path) -> None:
    """Raw logits by default, and they differ from each other."""
    expected = theirs(tiny_gemma, QUERY, normalize=False, max_length=300)
    found = ours(tiny_gemma, QUERY, max_length=same_length(tiny_gemma, 300))
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 0.1


def test_gemma_as_probabilities(tiny_gemma: Path) -> None:
    """Its `normalize` is our `score_space="probability"`."""
    expected = theirs(tiny_gemma, QUERY, normalize=True, max_length=300)
    total = same_length(tiny_gemma, 300)
    found = ours(tiny_gemma, QUERY, score_space="probability", max_length=total)
    assert found == pytest.approx(expected, abs=1e-4)


def test_gemmas_prompt_is_the_instruction(tiny_gemma: Path) -> None:
    """Its `prompt` is our `instruction`."""
    instruction = "Does B say where A lives? 'Yes' or 'No'."
    expected = theirs(tiny_gemma, QUERY, prompt=instruction, max_length=300)
    total = same_length(tiny_gemma, 300, instruction)
    found = ours(tiny_gemma, QUERY, instruction=instruction, max_length=total)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("query", [QUERY, LONG_QUERY])
@pytest.mark.parametrize("max_length", [24, 64, 120])
def test_gemma_truncates_alike(tiny_gemma: Path, query: str, max_length: int) -> None:
    """Passages and queries lose the same tokens."""
    expected = theirs(tiny_gemma, query, max_length=max_length)
    total = same_length(tiny_gemma, max_length)
    assert ours(tiny_gemma, query, max_length=total) == pytest.approx(expected, abs=1e-4)
