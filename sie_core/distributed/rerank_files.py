"""`rerank_files`: files of lists in, a folder of ranked lists out; what is done stays done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sie_core.distributed.block import Block
from sie_core.distributed.columns import Columns
from sie_core.distributed.job import Job, run_block
from sie_core.distributed.list_ranker import ListRanker
from sie_core.distributed.receipt import Receipt
from sie_core.reranker import Reranker

ROWS_PER_BLOCK = 512
"""Rows that a stopped run does again at most, for each worker, and rows of one written file."""


class Engine(Protocol):
    """Where blocks are ranked."""

    def run(
        self, blocks: list[Block], out: Path, reranker: Reranker, columns: Columns
    ) -> Iterator[Receipt]:
        """Rank blocks, and give the receipt of each as soon as it is written, in any order."""
        ...


class ThisProcess:
    """Ranks one block after the other, here."""

    def run(
        self, blocks: list[Block], out: Path, reranker: Reranker, columns: Columns
    ) -> Iterator[Receipt]:
        """See `Engine.run`."""
        ranker = ListRanker(reranker, columns)
        for block in blocks:
            yield run_block(block, out, ranker, columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        total: All rows, those of earlier runs included.
        num_blocks: All blocks.
        num_kept: Of which so many were done by earlier runs.
    """

    total: Receipt
    num_blocks: int
    num_kept: int


def rerank_files(
    source: str | Path,
    out: str | Path,
    reranker: Reranker | None = None,
    *,
    columns: Columns | None = None,
    rows_per_block: int = ROWS_PER_BLOCK,
    engine: Engine | None = None,
    on_start: Callable[[int, int], None] | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Outcome:
    """Rank the candidates of every row of Parquet or JSONL files, and write each row once.

    A row is a query and its candidates. It is written as it was read, with the ranking beside it
    (`Columns.ranking`, `RankedRow`), to a part of `out` for each block of rows. Where a run was
    stopped, the same call does what is missing.

    Args:
        source: A file, or a folder of them; with several machines, one that all of them see.
        out: The folder for the ranked rows, empty or new, or that of the run to continue.
        reranker: Scores, and cuts; None is one with all defaults.
        columns: What is where in a row; None means the names that `Columns` has.
        rows_per_block: Rows ranked, written and checked off together.
        engine: Where blocks are ranked; None is this process. `RayEngine` has many workers.
        on_start: Told of the rows there are in all, and how many of them are done already.
        on_rows: Told of rows that have been written.

    Returns:
        What all rows came to.

    Raises:
        InvalidRequestError: An argument is wrong, or `out` belongs to another run.
        DatasetError: A file cannot be read.
        SIEError: The model could not be had, loaded or run. What is done until then is kept.
    """
    reranker = reranker or Reranker()
    columns = columns or Columns()
    out = Path(out).resolve()
    job = Job(
        Path(source),
        out,
        columns=columns,
        settings={"reranker": reranker.score_settings},
        rows_per_block=rows_per_block,
    )
    try:
        missing = job.missing()
        if on_start is not None:
            on_start(job.num_rows, job.num_rows - sum(block.num_rows for block in missing))
        if missing:
            for receipt in (engine or ThisProcess()).run(missing, out, reranker, columns):
                if on_rows is not None:
                    on_rows(receipt.num_rows)
        return Outcome(
            total=job.finish(),
            num_blocks=len(job.blocks),
            num_kept=len(job.blocks) - len(missing),
        )
    finally:
        job.close()
