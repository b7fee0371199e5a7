"""`sie calibrate` reads judged pairs, reports, and keeps what it fitted."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from sie_core.calibration import Calibration
from tests.cli.conftest import Run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pairs where longer documents are relevant more often: the fake model scores by length."""
    dice = random.Random(1)
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for query in range(60):
            for _ in range(8):
                length = dice.randint(1, 10)
                record = {
                    "query": f"question {query}",
                    "text": "x" * length,
                    "label": int(dice.random() < length / 12),
                }
                file.write(json.dumps(record) + "\n")
    return path


def test_it_fits_reports_and_keeps(
    run: Run, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calibration is found by the model's name afterwards."""
    monkeypatch.setenv("SIE_CACHE_DIR", str(tmp_path))
    done = run("calibrate", pairs, "--model", "owner/model", "--precision", "0.6")
    assert done.exit_code == 0, done.stderr
    assert "expected calibration error" in done.stdout
    assert "score_threshold=" in done.stdout
    found = Calibration.find("owner/model")
    assert found.probability(10.0) > found.probability(1.0)
    assert found.source == str(pairs)
    assert found.score_space is None  # the fake model does not say what its scores are


def test_json_has_every_figure(run: Run, pairs: Path, tmp_path: Path) -> None:
    """And the file is where --out says."""
    out = tmp_path / "kept.json"
    plot = tmp_path / "reliability.png"
    settings = ("--method", "platt", "--seed", "3", "--plot", plot)
    done = run("calibrate", pairs, "--json", "--out", out, *settings)
    report = json.loads(done.stdout)
    assert report["path"] == str(out)
    assert plot.read_bytes().startswith(b"\x89PNG")
    kept = Calibration.load(out)
    assert kept.method == "platt"
    assert report["calibration"]["figures"]["ece_after"] == kept.figures["ece_after"]
    assert report["num_fitted"] + report["num_held_out"] == 480


def test_csv_with_other_columns(run: Run, tmp_path: Path, pairs: Path) -> None:
    """Columns can be named; labels may be words."""
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["q", "body", "good"])
        for line in pairs.read_text().splitlines():
            record = json.loads(line)
            writer.writerow([record["query"], record["text"], str(bool(record["label"]))])
    columns = ("--query-column", "q", "--text-column", "body", "--label-column", "good")
    done = run("calibrate", path, *columns, "--json", "--out", tmp_path / "a.json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["num_fitted"] == 336


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q", "text": "t", "label": "maybe"}', "line 1: the label 'maybe' is neither"),
        ('{"query": "q", "text": "t", "label": null}', "the label None is neither"),
        ('{"query": " ", "text": "t", "label": 1}', "line 1: a judged pair needs a query"),
        ('{"query": "q", "text": null, "label": 1}', "line 1: a judged pair needs"),
        ('{"query": "q", "text": "t"}', "--label-column 'label' is not in"),
        ("", "holds no pair"),
    ],
)
def test_a_bad_pair_is_named(run: Run, tmp_path: Path, line: str, message: str) -> None:
    """Nothing is scored before every pair can be read."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(line)
    done = run("calibrate", path)
    assert done.exit_code != 0
    assert message in done.stderr


def test_pairs_must_come_from_one_place(run: Run, pairs: Path, tmp_path: Path) -> None:
    """A file, or a data set that there is; plain lines are no pairs."""
    assert "give either a FILE" in run("calibrate").stderr
    assert "give either a FILE" in run("calibrate", pairs, "--dataset", "hotpotqa").stderr
    assert "built in is hotpotqa" in run("calibrate", "--dataset", "msmarco").stderr
    plain = tmp_path / "pairs.txt"
    plain.write_text("a\n")
    assert "add --format jsonl" in run("calibrate", plain).stderr
