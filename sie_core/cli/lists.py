"""`sie rerank --documents-column`: rows that are a query with its own candidates, by millions."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sie_core.cli.engine import EngineName, ray_address_option
from sie_core.cli.progress import Steps
from sie_core.cli.terminal import printable
from sie_core.errors import InvalidRequestError, MissingDependencyError

if TYPE_CHECKING:
    from sie_core.distributed.columns import Columns
    from sie_core.distributed.rerank_files import Engine, Outcome
    from sie_core.reranker import Reranker

_PANEL = "Lists"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """How files of lists are ranked, as the options say."""

    documents_column: Annotated[
        str | None,
        typer.Option(
            help="FILE, Parquet or JSONL or a folder of either, has a query and a list of its own "
            "documents in each row; they are in this column. --out names a folder then, and what "
            "is done there is not done again.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    ranking_column: Annotated[
        str,
        typer.Option(help="The column that the ranking is put into.", rich_help_panel=_PANEL),
    ] = "ranking"
    rows_per_block: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows written to one file, and done again if the run is stopped in them.",
            show_default="512",
            rich_help_panel=_PANEL,
        ),
    ] = None
    engine: Annotated[
        EngineName,
        typer.Option(
            help="local: this process. ray: the workers of a Ray cluster, or of this machine.",
            rich_help_panel=_PANEL,
        ),
    ] = EngineName.LOCAL
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With ray: processes at most, each with a model.",
            show_default="as many as there is room for",
            rich_help_panel=_PANEL,
        ),
    ] = None
    cores_per_worker: Annotated[
        float | None,
        typer.Option(
            help="With ray: CPU cores of each.",
            show_default="half of a node's for each GPU, else 4 or what a node has",
            rich_help_panel=_PANEL,
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            help="With ray: GPUs of each; 0.5 lets two share one.",
            show_default="1 if there are any",
            rich_help_panel=_PANEL,
        ),
    ] = None
    ray_address: Annotated[str | None, ray_address_option(_PANEL)] = None

    def check_unused(self) -> None:
        """See that nothing is set that only lists have.

        Raises:
            InvalidRequestError: Something is.
        """
        given = [
            f"--{name.replace('_', '-')}"
            for name in ("rows_per_block", *_OF_RAY)
            if getattr(self, name) is not None
        ]
        if self.engine is EngineName.RAY:
            given.insert(0, "--engine ray")
        if given:
            msg = (
                f"{', '.join(given)} is for rows that have a query and its documents: name the "
                "documents' column by --documents-column"
            )
            raise InvalidRequestError(msg)

    def open_engine(self) -> Engine | None:
        """Make what the options name; None is this process.

        Raises:
            InvalidRequestError: Something is set that only Ray has.
            MissingDependencyError: Ray is not installed.
        """
        if self.engine is EngineName.LOCAL:
            given = [name for name in _OF_RAY if getattr(self, name) is not None]
            if given:
                msg = f"--{given[0].replace('_', '-')} needs --engine ray"
                raise InvalidRequestError(msg)
            return None
        from sie_core.distributed.ray_engine import RayEngine
        from sie_core.distributed.workers import Workers

        workers = Workers(num=self.workers, cores=self.cores_per_worker, gpus=self.gpus_per_worker)
        return RayEngine(workers, address=self.ray_address)


_OF_RAY = ("workers", "cores_per_worker", "gpus_per_worker", "ray_address")


def rank_lists(source: Path, out: Path, reranker: Reranker, columns: Columns, lists: Lists) -> None:
    """Rank every row of the files, and say what it came to.

    Raises:
        InvalidRequestError: An option is wrong, or the folder belongs to another run.
        SIEError: A file cannot be read, or the model failed.
    """
    from sie_core.distributed.rerank_files import ROWS_PER_BLOCK, rerank_files

    engine = lists.open_engine()
    steps = Steps()
    with steps.counting("reranking") as (start, advance):
        outcome = rerank_files(
            source,
            out,
            reranker,
            columns=columns,
            rows_per_block=lists.rows_per_block or ROWS_PER_BLOCK,
            engine=engine,
            on_start=start,
            on_rows=advance,
        )
    _say(outcome, out, columns)


def read_columns(lists: Lists, *, query: str, text: str | None, id_: str | None) -> Columns:
    """Return what is where in a row, as the options say.

    Raises:
        MissingDependencyError: What reads lists is not installed.
    """
    try:
        from sie_core.distributed.columns import Columns
    except ImportError as exc:
        msg = f'lists need the extra distributed ({exc}): pip install "sie-core[distributed]"'
        raise MissingDependencyError(msg) from exc
    return Columns(
        query=query,
        documents=lists.documents_column or "",
        text=text,
        id=id_,
        ranking=lists.ranking_column,
    )


def _say(outcome: Outcome, out: Path, columns: Columns) -> None:
    total = outcome.total
    kept = f", {outcome.num_kept} of them done before" if outcome.num_kept else ""
    sys.stderr.write(
        f"{total.num_rows:,} rows are ranked in {out} ({outcome.num_blocks} files{kept})\n"
    )
    for number, what in (
        (total.num_failed, "could not be ranked"),
        (total.num_partial, "are ranked in part"),
        (total.num_degraded, "are ranked by another than the model asked for"),
    ):
        if number:
            sys.stderr.write(f"note: {number:,} rows {what}: see {columns.reason!r}\n")
    if total.first_reason is not None:
        sys.stderr.write(f"note: {printable(total.first_reason, max_chars=1000)}\n")
    if total.num_truncated:
        sys.stderr.write(
            f"note: {total.num_truncated:,} pairs of query and document were longer than the "
            "model's maximum, and the end of the document was not read\n"
        )
