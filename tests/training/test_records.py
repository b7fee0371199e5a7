"""Labelled JSONL in the forms that it is found in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import DatasetError
from sie_core.training.example import Example
from sie_core.training.records import read_examples

Seen = list[tuple[str, float, float | None]]


def write(path: Path, *records: dict[str, Any]) -> Path:
    """Write records as JSONL."""
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def seen(example: Example) -> Seen:
    """Return an example's texts, labels and teacher's scores."""
    return [(one.text, one.label, one.teacher) for one in example.documents]


PAIR: Seen = [("yes", 1.0, None), ("no", 0.0, None)]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [{"query": "q", "text": "yes", "label": 1}, {"query": "q", "text": "no", "label": 0}],
            PAIR,
        ),
        (
            [
                {"sentence1": "q", "sentence2": "yes", "score": 1.0},
                {"sentence1": "q", "sentence2": "no", "score": "false"},
            ],
            PAIR,
        ),
        (
            [
                {"question": "q", "answer": "yes"},
                {"question": "q", "answer": "no", "label": False},
            ],
            PAIR,
        ),
        ([{"query": "q", "passage": "half", "label": 0.5}], [("half", 0.5, None)]),
        ([{"anchor": "q", "positive": "yes", "negative": "no"}], PAIR),
        ([{"query": "q", "pos": ["yes"], "neg": ["no"]}], PAIR),
        (
            [{"query": "q", "positive": "yes", "negative_1": "no", "negative_2": "nor this"}],
            [*PAIR, ("nor this", 0.0, None)],
        ),
        (
            [{"query": "q", "pos": ["yes"], "neg": ["no"], "pos_scores": [4], "neg_scores": [-1]}],
            [("yes", 1.0, 4.0), ("no", 0.0, -1.0)],
        ),
        (
            [{"query": "q", "positive": "yes", "negative": "no", "score": 5.5}],
            [("yes", 1.0, 5.5), ("no", 0.0, 0.0)],
        ),
        (
            [{"query": "q", "positive": "yes", "negative": "no", "label": [3.0, 1.0]}],
            [("yes", 1.0, 3.0), ("no", 0.0, 1.0)],
        ),
        ([{"query": "q", "docs": ["yes", "no"], "labels": [1, 0]}], PAIR),
    ],
)
def test_every_form_is_read(tmp_path: Path, records: list[dict[str, Any]], expected: Seen) -> None:
    """Pairs, triplets and lists, by the names of sentence-transformers' and other data sets."""
    [example] = read_examples(write(tmp_path / "data.jsonl", *records))
    assert example.query == "q"
    assert seen(example) == expected


def test_a_document_judged_twice_counts_once_with_its_higher_label(tmp_path: Path) -> None:
    """The same pair may come from several annotators, or as a negative by mistake."""
    records = [
        {"query": "q", "positive": "yes", "negative": "no"},
        {"query": "q", "positive": "no", "negative": "yes"},
    ]
    [example] = read_examples(write(tmp_path / "data.jsonl", *records))
    assert seen(example) == [("yes", 1.0, None), ("no", 1.0, None)]


def test_queries_stay_in_the_files_order(tmp_path: Path) -> None:
    """Splits by seed are then the same on every machine."""
    records = [{"query": name, "text": "t"} for name in ("b", "a", "b", "c")]
    examples = read_examples(write(tmp_path / "data.jsonl", *records))
    assert [example.query for example in examples] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: not valid JSON"),
        ('["q", "d"]', "line 2: expected a JSON object"),
        ('{"text": "t"}', "line 2: no query; looked for query, anchor"),
        ('{"query": "q"}', "line 2: no document, positive or documents"),
        ('{"query": " ", "text": "t"}', "'query' must hold a text, but holds ' '"),
        ('{"query": "q", "text": 3}', "'text' must hold a text, but holds 3"),
        ('{"query": "q", "text": "t", "label": 2}', "a label must be from 0 to 1"),
        ('{"query": "q", "text": "t", "label": "good"}', "a label must be from 0 to 1"),
        ('{"query": "q", "docs": ["a", "b"], "labels": [1]}', "2 texts in 'docs' need as many"),
        ('{"query": "q", "docs": ["a", "b"]}', "no labels beside 'docs'"),
        ('{"query": "q", "positives": [], "negative": "n"}', "there is no positive"),
        ('{"query": "q", "positive": "p", "neg": ["n", "m"], "score": 1.0}', "a teacher's score"),
        (
            '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": 1, "neg_scores": [2]}',
            "a teacher's score",
        ),
    ],
)
def test_what_is_none_of_them_is_named_with_its_line(
    tmp_path: Path, line: str, message: str
) -> None:
    """A file is read wholly or not at all."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": "q", "text": "t"}\n' + line, encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        read_examples(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_hold_nothing_are_errors(tmp_path: Path) -> None:
    """So are those that are missing, or not UTF-8."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(DatasetError, match="holds no record"):
        read_examples(empty)
    with pytest.raises(DatasetError, match="cannot read"):
        read_examples(tmp_path / "missing.jsonl")
    empty.write_bytes(b'{"query": "\xff"}')
    with pytest.raises(DatasetError, match="is not UTF-8"):
        read_examples(empty)
