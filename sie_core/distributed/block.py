"""`Block`: rows of one file that are ranked, written and checked off together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from sie_core.distributed.columns import Columns
from sie_core.distributed.ranked_row import RankedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A range of a file's rows.

    Attributes:
        name: Of the file that the rows are written to.
        path: Of the file that they are in, seen by every worker.
        start: Where the range begins, and `stop` where it ends: bytes of a JSONL file, rows of a
            Parquet file's row groups `groups`.
        stop: See `start`.
        num_rows: As many are read, and written.
        first_row: The place in the file of the first of them, from 0.
        groups: The first row group that has some of them, and the one after the last.
    """

    name: str
    path: str
    start: int
    stop: int
    num_rows: int
    first_row: int
    groups: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Make one of what JSON held."""
        return cls(**fields | {"groups": tuple(fields["groups"])})


class Rows(Protocol):
    """The rows of a block."""

    queries: Sequence[Any]
    candidates: Sequence[Any]

    def write(self, path: Path, ranked: Sequence[RankedRow]) -> None:
        """Write the rows as they were read, each with what is added to it."""
        ...


class ListFormat(Protocol):
    """How files hold rows."""

    suffixes: tuple[str, ...]
    """Of such files; the first is given to what is written."""

    def blocks(self, path: Path, rows_per_block: int, columns: Columns) -> list[Block]:
        """Cut a file into blocks that have no name yet.

        Raises:
            InvalidRequestError: The file has not the columns.
            DatasetError: It cannot be read.
        """
        ...

    def read(self, block: Block, columns: Columns) -> Rows:
        """Read the rows of a block.

        Raises:
            DatasetError: They are not there any more.
        """
        ...
