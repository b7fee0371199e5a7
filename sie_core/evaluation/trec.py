"""TREC's files: runs (`query Q0 document rank score tag`) and judgements, read and written.

Programs that read a run order it by score alone, in single precision, and break ties each in its
own way. So a run is written with scores that fall strictly in that precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.evaluation.collection import Qrels

Run = Mapping[str, Sequence[tuple[str, float]]]
"""Query id -> (document id, score), best first."""

_RUN_FIELDS = 6
_TREC_QRELS_FIELDS = 4
_BEIR_QRELS_FIELDS = 3


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a run; each list is ordered by score, and where scores are equal as in the file.

    Raises:
        DatasetError: It cannot be read, a line is malformed, or a list names a document twice.
    """
    run: dict[str, list[tuple[str, float]]] = {}
    for line, fields in _read_fields(path):
        if len(fields) != _RUN_FIELDS:
            msg = (
                f"{path} line {line}: a run has six fields (query Q0 document rank score tag), "
                f"but this has {len(fields)}"
            )
            raise DatasetError(msg)
        query_id, _, document_id, _, score, _ = fields
        run.setdefault(query_id, []).append((document_id, _number(score, path, line)))
    for query_id, documents in run.items():
        if len({document_id for document_id, _ in documents}) < len(documents):
            msg = f"{path}: the list of query {query_id!r} names a document twice"
            raise DatasetError(msg)
        documents.sort(key=lambda document: -document[1])
    return run


def write_run(path: Path, run: Mapping[str, Sequence[tuple[str, float | None]]], tag: str) -> None:
    """Write a run.

    Args:
        path: The file, which is replaced.
        run: Best first; a document without a score stands after those with one.
        tag: The run's name.

    Raises:
        InvalidRequestError: An id has a space in it, which the format has no way to hold.
    """
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for query_id, documents in run.items():
            scores = falling([score for _, score in documents])
            for rank, ((document_id, _), score) in enumerate(
                zip(documents, scores, strict=True), start=1
            ):
                _check_ids(query_id, document_id)
                stream.write(f"{query_id} Q0 {document_id} {rank} {score:.9g} {tag}\n")


def falling(scores: Sequence[float | None]) -> list[float]:
    """Make scores fall strictly in single precision, changing them by as little as that takes."""
    made: list[float] = []
    previous = np.float32(np.inf)
    for score in scores:
        wanted = previous if score is None else np.float32(score)
        if not wanted < previous:
            wanted = np.nextafter(previous, np.float32(-np.inf))
        if not made and score is None:
            wanted = np.float32(0.0)
        made.append(float(wanted))
        previous = wanted
    return made


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements: TREC's four fields, or BEIR's three under a header.

    Raises:
        DatasetError: It cannot be read, or a line is malformed.
    """
    qrels: dict[str, dict[str, int]] = {}
    is_first = True
    for line, fields in _read_fields(path):
        if len(fields) == _TREC_QRELS_FIELDS:
            query_id, _, document_id, grade = fields
        elif len(fields) == _BEIR_QRELS_FIELDS:
            query_id, document_id, grade = fields
        else:
            msg = f"{path} line {line}: judgements have 3 or 4 fields, but this has {len(fields)}"
            raise DatasetError(msg)
        was_first, is_first = is_first, False
        if was_first and not _is_number(grade):
            continue  # the header
        qrels.setdefault(query_id, {})[document_id] = int(_number(grade, path, line))
    return qrels


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write judgements as TREC has them.

    Raises:
        InvalidRequestError: An id has a space in it.
    """
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for query_id, grades in qrels.items():
            for document_id, grade in grades.items():
                _check_ids(query_id, document_id)
                stream.write(f"{query_id} 0 {document_id} {grade}\n")


def _read_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line, content in enumerate(stream, start=1):
                if content.strip():
                    yield line, content.split()
    except OSError as exc:
        msg = f"cannot read {path}: {exc.strerror}"
        raise DatasetError(msg) from exc
    except UnicodeDecodeError as exc:
        msg = f"{path} is not UTF-8 ({exc.reason}); convert it to UTF-8"
        raise DatasetError(msg) from exc


def _number(text: str, path: Path, line: int) -> float:
    if not _is_number(text):
        msg = f"{path} line {line}: expected a number, but got {text!r}"
        raise DatasetError(msg)
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _check_ids(*ids: str) -> None:
    for one in ids:
        if not one or len(one.split()) != 1 or one != one.strip():
            msg = f"the id {one!r} is empty or has a space in it, which a TREC file cannot hold"
            raise InvalidRequestError(msg)
