"""`sie calibrate`: fit probabilities that can be believed on judged pairs, and keep them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sie_core.calibration import Method, calibration_path
from sie_core.cli.backend import Backend, ModelOption
from sie_core.cli.groups import grouped
from sie_core.cli.records import Format, JudgedPair, read_pairs
from sie_core.errors import InvalidRequestError
from sie_core.reranker import Reranker
from sie_core.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from sie_core.evaluation.calibrate import Bin, CalibrationReport, JudgedScore, Threshold
    from sie_core.types import ScoreSpace


class MethodName(StrEnum):
    """How the map from scores to probabilities is shaped."""

    AUTO = "auto"
    PLATT = "platt"
    ISOTONIC = "isotonic"


_METHODS: dict[MethodName, Method | None] = {
    MethodName.AUTO: None,
    MethodName.PLATT: "platt",
    MethodName.ISOTONIC: "isotonic",
}


@grouped
def calibrate(
    ctx: typer.Context,
    *,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Judged pairs: JSONL, CSV or TSV with a query, a text and a label (0 or 1).",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A built-in data set instead of FILE: hotpotqa.", show_default="none"),
    ] = None,
    num_queries: Annotated[
        int, typer.Option("--queries", min=10, help="Questions drawn from --dataset.")
    ] = 500,
    file_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How FILE holds the pairs.",
            show_default="by its extension",
            rich_help_panel="Input",
        ),
    ] = None,
    query_column: Annotated[
        str, typer.Option(help="Where FILE holds the query.", rich_help_panel="Input")
    ] = "query",
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Where it holds the document.",
            show_default="text, else content, page_content or passage",
            rich_help_panel="Input",
        ),
    ] = None,
    label_column: Annotated[
        str, typer.Option(help="Where it holds the judgement.", rich_help_panel="Input")
    ] = "label",
    method: Annotated[
        MethodName,
        typer.Option(
            help="platt: a logistic curve. isotonic: rising steps, for many pairs. auto: the "
            "better of the two by cross-validation."
        ),
    ] = MethodName.AUTO,
    precision: Annotated[
        float | None,
        typer.Option(help="Recommend a threshold for this precision, such as 0.8."),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Part of the queries that is measured on, not fitted on.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(help="For the draw and the split.")] = 0,
    model: ModelOption = DEFAULT_MODEL,
    backend: Backend,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Write the calibration here.",
            show_default="the cache, under the model's name",
            rich_help_panel="Output",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Draw what was promised and what came true here (.png or .svg).",
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the report as JSON.", rich_help_panel="Output"),
    ] = False,
) -> None:
    """Fit probabilities that can be believed on judged pairs, and keep them for the model.

    Afterwards score_space="calibrated" gives them in every component.
    Queries are split: what is reported was measured on queries that the fit never saw.

    Examples:
      sie calibrate judged.jsonl --precision 0.8
      sie calibrate --dataset hotpotqa --queries 500 --plot reliability.png
      sie calibrate judged.csv --model BAAI/bge-reranker-base --method platt --out base.json
    """
    from sie_core.evaluation.calibrate import calibrate as fit

    if plot is not None:
        from sie_core.evaluation.reliability_plot import (
            draw_reliability,  # tells now what is missing
        )
    if (file is None) == (dataset is None):
        msg = "give either a FILE of judged pairs or --dataset hotpotqa"
        raise InvalidRequestError(msg)
    if file is not None:
        pairs = read_pairs(
            file,
            file_format=file_format,
            query_column=query_column,
            text_column=text_column,
            label_column=label_column,
        )
    else:
        pairs = _draw(str(dataset), num_queries, seed)
    with backend.open_reranker(model, ctx.obj) as reranker:
        judged, score_space = _score(reranker, pairs)
    report = fit(
        judged,
        model=model,
        score_space=score_space,
        method=_METHODS[method],
        precision=precision,
        held_out=held_out,
        seed=seed,
        source=str(file or f"{dataset}, {num_queries} questions, seed {seed}"),
    )
    path = report.calibration.save(out or calibration_path(model))
    if plot is not None:
        draw_reliability(report, plot)
    if as_json:
        content = dataclasses.asdict(report) | {"path": str(path)}
        typer.echo(json.dumps(content, indent=2))
    else:
        _print(report, path)


def _draw(dataset: str, num_queries: int, seed: int) -> list[JudgedPair]:
    if dataset != "hotpotqa":
        msg = f"there is no data set {dataset!r}; built in is hotpotqa"
        raise InvalidRequestError(msg)
    from sie_core.evaluation.datasets import load_hotpotqa

    return [
        JudgedPair(
            query=question.text,
            text=f"{paragraph.title}. {paragraph.text}",
            is_relevant=index in question.relevant,
        )
        for question in load_hotpotqa(num_queries, seed=seed)
        for index, paragraph in enumerate(question.paragraphs)
    ]


def _score(
    reranker: Reranker, pairs: Iterable[JudgedPair]
) -> tuple[list[JudgedScore], ScoreSpace | None]:
    """Score every pair, query by query; also say which scores these are."""
    from sie_core.evaluation.calibrate import JudgedScore

    by_query: dict[str, list[JudgedPair]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query, []).append(pair)
    console = Console(stderr=True)
    # A server that does not say which scores it gives is taken as it is.
    wanted: ScoreSpace | None = "raw" if reranker.is_local else None
    judged: list[JudgedScore] = []
    space: ScoreSpace | None = None
    queries = track(
        by_query.items(),
        "scoring",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for query, members in queries:
        ranking = reranker.rerank(query, [pair.text for pair in members], score_space=wanted)
        space = None if ranking.score_space == "calibrated" else ranking.score_space
        judged += [
            JudgedScore(
                query_id=query, score=entry.score, is_relevant=members[entry.index].is_relevant
            )
            for entry in ranking
            if entry.score is not None
        ]
    return judged, space


def _print(report: CalibrationReport, path: Path) -> None:
    console = Console()
    console.print(_bins_table(report))
    before, after = report.before, report.after
    console.print(
        f"expected calibration error {before.ece:.3f} → [bold]{after.ece:.3f}[/], "
        f"Brier score {before.brier:.3f} → {after.brier:.3f} ({report.calibration.method}; fitted "
        f"on {report.num_fitted} pairs, measured on {report.num_held_out} of other queries)"
    )
    if after.ece >= before.ece:
        console.print("[yellow]The calibrated probabilities are no better than the model's own.[/]")
    if report.threshold is not None:
        console.print(_advice(report.threshold))
    console.print(f"Kept in {path}; score_space='calibrated' uses it.", highlight=False)


def _bins_table(report: CalibrationReport) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("promised", "came true", "pairs", "", "calibrated", "came true", "pairs"):
        table.add_column(name, justify="right")
    for before, after in itertools.zip_longest(report.before.bins, report.after.bins):
        table.add_row(*_cells(before), "", *_cells(after))
    return table


def _cells(one: Bin | None) -> tuple[str, str, str]:
    if one is None:
        return ("", "", "")
    return (f"{one.mean_probability:.2f}", f"{one.fraction_relevant:.2f}", str(one.num_pairs))


def _advice(threshold: Threshold) -> str:
    if threshold.probability is None or threshold.precision is None:
        return f"[yellow]No threshold: {threshold.reason}.[/]"
    return (
        f"For a precision of {threshold.wanted_precision:.2f}: "
        f"[bold]score_threshold={threshold.probability:.3f}[/] calibrated, the same as "
        f"{threshold.score:.2f} of the model. On held-out queries precision "
        f"{threshold.precision:.2f} (95%: at least {threshold.precision_low:.2f}), recall "
        f"{threshold.recall:.2f}."
    )
