"""`sie rerank`: order the documents of a file or of stdin by relevance to one query or many."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sie_core.cli.backend import Backend, DebugOption, ModelOption
from sie_core.cli.groups import grouped
from sie_core.cli.job import RerankJob
from sie_core.cli.lists import Lists, rank_lists, read_columns
from sie_core.cli.progress import Waiting
from sie_core.cli.records import STDIN, Format, read_documents, read_queries
from sie_core.cli.results import OutputFormat, open_results
from sie_core.errors import InvalidRequestError
from sie_core.ranking import check_score_threshold
from sie_core.settings import DEFAULT_MODEL


class ScoreSpaceName(StrEnum):
    """What a score is."""

    RAW = "raw"
    PROBABILITY = "probability"
    CALIBRATED = "calibrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What is ranked, as the options say."""

    file_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How FILE holds the documents.",
            show_default="by its extension, else lines",
            rich_help_panel="Input",
        ),
    ] = None
    text_column: Annotated[
        str | None,
        typer.Option(
            help="The column or key that holds the text.",
            show_default="text, else content, page_content or passage",
            rich_help_panel="Input",
        ),
    ] = None
    id_column: Annotated[
        str | None,
        typer.Option(
            help="The column or key that holds a document's id, to show with each result.",
            rich_help_panel="Input",
        ),
    ] = None
    query_column: Annotated[
        str,
        typer.Option(
            help="The column or key that holds the query, in --queries or beside "
            "--documents-column.",
            rich_help_panel="Input",
        ),
    ] = "query"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What is kept of the rankings, and where it goes, as the options say."""

    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            "-k",
            min=1,
            help="Keep only the best K documents of each query.",
            rich_help_panel="Output",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Keep documents that score at least this; those without text stay, unscored.",
            rich_help_panel="Output",
        ),
    ] = None
    output_format: Annotated[
        OutputFormat | None,
        typer.Option(
            "--output",
            help="How results are written.",
            show_default="table on a terminal, else jsonl",
            rich_help_panel="Output",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file, which appears when everything is done or not at all; with "
            "--documents-column, to a file of this folder for each block of rows.",
            rich_help_panel="Output",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What a score is, and who gives it where the server fails, as the options say."""

    score_space: Annotated[
        ScoreSpaceName | None,
        typer.Option(
            help="Scores as logits, as probabilities, or as what `sie calibrate` fitted.",
            show_default="what the model's config says",
            rich_help_panel="Model",
        ),
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="For calibrated scores: a file that `sie calibrate` wrote.",
            show_default="the one kept under the model's name",
            rich_help_panel="Model",
        ),
    ] = None
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHO",
            help="Who answers when that fails: local (this process), retrieval_order (nobody: the "
            "documents as read, unscored) or the address of another server. Given more than once, "
            "they are asked in turn.",
            show_default="none: an error",
            rich_help_panel="Server",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Return what was set, by the names of `Reranker`."""
        return {
            "score_space": None if self.score_space is None else self.score_space.value,
            "calibration": self.calibration,
            "fallback": [*self.fallback] if self.fallback else None,
        }


@grouped
def rerank(
    ctx: typer.Context,
    *,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The documents: plain lines, JSONL, CSV or TSV. '-' or nothing is standard input.",
            show_default=False,
        ),
    ] = STDIN,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="What the documents are ranked against.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="A file of queries instead: one per line, or JSONL, CSV or TSV by its extension.",
        ),
    ] = None,
    given: Input,
    wanted: Output,
    model: ModelOption = DEFAULT_MODEL,
    lists: Lists,
    backend: Backend,
    scoring: Scoring,
    debug: DebugOption = False,  # noqa: ARG001 -- its callback does the work
) -> None:
    """Order documents by relevance to a query, best first.

    Every document is kept unless --top-k or --threshold says otherwise.
    Documents without text come last, unscored.
    Standard error says where a fallback answered instead of the server.
    In retrieval order results are marked as degraded, and no threshold cuts.

    Examples:
      sie rerank notes.txt --query "how do I renew a passport"
      grep -h error *.log | sie rerank -q "disk is full" --top-k 5
      sie rerank docs.jsonl --queries questions.txt --top-k 10 > ranked.jsonl
      sie rerank docs.csv --base-url http://gpu:8080 --fallback local -q "refunds"
      sie rerank docs.csv -q "refunds" --text-column body --id-column key
      sie rerank lists.parquet --documents-column candidates --out ranked --engine ray
    """
    check_score_threshold(wanted.threshold)
    cut: dict[str, Any] = {"top_k": wanted.top_k, "score_threshold": wanted.threshold}
    open_reranker = partial(backend.open_reranker, model, ctx.obj, **scoring.settings())
    if lists.documents_column is not None:
        out = _check_lists(file, query, queries, given, wanted)
        columns = read_columns(
            lists, query=given.query_column, text=given.text_column, id_=given.id_column
        )
        with open_reranker(**cut) as reranker:
            rank_lists(file, out, reranker, columns, lists)
        return
    lists.check_unused()
    _check_places(file, queries, wanted.out)
    all_queries = _read_queries(query, queries, given.query_column)
    documents = read_documents(
        file,
        file_format=given.file_format,
        text_column=given.text_column,
        id_column=given.id_column,
    )
    job = RerankJob(reranker := open_reranker(), documents, **cut)
    waiting = Waiting(num_queries=len(all_queries), num_documents=len(documents))
    with reranker:
        job.load(waiting)
        with open_results(
            wanted.out, wanted.output_format, has_ids=given.id_column is not None
        ) as results:
            job.run(all_queries, results, waiting)
    job.notes.say()


def _read_queries(query: str | None, queries: Path | None, query_column: str) -> list[str]:
    if query is not None and queries is None:
        if not query.strip():
            msg = f"--query must contain text, but got {query!r}"
            raise InvalidRequestError(msg)
        return [query]
    if queries is not None and query is None:
        return read_queries(queries, query_column=query_column)
    msg = "give either --query TEXT or --queries FILE"
    raise InvalidRequestError(msg)


def _check_lists(
    file: Path,
    query: str | None,
    queries: Path | None,
    given: Input,
    wanted: Output,
) -> Path:
    """See that nothing is given that rows with queries of their own have no use for."""
    if query is not None or queries is not None:
        msg = "with --documents-column every row has a query: leave out --query and --queries"
        raise InvalidRequestError(msg)
    if file == STDIN:
        msg = "with --documents-column FILE must be a file or a folder, not standard input"
        raise InvalidRequestError(msg)
    if given.file_format is not None or wanted.output_format is not None:
        msg = (
            "with --documents-column rows are read and written as the files' extension says: "
            "leave out --format and --output"
        )
        raise InvalidRequestError(msg)
    if wanted.out is None:
        msg = "with --documents-column the ranked rows need a folder: add --out FOLDER"
        raise InvalidRequestError(msg)
    return wanted.out


def _check_places(file: Path, queries: Path | None, out: Path | None) -> None:
    """Find out before the model is loaded what would fail after it."""
    if out is not None and out.is_dir():
        msg = f"--out {out} is a folder; name a file"
        raise InvalidRequestError(msg)
    if out is not None and not out.parent.is_dir():
        msg = f"--out {out} cannot be written, because there is no folder {out.parent}"
        raise InvalidRequestError(msg)
    if file != STDIN:
        return
    if queries == STDIN:
        msg = "documents and queries cannot both come from standard input; name a FILE"
        raise InvalidRequestError(msg)
    if sys.stdin.isatty():
        sys.stderr.write("reading documents from the terminal; end with Ctrl-D\n")
