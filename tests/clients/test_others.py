"""The clients of Cohere, OpenAI, LangChain and Haystack, pointed at `sie serve`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.clients

QUERY = "how many people live in berlin"
TEXTS = ["a museum in paris", "berlin has a population of many people", "yellow bananas"]


def best_two(engine: Any, names: str) -> dict[str, float]:
    """Return the best two probabilities, under a letter for each text."""
    scores = engine.scores(QUERY, TEXTS, options={"score_space": "probability"})
    best = list(scores.items())[:2]
    return {names[int(name.removeprefix("item-"))]: score for name, score in best}


def ranking(printed: str) -> dict[str, float]:
    """Read what a snippet printed."""
    pairs = [line.split() for line in printed.splitlines()]
    return {name: float(score) for name, score in pairs}


@pytest.mark.parametrize(
    ("snippet", "names"),
    [("cohere_rerank.py", "012"), ("langchain_rerank.py", "abc"), ("haystack_rerank.py", "abc")],
)
def test_rerankers(run_python: Any, engine: Any, snippet: str, names: str) -> None:
    """Their best two are the engine's, with its probabilities."""
    found, wanted = ranking(run_python(snippet)), best_two(engine, names)
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, abs=1e-5)


def test_openai_embeddings(run_python: Any, engine: Any) -> None:
    """The vectors are the engine's."""
    vectors = [
        list(map(float, line.split())) for line in run_python("openai_embeddings.py").splitlines()
    ]
    np.testing.assert_allclose(
        vectors, engine.vectors(["a museum in paris", "yellow bananas"]), atol=1e-5
    )


def test_coheres_node_client(run_node: Any, engine: Any) -> None:
    """The same in JavaScript."""
    assert ranking(run_node("cohere.mjs")) == pytest.approx(best_two(engine, "012"), abs=1e-5)


def test_openais_node_client(run_node: Any, engine: Any) -> None:
    """The same in JavaScript."""
    vectors = [list(map(float, line.split())) for line in run_node("openai.mjs").splitlines()]
    np.testing.assert_allclose(
        vectors, engine.vectors(["a museum in paris", "yellow bananas"]), atol=1e-5
    )
