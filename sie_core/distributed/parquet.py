"""Lists in Parquet: every column stays as it is, and three are added."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sie_core.distributed.block import Block
from sie_core.distributed.columns import Columns
from sie_core.distributed.ranked_row import RankedRow
from sie_core.errors import DatasetError, InvalidRequestError, MissingDependencyError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as exc:
    _MISSING = 'Parquet files need pyarrow: pip install "sie-core[distributed]"'
    raise MissingDependencyError(_MISSING) from exc


class ParquetLists:
    """Reads blocks of row groups, whole small ones together and large ones in parts."""

    suffixes: tuple[str, ...] = (".parquet",)

    def blocks(self, path: Path, rows_per_block: int, columns: Columns) -> list[Block]:
        """Cut a file so that no block needs more row groups than it must; see `ListFormat`."""
        try:
            metadata = pq.read_metadata(path)
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as exc:
            msg = f"{path} cannot be read as Parquet: {exc}"
            raise DatasetError(msg) from exc
        columns.check(schema.names, str(path))
        ranking_type(schema, columns)
        blocks: list[Block] = []
        group = first_row = 0
        while group < metadata.num_row_groups:
            num_rows = metadata.row_group(group).num_rows
            last = group + 1
            while last < metadata.num_row_groups and num_rows < rows_per_block:
                num_rows += metadata.row_group(last).num_rows
                last += 1
            for start in range(0, num_rows, rows_per_block):
                stop = min(start + rows_per_block, num_rows)
                blocks.append(
                    Block(
                        name="",
                        path=str(path),
                        start=start,
                        stop=stop,
                        num_rows=stop - start,
                        first_row=first_row + start,
                        groups=(group, last),
                    )
                )
            first_row += num_rows
            group = last
        return blocks

    def read(self, block: Block, columns: Columns) -> TableRows:
        """Read the rows of a block; see `ListFormat.read`."""
        try:
            stamp = Path(block.path).stat().st_mtime_ns
            table = _row_groups(block.path, block.groups, stamp).slice(block.start, block.num_rows)
        except (pa.ArrowException, OSError) as exc:
            msg = f"{block.path} cannot be read any more: {exc}"
            raise DatasetError(msg) from exc
        if table.num_rows != block.num_rows:
            msg = f"{block.path} has fewer rows than were counted: it changed while it was read"
            raise DatasetError(msg)
        return TableRows(table, columns)


class TableRows:
    """Rows of an Arrow table, and where their queries and candidates are.

    Args:
        table: The rows.
        columns: Their names.
    """

    def __init__(self, table: Any, columns: Columns) -> None:
        self._table = table
        self._columns = columns
        self.queries: Sequence[Any] = table.column(columns.query).to_pylist()
        self.candidates: Sequence[Any] = table.column(columns.documents).to_pylist()

    def with_ranked(self, ranked: Sequence[RankedRow]) -> Any:
        """Return the table with the three columns more."""
        columns = self._columns
        added = {
            columns.ranking: pa.array(
                [row.ranking for row in ranked], ranking_type(self._table.schema, columns)
            ),
            columns.status: pa.array([row.status for row in ranked], pa.string()),
            columns.reason: pa.array([row.reason for row in ranked], pa.string()),
        }
        table = self._table
        for name, values in added.items():
            table = table.append_column(name, values)
        return table

    def write(self, path: Path, ranked: Sequence[RankedRow]) -> None:
        """See `Rows.write`."""
        pq.write_table(self.with_ranked(ranked), path)


def is_arrow(schema: Any) -> bool:
    """Say whether a schema is Arrow's own."""
    return isinstance(schema, pa.Schema)


def ranking_type(schema: Any, columns: Columns) -> Any:
    """Return the type of the ranking's column: equal for all blocks, whatever is in them.

    Raises:
        InvalidRequestError: Candidates are no list, or have not the id that is asked for.
    """
    kind = schema.field(columns.documents).type
    if not isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        msg = f"the column {columns.documents!r} must hold lists of documents, but holds {kind}"
        raise InvalidRequestError(msg)
    fields = [pa.field("index", pa.int32()), pa.field("score", pa.float64())]
    if columns.id is not None:
        candidate = kind.value_type
        if not pa.types.is_struct(candidate) or candidate.get_field_index(columns.id) < 0:
            msg = (
                f"the documents in {columns.documents!r} have no id {columns.id!r}: they are "
                f"{candidate}"
            )
            raise InvalidRequestError(msg)
        fields.append(pa.field("id", candidate.field(columns.id).type))
    return pa.list_(pa.struct(fields))


@functools.lru_cache(maxsize=1)
def _row_groups(path: str, groups: tuple[int, int], stamp: int) -> Any:
    """Read row groups; those of the block before are at hand, as large groups make many blocks.

    Args:
        path: Of the file.
        groups: The first, and the one after the last.
        stamp: When the file was written: another one of the same name is another one.
    """
    del stamp
    return pq.ParquetFile(path).read_row_groups(range(*groups))
