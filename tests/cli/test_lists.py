"""`sie rerank --documents-column`, over a fake model that scores a text by its length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

ROWS = [
    {"key": 1, "question": "q1", "found": [{"id": "a", "body": "bb"}, {"id": "b", "body": "dddd"}]},
    {"key": 2, "question": "q2", "found": []},
    {"key": 3, "question": "q3", "found": [{"id": "c", "body": "e" * 501}]},
]
OPTIONS = ("--documents-column", "found", "--query-column", "question", "--text-column", "body")


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A file of three rows."""
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """Read what was written, in the order of its files."""
    parts = sorted(folder.glob("part-*"))
    return [json.loads(line) for part in parts for line in part.read_text("utf-8").splitlines()]


def test_every_row_is_written_with_its_ranking(run: Run, lists: Path, tmp_path: Path) -> None:
    """Each with its own query and documents; what was done and noticed is said on stderr."""
    out = tmp_path / "ranked"
    finished = run("rerank", lists, *OPTIONS, "--id-column", "id", "--out", out)
    assert (finished.exit_code, finished.stdout) == (0, "")
    rows = read(out)
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    assert rows[0]["ranking"] == [
        {"index": 1, "score": 4.0, "id": "b"},
        {"index": 0, "score": 2.0, "id": "a"},
    ]
    assert f"3 rows are ranked in {out} (1 files)" in finished.stderr
    assert "note: 1 pairs of query and document were longer" in finished.stderr


def test_the_cut_holds_for_each_row(run: Run, lists: Path, tmp_path: Path) -> None:
    """--top-k and --threshold are as for one query."""
    run("rerank", lists, *OPTIONS, "--out", tmp_path / "a", "--top-k", "1")
    assert [len(row["ranking"]) for row in read(tmp_path / "a")] == [1, 0, 1]
    run("rerank", lists, *OPTIONS, "--out", tmp_path / "b", "--threshold", "3")
    assert [len(row["ranking"]) for row in read(tmp_path / "b")] == [1, 0, 1]


def test_the_same_command_continues(run: Run, lists: Path, tmp_path: Path) -> None:
    """It says what was there."""
    command = ("rerank", lists, *OPTIONS, "--out", tmp_path / "out", "--rows-per-block", "2")
    run(*command)
    (tmp_path / "out" / "part-00000-00001.jsonl").unlink()
    finished = run(*command)
    assert "(2 files, 1 of them done before)" in finished.stderr
    assert len(read(tmp_path / "out")) == 3


def test_rows_that_fail_are_said(run: Run, lists: Path, tmp_path: Path) -> None:
    """How many, where that stands, and the first reason."""
    with lists.open("a", encoding="utf-8") as stream:
        stream.write('{"question": 5, "found": []}\n')
    finished = run("rerank", lists, *OPTIONS, "--ranking-column", "best", "--out", tmp_path / "o")
    assert finished.exit_code == 0
    assert "note: 1 rows could not be ranked: see 'best_reason'" in finished.stderr
    assert "row 3: the query must be a text, but is int: 5" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("FILE", *OPTIONS), "the ranked rows need a folder: add --out FOLDER"),
        (("FILE", *OPTIONS, "--out", "o", "-q", "x"), "leave out --query and --queries"),
        (("FILE", *OPTIONS, "--out", "o", "--output", "table"), "leave out --format and --output"),
        ((*OPTIONS, "--out", "o"), "must be a file or a folder, not standard input"),
        (("FILE", "-q", "x", "--engine", "ray"), "--engine ray is for rows that have a query"),
        (("FILE", "-q", "x", "--workers", "2"), "--workers is for rows that have a query"),
        (("FILE", *OPTIONS, "--out", "o", "--workers", "2"), "--workers needs --engine ray"),
        (("FILE", "--documents-column", "nope", "--out", "o"), "no column 'query'"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, lists: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Nothing is written, and the remedy is named."""
    places = {"FILE": lists, "o": tmp_path / "o"}
    finished = run("rerank", *(places.get(word, word) for word in arguments))
    assert finished.exit_code == 2
    assert message in finished.stderr
    assert not (tmp_path / "o").exists()


def test_a_folder_is_no_file_for_one_query(run: Run, lists: Path, tmp_path: Path) -> None:
    """Only lists are written into folders."""
    finished = run("rerank", lists, "-q", "x", "--text-column", "question", "--out", tmp_path)
    assert finished.exit_code == 2
    assert "is a folder; name a file" in finished.stderr
