"""The scripts start, and the pieces of them that need no other library work on a tiny model."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from workload import Corpus

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    path for path in BENCHMARKS.glob("*.py") if "ArgumentParser(" in path.read_text("utf-8")
)


def test_the_scripts_of_the_issue_are_there() -> None:
    """One for each question."""
    names = {"vs_peers", "floor", "scaling", "startup", "memory", "order_kept", "plot"}
    assert names <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_does(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` needs none of what it measures."""
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_a_report_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With machine, date and command, so that the figures can be had again."""
    from report import Report

    report = Report("floor", rounds=3)
    report.add("a table", [{"name": "one", "ms": 1234.5}, {"name": "two", "ms": None}])
    report.note(more=1)
    report.save(tmp_path / "new" / "floor.json")
    assert "name     ms\none   1,234\ntwo\n" in capsys.readouterr().out
    content = json.loads((tmp_path / "new" / "floor.json").read_text("utf-8"))
    assert content["tables"]["a table"][0] == {"name": "one", "ms": 1234.5}
    assert content["settings"] == {"rounds": 3, "more": 1}
    assert content["machine"]["cores"] >= 1
    assert content["date"].startswith("20")
    assert content["command"].startswith("python benchmarks/floor.py")


def test_kept_results_become_markdown() -> None:
    """What was hidden from the libraries is said; a cell without a value stays empty."""
    from tables import to_document

    content = {
        "command": "python benchmarks/floor.py",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "P", "cores": 2, "isa": "avx2", "hidden": {"X": "y"}},
        "versions": {"torch": "1"},
        "tables": {"a table": [{"name": "one", "ms": 12.5}, {"name": "two", "ms": None}]},
    }
    assert to_document(content) == (
        "`python benchmarks/floor.py`, 2026-01-02, P, 2 cores (avx2, X=y), torch 1\n\n"
        "**a table**\n\n| name | ms |\n| --- | ---: |\n| one | 12.50 |\n| two |  |"
    )


def test_the_slope_of_a_straight_line_is_one() -> None:
    """Half the price beyond the base is a slope of a half."""
    from scaling import slope_against_base

    def rows(price: float) -> list[dict[str, Any]]:
        return [
            {"candidates": count, "tokens": 10 * count, "median ms": 1000 + price * (count - 100)}
            for count in (50, 100, 200)
        ]

    assert slope_against_base(rows(10)) == pytest.approx(1)
    assert slope_against_base(rows(5)) == pytest.approx(0.5)


def test_callers_at_once_get_their_own_scores(tiny_bert: Path, tiny_corpus: Corpus) -> None:
    """The table's rows for one caller and for three, on a tiny model."""
    from race import Ours
    from scaling import CALLER_DOCUMENTS, caller_rows

    ours = Ours("exact", tiny_bert)
    rows = caller_rows(ours, tiny_corpus, (1, 3), 6)
    ours.close()
    assert [row["calls"] for row in rows] == [6, 6]
    assert CALLER_DOCUMENTS == 20
    for row in rows:
        assert row["max difference to solo"] < 1e-4
        assert 0 < row["p50 ms"] <= row["p95 ms"]
        assert row["p95 / fair"] == pytest.approx(row["p95 ms"] / row["fair ms"])


def test_calls_of_random_sizes_and_memory(tiny_corpus: Corpus) -> None:
    """From one document to two dozen, none of them twice."""
    from memory import calls, resident_mib

    drawn = list(calls(tiny_corpus, 60))
    sizes = [len(workload.documents) for workload in drawn]
    assert min(sizes) == 1
    assert 20 <= max(sizes) <= 24
    texts = [text for workload in drawn for text in workload.documents]
    assert len(set(texts)) > 0.99 * len(texts)
    assert resident_mib() > 50


def test_a_prefix_is_measured_both_ways(tmp_path: Path) -> None:
    """On a tiny Qwen3: the tokens that the issue asks for, and the same scores."""
    import torch
    from prefix_sharing import load, prompts, run, write_checkpoint

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    folder = write_checkpoint(tmp_path, 2, num_key_value_heads=1, **sizes)
    model = load(folder, torch.float32)
    shared = prompts(model, 100)
    whole, whole_tokens, _ = run(model, [sequence.whole() for sequence in shared], 1024)
    found, tokens, _ = run(model, shared, 1024)
    assert whole_tokens == 100 * (80 + 200 + 9)
    assert tokens == 80 + 100 * (200 + 9)
    assert tokens <= 0.75 * whole_tokens
    assert found == pytest.approx(whole, abs=1e-4)


def test_modes_are_compared_with_the_reference() -> None:
    """A mode that puts the relevant document second loses what nDCG says it loses."""
    from order_kept import REFERENCE, rows_of

    from sie_core.evaluation.datasets import Paragraph, Question

    question = Question(
        id="q",
        text="?",
        paragraphs=(Paragraph("", "a"), Paragraph("", "b")),
        relevant=frozenset({1}),
    )
    scores = {REFERENCE: {"q": [0.0, 1.0]}, "other": {"q": [2.0, 1.0]}}
    same, other = rows_of(scores, [question])
    assert same["change"] == 0
    assert same["Kendall tau, mean"] == 1
    assert other["change"] == pytest.approx(0.6309 - 1, abs=1e-4)
    assert other["Kendall tau, least"] == -1
    assert other["max difference"] == 2
    assert other["same first"] == 0


def test_a_fresh_process_tells_its_scores_and_memory(
    tiny_bert: Path, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    """The very script that start-up is measured with."""
    from startup import OURS, Starter, drop_from_file_cache

    workload = tiny_corpus.of_lengths([5, 9], "startup")
    task = tmp_path / "task.json"
    task.write_text(json.dumps([str(tiny_bert), workload.query, workload.documents]))
    starter = Starter("ours", Path(sys.executable), OURS, ("exact",))
    drop_from_file_cache([tiny_bert])
    seconds, resident_mib, scores = starter.start(task)
    assert seconds > 0
    assert resident_mib > 50
    assert len(scores) == 2
    assert starter.files()[0].is_dir()


def test_a_script_that_gives_no_scores_is_an_error(tmp_path: Path) -> None:
    """Its time would be taken for a quick start."""
    from startup import Starter

    with pytest.raises(RuntimeError, match="no scores: it ended with exit status 3"):
        Starter("broken", Path(sys.executable), "raise SystemExit(3)").start(tmp_path)


def test_peers_import_nothing_of_ours() -> None:
    """Their environment has no sie, and the parent's path is kept from them."""
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import peers; "
        "print([name for name in sys.modules if name.startswith(('sie', 'torch'))])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == "[]"


def test_the_plots_read_what_the_benchmarks_write() -> None:
    """Each benchmark that is drawn exists, and tables are found by a column."""
    plot = importlib.import_module("plot")
    assert {f"{name}.py" for name in plot.DRAWINGS} <= {path.name for path in SCRIPTS}
    tables = {"a": [{"x default": 1.0}], "b": [{"ms": 1.0}], "c": []}
    assert list(plot.tables_with(tables, "x default")) == ["a"]
    assert (
        plot.short("sentence-transformers torch bfloat16 batch_size=8") == "s-t torch bf16 batch 8"
    )
