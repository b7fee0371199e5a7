from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sie_core.distributed.columns import Columns
from sie_core.distributed.jsonl import JsonlLists
from sie_core.distributed.ranked_row import RankedRow
from sie_core.errors import DatasetError, InvalidRequestError

RANKED = RankedRow(ranking=[{"index": 0, "score": 0.1}], status="complete")
ADDED = b'"ranking": [{"index": 0, "score": 0.1}], "ranking_status": "complete", '
ADDED += b'"ranking_reason": null}\n'


def rewrite(content: bytes, folder: Path, *, rows_per_block: int = 2) -> list[bytes]:
    """Read a file block by block, and write each with the same ranking for every row."""
    path = folder / "lists.jsonl"
    path.write_bytes(content)
    formats, written = JsonlLists(), []
    for number, block in enumerate(formats.blocks(path, rows_per_block, Columns())):
        rows = formats.read(block, Columns())
        part = folder / f"part-{number}"
        rows.write(part, [RANKED] * block.num_rows)
        written.append(part.read_bytes())
    return written


def test_every_byte_of_a_row_stays(tmp_path: Path) -> None:
    """Numbers, order and spelling of what was there are not those that Python would write."""
    line = rb'{ "query":"\u00e4 \ud83d","documents":["a"] , "n": 1.50e0,"big":12345678901234567 }'
    [part] = rewrite(line + b"\r\n", tmp_path)
    assert part.startswith(line[:-1].rstrip() + b", ")
    assert part.endswith(ADDED)
    json.loads(part)


@given(
    st.lists(st.sampled_from(["row", "blank", "crlf"]), min_size=1, max_size=12),
    st.integers(1, 5),
    st.booleans(),
)
def test_every_line_is_in_one_block(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], size: int, ends: bool
) -> None:
    """However lines end, and whatever blank ones stand between them."""
    number, lines = 0, []
    for kind in kinds:
        if kind == "blank":
            lines.append(b"  ")
            continue
        row = {"query": f"q\u2028{number}", "documents": []}
        end = b"\r" if kind == "crlf" else b""
        lines.append(json.dumps(row, ensure_ascii=False).encode() + end)
        number += 1
    content = b"\n".join(lines) + (b"\n" if ends else b"")
    parts = rewrite(content, tmp_path_factory.mktemp("lines"), rows_per_block=size)
    queries = [json.loads(line)["query"] for part in parts for line in part.strip().split(b"\n")]
    assert queries == [f"q\u2028{i}" for i in range(number)] if number else not parts
    assert all(part.count(b"\n") == size for part in parts[:-1])


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path) -> None:
    """Some editors put one there."""
    [part] = rewrite(b'\xef\xbb\xbf{"query":"q","documents":[]}', tmp_path)
    assert json.loads(part)["query"] == "q"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"query": "q", "docum', "the line is not valid JSON"),
        (b'["q", []]', "the line holds no JSON object"),
        (b'{"query": "q\xff"}', "the line is not valid JSON"),
        (
            b'{"query": "q", "documents": [], "ranking_status": 1}',
            "the line has a key 'ranking_status' already",
        ),
    ],
)
def test_a_line_that_is_no_row_is_kept_with_the_reason(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    """One row out for each row in, also of what cannot be ranked."""
    good = b'{"query": "q", "documents": []}'
    [part] = rewrite(b"\n".join([good, line]), tmp_path)
    kept = json.loads(part.split(b"\n")[1])
    assert kept["line"] == line.decode("utf-8", errors="backslashreplace")
    assert kept["ranking_reason"].startswith(reason)


def test_an_empty_object_is_a_row(tmp_path: Path) -> None:
    """It has nothing to be ranked, and no comma."""
    good = b'{"query": "q", "documents": []}\n'
    [part] = rewrite(good + b"{}", tmp_path)
    assert set(json.loads(part.split(b"\n")[1])) == {*Columns().added}


def test_a_wrong_column_is_found_before_anything_is_ranked(tmp_path: Path) -> None:
    """By the first line, which names what there is."""
    path = tmp_path / "lists.jsonl"
    path.write_text('{"question": "q", "documents": []}\n')
    with pytest.raises(InvalidRequestError, match=r"no column 'query'.*: question, documents"):
        JsonlLists().blocks(path, 2, Columns())
    path.write_text("question\n")
    with pytest.raises(DatasetError, match=r"line 1: is not valid JSON"):
        JsonlLists().blocks(path, 2, Columns())


def test_a_file_that_changed_meanwhile_is_an_error(tmp_path: Path) -> None:
    """Its ranges are other rows by then."""
    path = tmp_path / "lists.jsonl"
    path.write_text('{"query": "q", "documents": []}\n' * 3)
    [block] = JsonlLists().blocks(path, 5, Columns())
    with pytest.raises(DatasetError, match="has 3 lines where 4 were counted"):
        JsonlLists().read(replace(block, num_rows=4), Columns())
