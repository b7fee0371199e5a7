"""Lists in JSONL: one object per line. What is written is the line as it was, with three keys more.

A line that is not an object stays a row: it is written as `{"line": …}` with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sie_core.distributed.block import Block
from sie_core.distributed.columns import Columns
from sie_core.distributed.ranked_row import RankedRow
from sie_core.errors import DatasetError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonlLists:
    """Reads blocks of lines. Blank lines are no rows."""

    suffixes: tuple[str, ...] = (".jsonl", ".ndjson")

    def blocks(self, path: Path, rows_per_block: int, columns: Columns) -> list[Block]:
        """Cut a file at line ends; see `ListFormat.blocks`."""
        blocks: list[Block] = []
        start = position = num_rows = first_row = 0
        with path.open("rb") as stream:
            for line in stream:
                position += len(line)
                if not line.strip():
                    continue
                if not blocks and not num_rows:
                    _check_first(line, columns, path)
                num_rows += 1
                if num_rows == rows_per_block:
                    blocks.append(_block(path, start, position, num_rows, first_row))
                    first_row += num_rows
                    start, num_rows = position, 0
        if num_rows:
            blocks.append(_block(path, start, position, num_rows, first_row))
        return blocks

    def read(self, block: Block, columns: Columns) -> JsonlRows:
        """Read the lines of a block; see `ListFormat.read`."""
        with Path(block.path).open("rb") as stream:
            stream.seek(block.start)
            content = stream.read(block.stop - block.start)
        lines = [line for line in content.split(b"\n") if line.strip()]
        if len(lines) != block.num_rows:
            msg = (
                f"{block.path} has {len(lines)} lines where {block.num_rows} were counted: it "
                "changed while it was read"
            )
            raise DatasetError(msg)
        if block.start == 0:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        return JsonlRows([_Line.of(line).checked(columns) for line in lines], columns)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as it was read: its object, or why it has none."""

    content: bytes
    fields: dict[str, Any]
    fault: str | None = None

    @classmethod
    def of(cls, content: bytes) -> _Line:
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as exc:
            return cls(content, {}, f"the line is not valid JSON: {exc}")
        if not isinstance(fields, dict):
            return cls(content, {}, "the line holds no JSON object")
        return cls(content, fields)

    def checked(self, columns: Columns) -> _Line:
        """Refuse to write over a key that is there."""
        taken = [name for name in columns.added if name in self.fields]
        if not taken:
            return self
        return _Line(self.content, {}, f"the line has a key {taken[0]!r} already")

    def with_more(self, more: dict[str, Any]) -> bytes:
        """Put keys behind those there are, whose every byte stays."""
        added = json.dumps(more, ensure_ascii=False)
        if self.fault is not None:
            line = self.content.decode("utf-8", errors="backslashreplace").rstrip("\r")
            return _encoded(json.dumps({"line": line} | more, ensure_ascii=False))
        head = self.content.rstrip()[:-1].rstrip()
        comma = b", " if self.fields else b""
        return head + comma + _encoded(added[1:])


class JsonlRows:
    """Lines, and where their queries and candidates are.

    Args:
        lines: Of the block.
        columns: The keys.
    """

    def __init__(self, lines: Sequence[_Line], columns: Columns) -> None:
        self._lines = lines
        self._columns = columns
        self.queries: Sequence[Any] = [line.fields.get(columns.query) for line in lines]
        self.candidates: Sequence[Any] = [line.fields.get(columns.documents) for line in lines]

    def write(self, path: Path, ranked: Sequence[RankedRow]) -> None:
        """See `Rows.write`."""
        with path.open("wb") as stream:
            stream.writelines(chain.from_iterable(self._written(ranked)))

    def _written(self, ranked: Sequence[RankedRow]) -> Iterator[tuple[bytes, bytes]]:
        for line, row in zip(self._lines, ranked, strict=True):
            values = (row.ranking, row.status, line.fault or row.reason)
            yield line.with_more(dict(zip(self._columns.added, values, strict=True))), b"\n"


def _block(path: Path, start: int, stop: int, num_rows: int, first_row: int) -> Block:
    return Block(
        name="", path=str(path), start=start, stop=stop, num_rows=num_rows, first_row=first_row
    )


def _check_first(line: bytes, columns: Columns, path: Path) -> None:
    """See that the columns are named right; what other lines have is found when they are read."""
    first = _Line.of(line.removeprefix(_BYTE_ORDER_MARK))
    if first.fault is not None:
        msg = f"{path}: line 1: {first.fault.removeprefix('the line ')}"
        raise DatasetError(msg)
    columns.check(first.fields, str(path))


def _encoded(text: str) -> bytes:
    r"""Half a surrogate pair cannot be UTF-8; as \ud83d it is the JSON it was read from."""
    return text.encode("utf-8", errors="backslashreplace")
