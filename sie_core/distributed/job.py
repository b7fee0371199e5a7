"""`Job`: files of lists, cut into blocks, and a folder where each block is written once.

The folder has one part for each block, in the format of the files, and `_sie`, which readers of
Parquet pass over: the settings of the run, and a receipt for each block that is done. A block is
done when its receipt is there, which is written after its part; both appear whole or not at all.
A block that two workers rank, because one of them was thought dead, gives the same file twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from sie_core.distributed.block import Block, ListFormat
from sie_core.distributed.columns import Columns
from sie_core.distributed.jsonl import JsonlLists
from sie_core.distributed.list_ranker import ListRanker
from sie_core.distributed.receipt import Receipt
from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.evaluation.journal import StateFolder

_STATE = "_sie"
_RECEIPTS = "receipts"
_SAMPLE_BYTES = 65536


class Job:
    """Say what is to be done, and see that it is.

    Args:
        source: A file, or a folder of files of one format, with those in its folders.
        out: The folder for the ranked rows; made if it is not there.
        columns: What is where in a row.
        settings: What scores depend on, beside the rows; can be written as JSON.
        rows_per_block: Rows ranked, written and checked off together.

    Attributes:
        blocks: All there are, in the order of the rows.

    Raises:
        InvalidRequestError: A file has not the columns, there is none, or `out` holds something
            else, belongs to other settings or to another running process.
        DatasetError: A file cannot be read.
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        *,
        columns: Columns,
        settings: Mapping[str, Any],
        rows_per_block: int,
    ) -> None:
        if rows_per_block < 1:
            msg = f"rows_per_block must be at least 1, but got {rows_per_block}"
            raise InvalidRequestError(msg)
        source = source.resolve()
        paths = _files(source, out)
        self._format = format_of(paths[0])
        self._columns = columns
        self._out = out
        self.blocks = [
            replace(block, name=f"part-{number:05d}-{part:05d}{self._format.suffixes[0]}")
            for number, path in enumerate(paths)
            for part, block in enumerate(self._format.blocks(path, rows_per_block, columns))
        ]
        if not self.blocks:
            msg = f"{source} has no rows"
            raise DatasetError(msg)
        _check_out(out)
        described = {
            "columns": asdict(columns),
            "rows_per_block": rows_per_block,
            "files": {
                path.relative_to(source if source.is_dir() else source.parent).as_posix(): (
                    _fingerprint(path)
                )
                for path in paths
            },
            **settings,
        }
        try:
            self._state = StateFolder(out / _STATE, described)
        except InvalidRequestError as exc:  # it is the whole folder that belongs to a run
            raise InvalidRequestError(str(exc).replace(str(out / _STATE), str(out))) from None
        (out / _STATE / _RECEIPTS).mkdir(exist_ok=True)

    @property
    def num_rows(self) -> int:
        """Count the rows of all blocks."""
        return sum(block.num_rows for block in self.blocks)

    def missing(self) -> list[Block]:
        """Return the blocks that are not done, in their order."""
        return [block for block in self.blocks if not self._is_done(block)]

    def finish(self) -> Receipt:
        """Count all that is done.

        Raises:
            DatasetError: Something is not: a part is missing, or has other rows than its block.
        """
        total = Receipt()
        for block in self.blocks:
            is_done = self._is_done(block)
            receipt = Receipt.read(receipt_path(self._out, block)) if is_done else Receipt()
            if receipt.num_rows != block.num_rows:
                msg = f"{self._out / block.name} is missing; run the same again to have it made"
                raise DatasetError(msg)
            total += receipt
        return total

    def _is_done(self, block: Block) -> bool:
        return receipt_path(self._out, block).exists() and (self._out / block.name).exists()

    def close(self) -> None:
        """Let another process use the folder."""
        self._state.close()


def run_block(block: Block, out: Path, ranker: ListRanker, columns: Columns) -> Receipt:
    """Rank a block's rows, write them, and write the receipt; in whatever process.

    Raises:
        SIEError: The rows are not there any more, or the model failed.
    """
    rows = format_of(Path(block.path)).read(block, columns)
    ranked = ranker.rank(rows.queries, rows.candidates)
    part = out / block.name
    staged = out / f".{block.name}.{uuid4().hex}.unfinished"
    try:
        rows.write(staged, ranked)
        with staged.open("rb") as stream:  # a receipt must not outlive its rows in a power cut
            os.fsync(stream.fileno())
        staged.replace(part)
    finally:
        staged.unlink(missing_ok=True)
    receipt = Receipt.of(ranked, block.path, block.first_row)
    receipt.write(receipt_path(out, block))
    return receipt


def receipt_path(out: Path, block: Block) -> Path:
    """Return where the receipt of a block is, once it is done."""
    return out / _STATE / _RECEIPTS / f"{block.name}.json"


def format_of(path: Path) -> ListFormat:
    """Choose by the file's extension.

    Raises:
        InvalidRequestError: It is none of those that hold lists.
        MissingDependencyError: What reads it is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in JsonlLists.suffixes:
        return JsonlLists()
    if suffix == ".parquet":
        from sie_core.distributed.parquet import ParquetLists  # pyarrow is an extra

        return ParquetLists()
    msg = f"lists are read from .parquet, .jsonl and .ndjson files, but got {path}"
    raise InvalidRequestError(msg)


def _files(source: Path, out: Path) -> list[Path]:
    if not source.exists():
        msg = f"there is no file or folder {source}"
        raise InvalidRequestError(msg)
    if source.is_file():
        return [source]
    known = (*JsonlLists.suffixes, ".parquet")
    paths = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in known
        and path.is_file()
        and not path.is_relative_to(out)  # which may lie within the folder that is read
        and not any(part.startswith(("_", ".")) for part in path.relative_to(source).parts)
    )
    if not paths:
        msg = f"the folder {source} has no file that ends in {', '.join(known)}"
        raise InvalidRequestError(msg)
    formats = {type(format_of(path)) for path in paths}
    if len(formats) > 1:
        msg = f"the folder {source} has both Parquet and JSONL files: give one kind at a time"
        raise InvalidRequestError(msg)
    return paths


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        msg = f"{out} is a file, but rankings of lists need a folder"
        raise InvalidRequestError(msg)
    if out.is_dir() and any(out.iterdir()) and not (out / _STATE).is_dir():
        msg = f"the folder {out} holds something else: name one that is empty, or a new one"
        raise InvalidRequestError(msg)


def _fingerprint(path: Path) -> dict[str, Any]:
    """Tell a file by its size and its ends: copied elsewhere it is the same, changed it is not."""
    size = path.stat().st_size
    ends = hashlib.sha256()
    with path.open("rb") as stream:
        ends.update(stream.read(_SAMPLE_BYTES))
        stream.seek(max(0, size - _SAMPLE_BYTES))
        ends.update(stream.read(_SAMPLE_BYTES))
    return {"bytes": size, "sha256_of_ends": ends.hexdigest()}
