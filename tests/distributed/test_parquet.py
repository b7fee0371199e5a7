from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sie_core.distributed.columns import Columns
from sie_core.distributed.ranked_row import RankedRow
from sie_core.errors import DatasetError, InvalidRequestError

MakeRows = Callable[..., list[dict[str, Any]]]

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from sie_core.distributed.parquet import ParquetLists  # noqa: E402  after what it needs


@pytest.mark.parametrize("group_rows", [1, 3, 10, 1000])
@pytest.mark.parametrize("rows_per_block", [1, 4, 100])
def test_every_row_is_in_one_block(
    make_rows: MakeRows, write_parquet: Callable[..., Path], group_rows: int, rows_per_block: int
) -> None:
    """However large row groups are, and in order."""
    path = write_parquet(make_rows(23), group_rows=group_rows)
    formats = ParquetLists()
    blocks = formats.blocks(path, rows_per_block, Columns())
    read = [query for block in blocks for query in formats.read(block, Columns()).queries]
    assert read == [row["query"] for row in make_rows(23)]
    assert [block.first_row for block in blocks] == [
        sum(block.num_rows for block in blocks[:i]) for i in range(len(blocks))
    ]
    assert max(block.num_rows for block in blocks) <= rows_per_block


def test_small_row_groups_are_read_together(
    make_rows: MakeRows, write_parquet: Callable[..., Path]
) -> None:
    """A file for each would be many."""
    blocks = ParquetLists().blocks(write_parquet(make_rows(20), group_rows=2), 10, Columns())
    assert [block.num_rows for block in blocks] == [10, 10]


def test_columns_and_their_types_stay(tmp_path: Path) -> None:
    """Timestamps, decimals, dictionaries and the file's own notes too."""
    table = pa.table(
        {
            "query": pa.array(["a", "b"]).dictionary_encode(),
            "documents": pa.array([["x"], None], pa.large_list(pa.string())),
            "at": pa.array([1, 2], pa.timestamp("ns", "UTC")),
            "price": pa.array([1, 2], pa.int64()).cast(pa.decimal128(30, 3)),
        }
    ).replace_schema_metadata({b"made by": b"a test"})
    path = tmp_path / "lists.parquet"
    pq.write_table(table, path)
    formats = ParquetLists()
    [block] = formats.blocks(path, 10, Columns())
    ranked = [
        RankedRow(ranking=[{"index": 0, "score": 0.1 + 0.2}], status="complete"),
        RankedRow(ranking=None, status="failed", reason="no list"),
    ]
    formats.read(block, Columns()).write(tmp_path / "out.parquet", ranked)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(table.column_names).equals(pq.read_table(path), check_metadata=False)
    assert out.schema.metadata[b"made by"] == b"a test"
    assert out.select(Columns().added).to_pylist() == [
        {
            "ranking": [{"index": 0, "score": 0.1 + 0.2}],
            "ranking_status": "complete",
            "ranking_reason": None,
        },
        {"ranking": None, "ranking_status": "failed", "ranking_reason": "no list"},
    ]


def test_all_parts_have_one_schema(
    make_rows: MakeRows, write_parquet: Callable[..., Path], tmp_path: Path
) -> None:
    """One whose rows all failed, or have no candidates, can be read together with the others."""
    columns = Columns(id="id")
    formats = ParquetLists()
    blocks = formats.blocks(write_parquet(make_rows(4)), 2, columns)
    answers = [
        RankedRow(ranking=[{"index": 0, "score": 1.0, "id": "0/0"}], status="complete"),
        RankedRow(ranking=None, status="failed", reason="why"),
    ]
    schemas = []
    for block, answer in zip(blocks, answers, strict=True):
        path = tmp_path / f"part-{block.first_row}"
        formats.read(block, columns).write(path, [answer] * 2)
        schemas.append(pq.read_schema(path))
    assert schemas[0].equals(schemas[1])


def test_what_is_no_list_of_documents_is_an_error(tmp_path: Path) -> None:
    """Before anything is ranked."""
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"query": ["a"], "documents": ["b"]}), path)
    with pytest.raises(InvalidRequestError, match="must hold lists of documents, but holds string"):
        ParquetLists().blocks(path, 10, Columns())
    pq.write_table(pa.table({"query": ["a"], "documents": [["b"]]}), path)
    with pytest.raises(InvalidRequestError, match="have no id 'key': they are string"):
        ParquetLists().blocks(path, 10, Columns(id="key"))


def test_a_file_that_was_written_anew_is_read_anew(
    make_rows: MakeRows, write_parquet: Callable[..., Path]
) -> None:
    """What was read of it before is another file's."""
    formats = ParquetLists()
    for rows in (make_rows(3), [row | {"query": "other"} for row in make_rows(3)]):
        path = write_parquet(rows)
        [block] = formats.blocks(path, 10, Columns())
        assert list(formats.read(block, Columns()).queries) == [row["query"] for row in rows]


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    """It names the file."""
    path = tmp_path / "lists.parquet"
    path.write_text("query,documents\n")
    with pytest.raises(DatasetError, match=r"lists\.parquet cannot be read as Parquet"):
        ParquetLists().blocks(path, 10, Columns())
