from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sie_core import Reranker
from sie_core.distributed.block import Block
from sie_core.distributed.columns import Columns
from sie_core.distributed.receipt import Receipt
from sie_core.distributed.rerank_files import ThisProcess, rerank_files
from sie_core.errors import DatasetError, InvalidRequestError, ModelError

MakeRows = Callable[..., list[dict[str, Any]]]
ReadParts = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def reranker(tiny_bert: Path) -> Reranker:
    """Of a tiny model."""
    return Reranker(str(tiny_bert))


class Stopping(ThisProcess):
    """Fails before a block, as a machine would that loses its power."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.names: list[str] = []

    def run(
        self, blocks: list[Block], out: Path, reranker: Reranker, columns: Columns
    ) -> Iterator[Receipt]:
        self.names = [block.name for block in blocks]
        yield from super().run(blocks[: self.num_blocks], out, reranker, columns)
        if len(blocks) > self.num_blocks:
            msg = "the power is gone"
            raise ModelError(msg)


def test_each_row_comes_out_once_with_its_ranking(
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """In the order of the rows, and with all that they had."""
    rows = make_rows(23)
    outcome = rerank_files(
        write_jsonl(rows), tmp_path / "out", reranker, columns=Columns(id="id"), rows_per_block=5
    )
    written = read_parts(tmp_path / "out")
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    for row in written:
        assert sorted(entry["index"] for entry in row["ranking"]) == [0, 1, 2]
        assert all(
            entry["id"] == row["documents"][entry["index"]]["id"] for entry in row["ranking"]
        )
        scores = [entry["score"] for entry in row["ranking"]]
        assert scores == sorted(scores, reverse=True)
    assert (outcome.total.num_rows, outcome.total.num_scored) == (23, 69)
    assert (outcome.num_blocks, outcome.num_kept) == (5, 0)


def test_both_formats_have_the_same_ranking(
    *,
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    write_parquet: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Of the same rows."""
    rows = make_rows(9)
    rerank_files(write_jsonl(rows), tmp_path / "a", reranker)
    rerank_files(write_parquet(rows), tmp_path / "b", reranker)
    for one, other in zip(read_parts(tmp_path / "a"), read_parts(tmp_path / "b"), strict=True):
        assert one["id"] == other["id"]
        assert [it["index"] for it in one["ranking"]] == [it["index"] for it in other["ranking"]]
        assert [it["score"] for it in one["ranking"]] == pytest.approx(
            [it["score"] for it in other["ranking"]], abs=1e-5
        )


def test_a_rerun_does_only_what_is_missing(
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """What was done is not touched, and the count is of all."""
    source, out = write_jsonl(make_rows(20)), tmp_path / "out"
    told: list[object] = []
    with pytest.raises(ModelError, match="the power is gone"):
        rerank_files(source, out, reranker, rows_per_block=4, engine=Stopping(2))
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(before) == 2
    engine = Stopping(99)
    outcome = rerank_files(
        source,
        out,
        reranker,
        rows_per_block=4,
        engine=engine,
        on_start=lambda total, done: told.append((total, done)),
        on_rows=told.append,
    )
    assert engine.names == [f"part-00000-0000{i}.jsonl" for i in (2, 3, 4)]
    assert told == [(20, 8), 4, 4, 4]
    assert (outcome.num_kept, outcome.total.num_rows) == (2, 20)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert [row["id"] for row in read_parts(out)] == [f"row-{i}" for i in range(20)]


def test_a_run_that_is_done_does_nothing(
    make_rows: MakeRows, reranker: Reranker, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """It counts what there is; the engine is not asked."""
    source, out = write_jsonl(make_rows(6)), tmp_path / "out"
    rerank_files(source, out, reranker, rows_per_block=4)
    engine = Stopping(0)
    outcome = rerank_files(source, out, reranker, rows_per_block=4, engine=engine)
    assert (engine.names, outcome.num_kept, outcome.total.num_rows) == ([], 2, 6)


def test_a_part_without_its_receipt_is_made_again(
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A worker may die between the two; its rows still come out once."""
    source, out = write_jsonl(make_rows(8)), tmp_path / "out"
    rerank_files(source, out, reranker, rows_per_block=4)
    expected = read_parts(out)
    (out / "_sie" / "receipts" / "part-00000-00001.jsonl.json").unlink()
    assert rerank_files(source, out, reranker, rows_per_block=4).num_kept == 1
    assert [row["id"] for row in read_parts(out)] == [row["id"] for row in expected]


def test_a_part_that_somebody_deleted_is_noticed(
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Its receipt alone is no row."""
    source, out = write_jsonl(make_rows(8)), tmp_path / "out"
    rerank_files(source, out, reranker, rows_per_block=4)
    (out / "part-00000-00000.jsonl").unlink()
    rerank_files(source, out, reranker, rows_per_block=4)
    assert len(read_parts(out)) == 8


def test_other_settings_or_rows_need_another_folder(
    make_rows: MakeRows,
    reranker: Reranker,
    tiny_bert: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Parts of two runs in one folder would be neither."""
    source, out = write_jsonl(make_rows(4)), tmp_path / "out"
    rerank_files(source, out, reranker)
    with pytest.raises(InvalidRequestError, match=r"out holds .*top_k was not set and is now 2"):
        rerank_files(source, out, Reranker(str(tiny_bert), top_k=2))
    with pytest.raises(InvalidRequestError, match="rows_per_block was 512 and is now 3"):
        rerank_files(source, out, reranker, rows_per_block=3)
    write_jsonl(make_rows(5))
    with pytest.raises(InvalidRequestError, match=r"files lists\.jsonl bytes was"):
        rerank_files(source, out, reranker)


def test_the_ranked_rows_may_lie_beside_the_others(
    make_rows: MakeRows, reranker: Reranker, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """What was written is not read as rows the next time."""
    write_jsonl(make_rows(4), "in/lists.jsonl")
    for num_kept in (0, 1):
        outcome = rerank_files(tmp_path / "in", tmp_path / "in" / "ranked", reranker)
        assert (outcome.num_kept, outcome.total.num_rows) == (num_kept, 4)


def test_files_of_one_name_in_two_folders_are_two(
    make_rows: MakeRows, reranker: Reranker, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """A change of either is a change."""
    write_jsonl(make_rows(2), "in/a/lists.jsonl")
    write_jsonl(make_rows(2), "in/b/lists.jsonl")
    rerank_files(tmp_path / "in", tmp_path / "out", reranker)
    write_jsonl(make_rows(3)[1:], "in/a/lists.jsonl")
    with pytest.raises(InvalidRequestError, match=r"files a/lists\.jsonl sha256_of_ends was"):
        rerank_files(tmp_path / "in", tmp_path / "out", reranker)


def test_rows_copied_elsewhere_are_the_same(
    make_rows: MakeRows, reranker: Reranker, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """A run may be continued on another machine."""
    source, out = write_jsonl(make_rows(4)), tmp_path / "out"
    rerank_files(source, out, reranker)
    (tmp_path / "elsewhere").mkdir()
    copied = shutil.copy(source, tmp_path / "elsewhere")
    assert rerank_files(copied, out, reranker).num_kept == 1


def test_a_folder_of_files(
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Sorted by name, also those of folders in it; what begins with _ or . is passed over."""
    rows = make_rows(9)
    write_jsonl(rows[3:6], "in/b.jsonl")
    write_jsonl(rows[:3], "in/a.jsonl")
    write_jsonl(rows[6:], "in/c/d.jsonl")
    write_jsonl(rows, "in/_sie/e.jsonl")
    write_jsonl(rows, "in/.f.jsonl")
    (tmp_path / "in" / "read me.txt").write_text("words")
    rerank_files(tmp_path / "in", tmp_path / "out", reranker, rows_per_block=2)
    assert [row["id"] for row in read_parts(tmp_path / "out")] == [row["id"] for row in rows]


def test_rows_that_fail_are_written_and_counted(
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The first one is named, with its file."""
    rows = [*make_rows(3), {"id": "bad", "query": 5, "documents": []}, {"id": "worse"}]
    outcome = rerank_files(write_jsonl(rows), tmp_path / "out", reranker, rows_per_block=2)
    assert outcome.total.num_failed == 2
    assert outcome.total.first_reason is not None
    assert "lists.jsonl row 3: the query must be a text" in outcome.total.first_reason
    assert [row["ranking_status"] for row in read_parts(tmp_path / "out")[3:]] == ["failed"] * 2


def test_the_cut_is_the_reranker_s(
    make_rows: MakeRows,
    read_parts: ReadParts,
    tiny_bert: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """`top_k` shortens the ranking, never the row."""
    rerank_files(write_jsonl(make_rows(3)), tmp_path / "out", Reranker(str(tiny_bert), top_k=1))
    for row in read_parts(tmp_path / "out"):
        assert len(row["ranking"]) == 1
        assert len(row["documents"]) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no file or folder"),
        ("empty", "has no file that ends in"),
        ("both", "has both Parquet and JSONL files"),
        ("lists.csv", r"read from \.parquet, \.jsonl and \.ndjson files, but got"),
    ],
)
def test_a_source_that_holds_no_lists_is_an_error(
    reranker: Reranker, tmp_path: Path, name: str, message: str
) -> None:
    """It says what was looked for."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.jsonl").touch()
    (tmp_path / "both" / "b.parquet").touch()
    (tmp_path / "lists.csv").touch()
    with pytest.raises(InvalidRequestError, match=message):
        rerank_files(tmp_path / name, tmp_path / "out", reranker)
    assert not (tmp_path / "out").exists()


def test_a_source_without_rows_is_an_error(reranker: Reranker, tmp_path: Path) -> None:
    """An empty folder of results would look like success."""
    (tmp_path / "lists.jsonl").write_text("\n\n")
    with pytest.raises(DatasetError, match="has no rows"):
        rerank_files(tmp_path / "lists.jsonl", tmp_path / "out", reranker)


def test_a_folder_in_use_is_left_alone(
    make_rows: MakeRows, reranker: Reranker, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever is in it is somebody's."""
    source = write_jsonl(make_rows(2))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(InvalidRequestError, match="holds something else"):
        rerank_files(source, tmp_path / "letters", reranker)
    with pytest.raises(InvalidRequestError, match=r"lists\.jsonl is a file"):
        rerank_files(source, source, reranker)


def test_what_is_written_names_what_it_depends_on(
    make_rows: MakeRows, reranker: Reranker, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """For whoever finds the folder later."""
    rerank_files(write_jsonl(make_rows(2)), tmp_path / "out", reranker)
    settings = json.loads((tmp_path / "out" / "_sie" / "settings.json").read_bytes())
    assert settings["reranker"]["model"] == reranker.model
    assert settings["columns"]["documents"] == "documents"
