"""SIE's own clients, and the snippets of its documentation, against `sie serve`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.clients

QUERY = "how many people live in berlin"
TEXTS = ["berlin has a population of many people", "a museum in paris", "yellow bananas"]
COLBERT = "colbert-ir/colbertv2.0"


def scores_of(lines: list[str]) -> dict[str, float]:
    """Read lines that end with a name and a score, best first."""
    pairs = [line.split()[-2:] for line in lines]
    return {name: float(score) for name, score in pairs}


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    """Compare scores under their names, in the same order."""
    return list(found) == list(wanted) and found == pytest.approx(wanted, abs=1e-5)


def renamed(scores: dict[str, float], names: list[str]) -> dict[str, float]:
    """Put the items' own names in place of `item-N`."""
    return {names[int(name.removeprefix("item-"))]: score for name, score in scores.items()}


NAMES = ["doc-1", "doc-2", "doc-3"]


def test_score(run_python: Any, engine: Any) -> None:
    """Documents without ids come back as `item-N`, with their ranks."""
    lines = run_python("score.py").splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert same(scores_of(lines), engine.scores(QUERY, TEXTS))


def test_ids(run_python: Any, engine: Any) -> None:
    """The caller's ids come back, the query's as well."""
    first, *lines = run_python("ids.py").splitlines()
    assert first == "BAAI/bge-reranker-v2-m3 query-1"
    assert same(scores_of(lines), renamed(engine.scores(QUERY, TEXTS), NAMES))


def test_two_stage(run_python: Any, engine: Any) -> None:
    """Retrieval by vectors, then reranking."""
    corpus = ["a museum in paris", "yellow bananas", TEXTS[0], "the weather is sunny in berlin"]
    vectors = np.stack(engine.vectors(corpus))
    [query] = engine.vectors([QUERY], is_query=True)
    nearest = [int(index) for index in np.argsort(-vectors @ query)[:3]]
    wanted = engine.scores(QUERY, [corpus[index] for index in nearest])
    names = [f"doc-{index}" for index in nearest]
    assert same(scores_of(run_python("two_stage.py").splitlines()), renamed(wanted, names))


def test_curl(run_shell: Any, engine: Any) -> None:
    """The same in a shell."""
    reply = json.loads(run_shell("score.sh"))
    found = {entry["item_id"]: entry["score"] for entry in reply["scores"]}
    assert same(found, renamed(engine.scores(QUERY, TEXTS), NAMES))


def test_the_asynchronous_client(run_python: Any, engine: Any) -> None:
    """Two calls at a time, each with its own answer."""
    lines = run_python("score_async.py").splitlines()
    texts = ["a museum in paris", "yellow bananas"]
    for query, part in (("where is the museum", lines[:2]), ("what is yellow", lines[2:])):
        assert same(scores_of(part), engine.scores(query, texts))


def test_the_other_calls_of_the_official_client(run_python: Any, engine: Any) -> None:
    """Models, number formats, vectors of tokens, options, and errors by its own exceptions."""
    told = json.loads(run_python("sdk_calls.py"))
    texts = ["a museum in paris", "yellow bananas"]
    assert told["models"] == ["BAAI/bge-m3", "BAAI/bge-reranker-v2-m3", COLBERT]
    assert (told["outputs"], told["loaded"]) == (["score"], True)
    assert told["ids"] == ["a", "b"]
    kind, numbers = told["half"]
    assert kind == "float16"
    np.testing.assert_allclose(numbers, engine.vectors(texts)[0], atol=1e-3)
    wanted = engine.vectors(texts, COLBERT, output_types=["multivector"])
    for found, matrix in zip(told["tokens"], wanted, strict=True):
        np.testing.assert_allclose(found, matrix, atol=1e-5)
    ids = ["a", "b"]
    maxsim = engine.scores("where is the museum", texts, COLBERT)
    assert same(told["maxsim"], renamed(maxsim, ids))
    instructed = engine.scores("bananas", texts, instruction="what is yellow")
    assert same(told["instructed"], renamed(instructed, ids))
    short = engine.scores("bananas", texts, options={"max_length": 8})
    assert same(told["short"], renamed(short, ids))
    assert told["unknown"][:2] == [404, "MODEL_NOT_FOUND"]
    assert told["empty"][:2] == [400, "INVALID_INPUT"]
    assert told["wrong"][:2] == [400, "INVALID_INPUT"]
    assert told["retries"] == 0


def test_the_node_client(run_node_sdk: Any, engine: Any) -> None:
    """Scores and vectors in JavaScript."""
    lines = run_node_sdk("score.mjs").splitlines()
    assert same(scores_of(lines), renamed(engine.scores(QUERY, TEXTS), NAMES))
    vectors = [list(map(float, line.split())) for line in run_node_sdk("encode.mjs").splitlines()]
    wanted = engine.vectors(["a museum in paris", "yellow bananas"])
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_the_protocol_in_node(run_node: Any, engine: Any) -> None:
    """Bodies in msgpack, as JavaScript reads and writes it."""
    *lines, numbers = run_node("wire.mjs").splitlines()
    assert same(scores_of(lines), renamed(engine.scores(QUERY, TEXTS), NAMES))
    vector = [float(number) for number in numbers.split()]
    [wanted] = engine.vectors(["a museum in paris"])
    np.testing.assert_allclose(vector, wanted, atol=1e-5)
