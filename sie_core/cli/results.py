"""Rankings out of the command: a table for people, JSONL for programs.

JSONL has one object per document: `query_index`, `query`, `rank`, `score` (null for a document
without text), `index` (the record's number in the input, from 0), `id` if an id column was named,
and the input itself: `text` for a plain line, `document` for a record, with every field untouched.
In a degraded answer it also has `status` (`degraded`), `served_by` and `reason`.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sie_core.cli.records import Document
from sie_core.cli.terminal import printable
from sie_core.ranking import RankedEntry, Ranking

_FILE_TABLE_WIDTH = 120
"""Columns of a table that is written to a file, where no terminal gives a width."""


class OutputFormat(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSONL = "jsonl"


class Results(Protocol):
    """Where rankings are written, one query after the other."""

    is_terminal: bool

    def write(
        self,
        query_index: int,
        query: str,
        ranking: Ranking,
        documents: Sequence[Document],
    ) -> None:
        """Write one query's ranking."""
        ...


@contextmanager
def open_results(
    out: Path | None,
    output_format: OutputFormat | None,
    *,
    has_ids: bool,
) -> Iterator[Results]:
    """Open where results go.

    Args:
        out: A file, which appears whole or not at all; None is standard output.
        output_format: None is a table on a terminal, else JSONL.
        has_ids: Whether documents have an id to show.
    """
    is_terminal = out is None and sys.stdout.isatty()
    if output_format is None:
        output_format = OutputFormat.TABLE if is_terminal else OutputFormat.JSONL
    with _open_bytes(out) as stream:
        if output_format is OutputFormat.JSONL:
            yield JsonlResults(stream, has_ids=has_ids, is_terminal=is_terminal)
        else:
            yield TableResults(_console(stream, out), has_ids=has_ids, is_terminal=is_terminal)


class JsonlResults:
    """One JSON object per document, in UTF-8."""

    def __init__(self, stream: BinaryIO, *, has_ids: bool, is_terminal: bool = False) -> None:
        self.is_terminal = is_terminal
        self._stream = stream
        self._has_ids = has_ids

    def write(
        self,
        query_index: int,
        query: str,
        ranking: Ranking,
        documents: Sequence[Document],
    ) -> None:
        """Write one query's ranking, and pass it on at once to whoever reads."""
        for entry in ranking:
            row = self._row(query_index, query, entry, documents[entry.index]) | _marks(ranking)
            line = json.dumps(row, ensure_ascii=False)
            # Half a surrogate pair cannot be UTF-8; as \ud83d it is the JSON it was read from.
            self._stream.write(line.encode("utf-8", errors="backslashreplace") + b"\n")
        self._stream.flush()

    def _row(
        self, query_index: int, query: str, entry: RankedEntry, document: Document
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "query_index": query_index,
            "query": query,
            "rank": entry.rank,
            "score": entry.score,
            "index": entry.index,
        }
        if self._has_ids:
            row["id"] = document.id
        if document.fields is None:
            row["text"] = document.text
        else:
            row["document"] = document.fields
        return row


def _marks(ranking: Ranking) -> dict[str, Any]:
    """Say of a degraded answer who gave it, and why."""
    if ranking.status != "degraded":
        return {}
    return {"status": ranking.status, "served_by": ranking.served_by, "reason": ranking.reason}


class TableResults:
    """One table per query, with the beginning of each text."""

    def __init__(self, console: Console, *, has_ids: bool, is_terminal: bool = False) -> None:
        self.is_terminal = is_terminal
        self._console = console
        self._has_ids = has_ids

    def write(
        self,
        query_index: int,  # noqa: ARG002 -- the table names the query itself
        query: str,
        ranking: Ranking,
        documents: Sequence[Document],
    ) -> None:
        """Print one query's table."""
        table = Table(title=Text(printable(query)), title_justify="left", expand=False)
        table.add_column("rank", justify="right")
        table.add_column("score", justify="right")
        table.add_column("id" if self._has_ids else "index", justify="right", overflow="fold")
        table.add_column("text", overflow="fold")
        for entry in ranking:
            document = documents[entry.index]
            table.add_row(
                str(entry.rank),
                "-" if entry.score is None else f"{entry.score:.4f}",
                Text(printable(str(document.id if self._has_ids else entry.index))),
                Text(printable(document.text or "")),
            )
        self._console.print(table)
        if ranking.status == "degraded":
            self._console.print(Text(f"degraded: {printable(ranking.served_by)} answered"))


def _console(stream: BinaryIO, out: Path | None) -> Console:
    if out is not None:
        text = io.TextIOWrapper(stream, encoding="utf-8", write_through=True)
        return Console(file=text, width=_FILE_TABLE_WIDTH)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character; show the rest
    return Console(file=sys.stdout)


@contextmanager
def _open_bytes(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
    elif out.exists() and not out.is_file():  # a pipe or device is written to, never replaced
        with out.open("wb") as stream:
            yield stream
    else:
        with _replace_when_done(Path(os.path.realpath(out))) as stream:
            yield stream


@contextmanager
def _replace_when_done(target: Path) -> Iterator[BinaryIO]:
    """Write beside `target` and move it there at the end; on any error leave nothing."""
    unfinished = target.with_name(f".{target.name}.{uuid4().hex}.unfinished")
    try:
        with unfinished.open("xb") as stream:
            yield stream
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
