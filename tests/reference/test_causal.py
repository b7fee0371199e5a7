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


def num_closing_tokens(folder: Path, instruction: str | None = None) -> int:
    """Count the tokens behind a document."""
    tokenizer = read_tokenizer(folder)
    parts = PROMPTS["gemma"].closings(instruction)
    return sum(len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts)


def test_gemma(tiny_gemma: Path) -> None:
    """Raw logits by default, and they differ from each other."""
    expected = theirs(tiny_gemma, QUERY, normalize=False, max_length=300)
    assert ours(tiny_gemma, QUERY) == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 0.1


def test_gemma_as_probabilities(tiny_gemma: Path) -> None:
    """Its `normalize` is our `score_space="probability"`."""
    expected = theirs(tiny_gemma, QUERY, normalize=True, max_length=300)
    found = ours(tiny_gemma, QUERY, score_space="probability")
    assert found == pytest.approx(expected, abs=1e-4)


def test_gemmas_prompt_is_the_instruction(tiny_gemma: Path) -> None:
    """Its `prompt` is our `instruction`."""
    instruction = "Does B say where A lives? 'Yes' or 'No'."
    expected = theirs(tiny_gemma, QUERY, prompt=instruction, max_length=300)
    assert ours(tiny_gemma, QUERY, instruction=instruction) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("query", [QUERY, LONG_QUERY])
@pytest.mark.parametrize("max_length", [24, 64, 120])
def test_gemma_truncates_alike(tiny_gemma: Path, query: str, max_length: int) -> None:
    """Its `max_length` does not count the closing, which it allows for twice."""
    expected = theirs(tiny_gemma, query, max_length=max_length)
    total = max_length + 2 * num_closing_tokens(tiny_gemma)
    assert ours(tiny_gemma, query, max_length=total) == pytest.approx(expected, abs=1e-4)
