"""The GPU benchmark runs where there is no GPU, on shrunken models; its texts are well made."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shrunken models are kept."""
    return tmp_path_factory.mktemp("gpu-checkpoints")


@pytest.fixture(autouse=True)
def _only_new_garbage_is_looked_for() -> Iterator[None]:
    """The script collects garbage after each model, which takes long among what tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


def run(monkeypatch: pytest.MonkeyPatch, checkpoints: Path, *arguments: str) -> int:
    """Run the script in this process."""
    import gpu

    line = ["gpu.py", "--device", "cpu", "--tiny", "--checkpoints", str(checkpoints), *arguments]
    monkeypatch.setattr(sys, "argv", line)
    return gpu.main()


@pytest.mark.parametrize("model", ["MiniLM-L6", "gte-reranker-modernbert-base"])
def test_it_checks_and_times(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Path, tmp_path: Path, model: str
) -> None:
    """Every table is there, and both modes agree with transformers."""
    file = tmp_path / "gpu.json"
    assert run(monkeypatch, checkpoints, "--models", model, "--json", str(file)) == 0
    tables = json.loads(file.read_text("utf-8"))["tables"]
    correct = tables["all: scores against transformers float32"]
    assert {row["contender"][:8] for row in correct} >= {"sie fast", "sie exac"}
    assert all(row["ok"] is not False for row in correct)
    [times] = [row for row in tables["all: times"] if row["contender"] == "sie fast"]
    assert 0 < times["p50 ms"] <= times["p95 ms"]
    [floor] = tables["all: floor"]
    assert floor["fraction"] == pytest.approx(floor["floor ms"] / floor["p50 ms"])
    assert [row["callers"] for row in tables["all: callers"]] == [1, 3]
    [steps] = tables["all: steps, ms"]
    assert steps["tokens"] <= steps["tokens with dummies"]
    [stages] = tables["all: stages in torch, ms"]
    assert all(stages[name] > 0 for name in ("embed", "last layer", "head"))


def test_scores_that_are_off_end_it_with_an_error(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status says so, and the last lines which."""
    import gpu

    monkeypatch.setitem(gpu.TOLERANCES, torch.float32, -1.0)
    assert run(monkeypatch, checkpoints, "--models", "bge-reranker-v2-m3", "--check-only") == 1
    assert "WRONG: bge-reranker-v2-m3, sie exact float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model_type", "num_special"), [("bert", 3), ("xlm-roberta", 4), ("modernbert", 3)]
)
def test_invented_documents_have_the_tokens_they_should(
    tmp_path: Path, model_type: str, num_special: int
) -> None:
    """In the vocabulary of each family, pairs are as long as their parts and special tokens."""
    from invented import corpus_of, write_tokenizer

    write_tokenizer(tmp_path, model_type, 3_000, max_length=512)
    workload = corpus_of(tmp_path, num_words=1_000).mixed(1, 30)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    lengths = [
        len(tokenizer.encode(workload.query, document).ids) for document in workload.documents
    ]
    others = workload.query_length + num_special
    assert lengths == [length + others for length in workload.lengths]
    assert np.median(lengths) > 50
    assert len(set(workload.documents)) == 30
