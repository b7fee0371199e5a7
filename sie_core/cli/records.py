"""Documents and queries out of files: plain lines, JSONL, CSV and TSV.

Reading never drops a row: a row without text is a document without text, and rows that cannot be
read at all are an error that names the line.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sie_core.errors import DatasetError, InvalidRequestError

STDIN = Path("-")
"""The path that means standard input."""

_TEXT_COLUMNS = ("content", "page_content", "passage")
"""Where the text is looked for when there is no column `text`."""

_LABEL_WORDS = {"true": True, "false": False}

_MAX_FIELD_CHARS = 2**31 - 1
"""Python's csv refuses fields over 131,072 characters unless told otherwise."""


class Format(StrEnum):
    """How a file holds its records."""

    LINES = "lines"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"


_FORMATS_BY_SUFFIX = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One row of the input.

    Attributes:
        text: What is scored; None where the row has none.
        fields: The whole record as it was read; None for a plain line.
        id: The value of the id column, if one was named.
    """

    text: str | None
    fields: dict[str, Any] | None = None
    id: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A query, a document, and whether the document is relevant to it."""

    query: str
    text: str
    is_relevant: bool


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    fields: dict[str, Any]


def guess_format(path: Path) -> Format:
    """Choose the format by the file's extension; lines where that says nothing."""
    return _FORMATS_BY_SUFFIX.get(path.suffix.lower(), Format.LINES)


def read_documents(
    path: Path,
    *,
    file_format: Format | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> list[Document]:
    """Read every document of a file, in its order.

    Args:
        path: The file; `-` is standard input.
        file_format: None guesses by the extension.
        text_column: Where JSONL and CSV records hold the text; None means `text`, else whichever
            one of `content`, `page_content` and `passage` is there.
        id_column: Where they hold an id to carry into the output.

    Raises:
        DatasetError: The file is not UTF-8, or a line of it is malformed.
        InvalidRequestError: The file cannot be read; a column is not there, or cannot be told.
    """
    name = _name(path)
    file_format = file_format or guess_format(path)
    content = _read_utf8(path)
    if file_format is Format.LINES:
        for option, column in (("--text-column", text_column), ("--id-column", id_column)):
            if column is not None:
                msg = (
                    f"{option} {column!r} needs records, but {name} is read as plain lines; "
                    "add --format jsonl, csv or tsv"
                )
                raise InvalidRequestError(msg)
        return [Document(text=line) for line in _lines(content)]
    records = list(_PARSERS[file_format](content, name))
    if not records:
        return []
    columns = _columns(records)
    text_column = _choose_text_column(columns, text_column, name)
    if id_column is not None:
        _check_column(columns, id_column, "--id-column", name)
    return [
        Document(
            text=_text_of(record, text_column, name),
            fields=record.fields,
            id=record.fields.get(id_column) if id_column is not None else None,
        )
        for record in records
    ]


def read_queries(path: Path, *, query_column: str = "query") -> list[str]:
    """Read the queries of a file: one per line, or JSONL, CSV or TSV by its extension.

    Blank lines are not queries.

    Raises:
        DatasetError: The file is not UTF-8, a line of it is malformed, it holds no query, or a
            record's query is blank.
        InvalidRequestError: The file cannot be read, or the column is not there.
    """
    name = _name(path)
    file_format = guess_format(path)
    content = _read_utf8(path)
    if file_format is Format.LINES:
        queries = [line for line in _lines(content) if line.strip()]
    else:
        queries = []
        records = list(_PARSERS[file_format](content, name))
        if records:
            _check_column(_columns(records), query_column, "--query-column", name)
        for record in records:
            query = _text_of(record, query_column, name)
            if query is None or not query.strip():
                msg = f"{name} line {record.line}: the query in column {query_column!r} is blank"
                raise DatasetError(msg)
            queries.append(query)
    if not queries:
        msg = f"{name} holds no query"
        raise DatasetError(msg)
    return queries


def read_pairs(
    path: Path,
    *,
    file_format: Format | None = None,
    query_column: str = "query",
    text_column: str | None = None,
    label_column: str = "label",
) -> list[JudgedPair]:
    """Read judged pairs: a query, a document and a label in each record.

    A label is a number (relevant from 1 on), true or false.

    Raises:
        DatasetError: The file is not UTF-8, a line of it is malformed, a query or a document is
            blank, a label is none of these, or there is no pair.
        InvalidRequestError: The file cannot be read or holds plain lines; a column is not there.
    """
    name = _name(path)
    file_format = file_format or guess_format(path)
    if file_format is Format.LINES:
        msg = (
            f"{name} is read as plain lines, but pairs are records: add --format jsonl, csv or tsv"
        )
        raise InvalidRequestError(msg)
    records = list(_PARSERS[file_format](_read_utf8(path), name))
    if not records:
        msg = f"{name} holds no pair"
        raise DatasetError(msg)
    columns = _columns(records)
    text_column = _choose_text_column(columns, text_column, name)
    _check_column(columns, query_column, "--query-column", name)
    _check_column(columns, label_column, "--label-column", name)
    pairs = []
    for record in records:
        query, text = (_text_of(record, column, name) for column in (query_column, text_column))
        if not query or not query.strip() or not text or not text.strip():
            msg = f"{name} line {record.line}: a judged pair needs a query and a document with text"
            raise DatasetError(msg)
        label = _label_of(record, label_column, name)
        pairs.append(JudgedPair(query=query, text=text, is_relevant=label))
    return pairs


def _label_of(record: _Record, column: str, name: str) -> bool:
    value = record.fields.get(column)
    word = str(value).strip().lower()
    if word in _LABEL_WORDS:
        return _LABEL_WORDS[word]
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(word)):
            return number >= 1
    msg = f"{name} line {record.line}: the label {value!r} is neither a number nor true or false"
    raise DatasetError(msg)


def _name(path: Path) -> str:
    return "standard input" if path == STDIN else str(path)


def _read_utf8(path: Path) -> str:
    """Read the whole file; a byte order mark is dropped."""
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    except OSError as exc:
        msg = f"cannot read {_name(path)}: {exc.strerror}"
        raise InvalidRequestError(msg) from exc
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        # exc.object is what was decoded, without the byte order mark that was dropped.
        line = exc.object.count(b"\n", 0, exc.start) + 1
        byte = exc.object[exc.start]
        msg = (
            f"{_name(path)} line {line}: byte 0x{byte:02x} is not UTF-8; convert the file to UTF-8"
        )
        raise DatasetError(msg) from exc


def _lines(content: str) -> list[str]:
    r"""Split at line ends only: `str.splitlines` also splits at `\x0b`, `\u2028` and others."""
    lines = content.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def _parse_jsonl(content: str, name: str) -> Iterator[_Record]:
    for number, line in enumerate(_lines(content), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as exc:
            msg = f"{name} line {number}: not valid JSON: {exc}"
            raise DatasetError(msg) from exc
        if not isinstance(fields, dict):
            msg = (
                f"{name} line {number}: expected one JSON object per line, "
                f"but got {_json_type(fields)}"
            )
            raise DatasetError(msg)
        yield _Record(number, fields)


def _parse_csv(content: str, name: str, *, delimiter: str = ",") -> Iterator[_Record]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in rows:
            if row and header is None:
                header = _check_header(row, name)
            elif row and header is not None:
                if len(row) != len(header):
                    msg = (
                        f"{name} line {line}: {len(row)} fields, but the header has {len(header)} "
                        f"({_listed(header)})"
                    )
                    raise DatasetError(msg)
                yield _Record(line, dict(zip(header, row, strict=True)))
            line = rows.line_num + 1  # a quoted field may span lines: name the record's first
    except csv.Error as exc:
        msg = f"{name} line {line}: not valid CSV: {exc}"
        raise DatasetError(msg) from exc


def _parse_tsv(content: str, name: str) -> Iterator[_Record]:
    return _parse_csv(content, name, delimiter="\t")


_PARSERS: dict[Format, Callable[[str, str], Iterator[_Record]]] = {
    Format.JSONL: _parse_jsonl,
    Format.CSV: _parse_csv,
    Format.TSV: _parse_tsv,
}


def _check_header(header: list[str], name: str) -> list[str]:
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        msg = f"{name}: the header names a column twice: {_listed(repeated)}"
        raise DatasetError(msg)
    return header


def _columns(records: Sequence[_Record]) -> list[str]:
    """Every column that any record has, in order of appearance."""
    return list(dict.fromkeys(column for record in records for column in record.fields))


def _choose_text_column(columns: Sequence[str], wanted: str | None, name: str) -> str:
    if wanted is not None:
        _check_column(columns, wanted, "--text-column", name)
        return wanted
    if "text" in columns:
        return "text"
    likely = [column for column in _TEXT_COLUMNS if column in columns]
    if len(likely) == 1:
        return likely[0]
    msg = f"cannot tell which column of {name} holds the text; add --text-column with one of: "
    raise InvalidRequestError(msg + _listed(columns))


def _check_column(columns: Sequence[str], column: str, option: str, name: str) -> None:
    if column not in columns:
        msg = f"{option} {column!r} is not in {name}, whose columns are: {_listed(columns)}"
        raise InvalidRequestError(msg)


def _text_of(record: _Record, column: str, name: str) -> str | None:
    text = record.fields.get(column)
    if text is None or isinstance(text, str):
        return text
    msg = f"{name} line {record.line}: column {column!r} holds {_json_type(text)}, not a text"
    raise DatasetError(msg)


def _json_type(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
