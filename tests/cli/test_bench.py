"""`sie bench` measures what it says, for a model in this process, a server, or a fake."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import InferenceError
from sie_core.evaluation.speed import Texts, measure_cold_start, measure_speed, percentile
from sie_core.reranker import Reranker
from sie_core.types import Item, ScoreEntry, ScoreResult
from tests.cli.conftest import Run

QUICK = ("--candidates", "2,5", "--concurrency", "1,3", "--calls", "3", "--cold-starts", "1")


class CountingClient:
    """Counts calls, their documents, and how many run at once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.sizes: list[int] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.meeting: threading.Barrier | None = None

    def score(self, model: str, query: Item, items: Sequence[Item], **_: Any) -> ScoreResult:
        """Score nothing, and count."""
        del query
        with self._lock:
            self.sizes.append(len(items))
            self.texts += [item["text"] for item in items]
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        if self.meeting is not None and len(items) == 20:
            self.meeting.wait(20)
        with self._lock:
            self._at_once -= 1
        scores = [ScoreEntry(item_id=item["id"], score=0.0, rank=i) for i, item in enumerate(items)]
        return ScoreResult(model=model, query_id=None, scores=scores)


def test_every_row_has_its_calls_and_every_text_is_new() -> None:
    """Two warm calls, then so many of each size; callers call at once, 20 documents each."""
    client = CountingClient()
    client.meeting = threading.Barrier(3)
    reranker = Reranker("m", client=client)
    report = measure_speed(reranker, candidates=(2, 5), callers=(3,), num_calls=6)
    assert client.sizes == [5] * 2 + [2] * 6 + [5] * 6 + [20] * 6
    assert client.most_at_once == 3
    assert len(set(client.texts)) == len(client.texts)
    assert [row.num_candidates for row in report.latency] == [2, 5]
    assert [(row.num_callers, row.num_calls) for row in report.throughput] == [(3, 6)]
    for row in (*report.latency, *report.throughput):
        assert 0 < row.p50_ms <= row.p95_ms
        assert row.pairs_per_second > 0
    assert (report.cold_start, report.resident_mib, report.execution) == (None, None, None)


def test_a_model_in_this_process(run_real: Run, tiny_bert: Path, tmp_path: Path) -> None:
    """JSON has the rows, how the model runs, the machine, and a cold start; the plot is drawn."""
    plot = tmp_path / "speed.png"
    done = run_real("bench", tiny_bert, *QUICK, "--json", "--plot", plot, "--mode", "exact")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["num_candidates"] for row in report["latency"]] == [2, 5]
    assert [row["num_callers"] for row in report["throughput"]] == [1, 3]
    assert report["cold_start"]["seconds"] > 0
    assert report["cold_start"]["resident_mib"] > 50
    assert "float32" in report["execution"]
    assert report["machine"]["processor"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_server_has_no_cold_start(run_real: Run, sie_server: str) -> None:
    """The table names the server."""
    model = "test/tiny-bert"
    done = run_real("bench", model, *QUICK, "--base-url", sie_server)
    assert done.exit_code == 0, done.stderr
    assert sie_server in done.stdout
    assert "cold start" not in done.stdout
    assert "callers of 20" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--candidates", "ten"), "--candidates must be numbers"),
        (("--candidates", "0"), "candidates must be at least 1, but got 0"),
        (("--concurrency", "1,-2"), "callers must be at least 1, but got 1, -2"),
    ],
)
def test_wrong_numbers_are_named(run: Run, arguments: tuple[str, ...], message: str) -> None:
    """Before anything is measured."""
    done = run("bench", "m", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_process_that_cannot_score_says_why(tmp_path: Path) -> None:
    """The end of what it printed is in the error."""
    with pytest.raises(InferenceError, match="does not exist"):
        measure_cold_start(str(tmp_path / "none"), {}, 1)


def test_lengths_are_those_of_passages() -> None:
    """Half of the texts have more than 60 words; none has more than 300."""
    lengths = [len(text.split()) for text in Texts().documents(2000)]
    assert percentile(lengths, 50) == pytest.approx(60, abs=5)
    assert max(lengths) <= 300
    assert min(lengths) >= 1


def test_percentiles_are_values_that_occurred() -> None:
    """The smallest that so many of a hundred do not exceed."""
    assert [percentile([4, 1, 3, 2], p) for p in (0, 25, 50, 51, 95, 100)] == [1, 1, 2, 3, 4, 4]
