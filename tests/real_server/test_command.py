"""`sie rerank` and `sie health` against sie-server 0.10.1 itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from sie_core.cli.program import program
from sie_core.reranker import Reranker

pytestmark = pytest.mark.real_server

QUERY = "what is python"
TEXTS = ["the weather is sunny today", "python is a programming language", "bananas are yellow"]


def test_rerank_asks_the_server(server: Any) -> None:
    """Its rows have the order and scores of the library."""
    arguments = ["rerank", "-q", QUERY, "-m", server.model, "--base-url", server.url]
    finished = CliRunner().invoke(program, arguments, input="\n".join(TEXTS))
    assert (finished.exit_code, finished.stderr) == (0, "")
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    with Reranker(server.model, base_url=server.url) as reranker:
        ranking = reranker.rerank(QUERY, TEXTS)
    assert [row["index"] for row in rows] == [entry.index for entry in ranking]
    assert [row["score"] for row in rows] == pytest.approx(
        [entry.score for entry in ranking], abs=1e-4
    )


def test_health_finds_the_loaded_model(server: Any) -> None:
    """After a first call the model is probed without being named."""
    with Reranker(server.model, base_url=server.url) as reranker:
        reranker.rerank(QUERY, TEXTS)
    finished = CliRunner().invoke(program, ["health", server.url, "--json"])
    assert finished.exit_code == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert report["server_version"] == "0.10.1"
    assert report["probe_model"] == server.model
    assert report["probe_ms"] > 0
