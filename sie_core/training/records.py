"""Labelled JSONL as it is found: pairs, triplets and lists, by the names that data sets use.

A record is one of

- a pair: a query, one document, and `label` or `score` from 0 to 1 (without one: relevant);
- a triplet: a query, `positive` and `negative` (or `negative_1`, `negative_2` …, or lists of
  texts), and if a teacher scored them, its scores: `pos_scores` and `neg_scores`, or `score`: a
  list with the positives' first, or the margin between one positive and one negative;
- a list: a query, `documents` and as many `labels`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sie_core.errors import DatasetError
from sie_core.training.example import Example, Judged, gather

QUERY_FIELDS = ("query", "anchor", "question", "sentence1")
TEXT_FIELDS = ("text", "passage", "document", "answer", "content", "response", "sentence2")
POSITIVE_FIELDS = ("positive", "positives", "pos")
NEGATIVE_FIELDS = ("negative", "negatives", "neg")
LIST_FIELDS = ("documents", "docs", "passages", "texts")
LABEL_FIELDS = ("label", "labels", "score", "scores")

_NUMBERED = re.compile(r"negative_\d+")
_WORDS = {"true": 1.0, "false": 0.0}


def read_examples(path: Path) -> list[Example]:
    """Read labelled records; those of the same query become one example.

    Raises:
        DatasetError: The file cannot be read, holds nothing, or a line is none of the forms.
    """
    examples = gather(_read(path))
    if not examples:
        msg = f"{path} holds no record"
        raise DatasetError(msg)
    return examples


def _read(path: Path) -> Iterator[tuple[str, Judged]]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield from _Record(path, number, line).judgements()
    except OSError as exc:
        msg = f"cannot read {path}: {exc.strerror}"
        raise DatasetError(msg) from exc
    except UnicodeDecodeError as exc:
        msg = f"{path} is not UTF-8 ({exc.reason}); convert it to UTF-8"
        raise DatasetError(msg) from exc


class _Record:
    """One line.

    Args:
        path: The file, for errors.
        number: The line's number, for errors.
        line: What it holds.
    """

    def __init__(self, path: Path, number: int, line: str) -> None:
        self._where = f"{path} line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as exc:
            msg = f"{self._where}: not valid JSON: {exc}"
            raise DatasetError(msg) from exc
        if not isinstance(fields, dict):
            self._refuse(f"expected a JSON object, but got {line[:80].strip()!r}")
        self._fields: Mapping[str, Any] = fields

    def judgements(self) -> list[tuple[str, Judged]]:
        """Return what it says about each document."""
        query = self._text(self._one_of(QUERY_FIELDS, "query"))
        if self._find(POSITIVE_FIELDS):
            judged = self._triplet()
        elif name := self._find(LIST_FIELDS):
            judged = self._list(name)
        else:
            judged = self._pair()
        return [(query, one) for one in judged]

    def _pair(self) -> list[Judged]:
        text = self._text(self._one_of(TEXT_FIELDS, "document, positive or documents"))
        name = self._find(LABEL_FIELDS)
        return [Judged(text=text, label=1.0 if name is None else self._label(name))]

    def _list(self, name: str) -> list[Judged]:
        texts = self._texts(name)
        labels = self._fields[self._one_of(LABEL_FIELDS, f"labels beside {name!r}")]
        if not isinstance(labels, list) or len(labels) != len(texts):
            self._refuse(f"{len(texts)} texts in {name!r} need as many labels, but got {labels!r}")
        return [
            Judged(text=text, label=self._check_label(label))
            for text, label in zip(texts, labels, strict=True)
        ]

    def _triplet(self) -> list[Judged]:
        positives = self._texts(self._one_of(POSITIVE_FIELDS, "positive"))
        names = [name for name in self._fields if _NUMBERED.fullmatch(name)]
        if (name := self._find(NEGATIVE_FIELDS)) is not None:
            names.insert(0, name)
        negatives = [text for name in names for text in self._texts(name)]
        if not positives:
            self._refuse("there is no positive")
        scores = self._teacher(len(positives), len(negatives))
        labels = [1.0] * len(positives) + [0.0] * len(negatives)
        return [
            Judged(text=text, label=label, teacher=score)
            for text, label, score in zip([*positives, *negatives], labels, scores, strict=True)
        ]

    def _teacher(self, num_positives: int, num_negatives: int) -> Sequence[float | None]:
        count = num_positives + num_negatives
        found: Any = None
        if {"pos_scores", "neg_scores"} <= self._fields.keys():
            parts = self._fields["pos_scores"], self._fields["neg_scores"]
            found = [*parts[0], *parts[1]] if all(isinstance(it, list) for it in parts) else parts
        elif (name := self._find(LABEL_FIELDS)) is not None:
            found = self._fields[name]
            if (num_positives, num_negatives) == (1, 1) and not isinstance(found, list):
                found = [found, 0.0]  # a margin: differences alone count
        if found is None:
            return [None] * count
        if not isinstance(found, list) or len(found) != count or not all(map(_is_number, found)):
            self._refuse(
                f"{num_positives} positives and {num_negatives} negatives need a teacher's score "
                f"each, but got {found!r}"
            )
        return [float(score) for score in found]

    def _label(self, name: str) -> float:
        return self._check_label(self._fields[name])

    def _check_label(self, value: Any) -> float:
        if isinstance(value, str):
            value = _WORDS.get(value.strip().lower(), value)
        if isinstance(value, bool):
            return float(value)
        if not _is_number(value) or not 0 <= value <= 1:
            self._refuse(f"a label must be from 0 to 1, or true or false, but got {value!r}")
        return float(value)

    def _texts(self, name: str) -> list[str]:
        value = self._fields[name]
        if isinstance(value, list):
            return [self._check_text(name, text) for text in value]
        return [self._check_text(name, value)]

    def _text(self, name: str) -> str:
        return self._check_text(name, self._fields[name])

    def _check_text(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            self._refuse(f"{name!r} must hold a text, but holds {value!r}")
        return value

    def _find(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if self._fields.get(name) is not None), None)

    def _one_of(self, names: Sequence[str], what: str) -> str:
        name = self._find(names)
        if name is None:
            there = ", ".join(self._fields) or "nothing"
            self._refuse(f"no {what}; looked for {', '.join(names)}; there is {there}")
        return name

    def _refuse(self, what: str) -> NoReturn:
        msg = f"{self._where}: {what}"
        raise DatasetError(msg)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
