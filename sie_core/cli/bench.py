"""`sie bench`: how fast a model answers on this machine, or on a server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sie_core.cli.backend import Backend
from sie_core.cli.groups import grouped
from sie_core.errors import InvalidRequestError
from sie_core.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from sie_core.evaluation.speed import LatencyRow, SpeedReport, ThroughputRow


@grouped
def bench(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Model name or folder.")] = DEFAULT_MODEL,
    *,
    candidates: Annotated[
        str, typer.Option(help="Documents of a call; a row for each.", metavar="N,N,…")
    ] = "10,20,50,100",
    concurrency: Annotated[
        str, typer.Option(help="Threads that call at once; a row for each.", metavar="N,N,…")
    ] = "1,2,4,8,16,32",
    num_calls: Annotated[int, typer.Option("--calls", min=1, help="Calls for each row.")] = 20,
    cold_starts: Annotated[
        int, typer.Option(min=0, help="Fresh processes to start; 0 leaves them out.")
    ] = 3,
    backend: Backend,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Draw latency and throughput here (.png or .svg)."),
    ] = None,
) -> None:
    """Measure latency, throughput, cold start and memory of a model.

    Texts are made up afresh for every call, so that no cache answers.
    Compare figures of one run only: machines differ, and so do their neighbours.

    Examples:
      sie bench
      sie bench BAAI/bge-reranker-base --mode exact --plot speed.png
      sie bench cross-encoder/ms-marco-MiniLM-L6-v2 --base-url http://gpu:8080 --json
    """
    if plot is not None:
        from sie_core.evaluation.speed_plot import draw_speed  # tells now if a library is missing
    from sie_core.evaluation.speed import measure_speed

    console = Console(stderr=True)
    with (
        backend.open_reranker(model, ctx.obj) as reranker,
        console.status("measuring") as status,
    ):
        report = measure_speed(
            reranker,
            candidates=_numbers("--candidates", candidates),
            callers=_numbers("--concurrency", concurrency),
            num_calls=num_calls,
            cold_starts=cold_starts,
            cold_start_arguments=_local_arguments(backend),
            step=lambda what: status.update(f"measuring {model}: {what}"),
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _print(report)
    if plot is not None:
        draw_speed(report, plot)


def _local_arguments(backend: Backend) -> dict[str, Any]:
    """Return the same settings as arguments of `Reranker`, for a process of its own."""
    return {
        "max_length": backend.max_length,
        "device": backend.devices,
        "mode": backend.mode.value,
        "dtype": backend.dtype,
        "num_threads": backend.num_threads,
    }


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as exc:
        msg = f"{option} must be numbers with commas between, such as 10,100, but got {text!r}"
        raise InvalidRequestError(msg) from exc


def _print(report: SpeedReport) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{report.model}[/], {report.execution or report.served_by}")
    console.print(_table("candidates", [(row.num_candidates, row) for row in report.latency]))
    console.print(_table("callers of 20", [(row.num_callers, row) for row in report.throughput]))
    if report.cold_start is not None:
        start = report.cold_start
        memory = "" if start.resident_mib is None else f", {start.resident_mib:.0f} MiB then"
        console.print(f"cold start: {start.seconds:.2f} s to the first 20 scores{memory}")
    if report.resident_mib is not None:
        console.print(f"memory after all calls: {report.resident_mib:.0f} MiB")
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    console.print(f"[dim]{machine}[/]")


def _table(what: str, rows: list[tuple[int, LatencyRow | ThroughputRow]]) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in (what, "p50 ms", "p95 ms", "pairs/s", "calls"):
        table.add_column(name, justify="right")
    for number, row in rows:
        table.add_row(
            str(number),
            f"{row.p50_ms:.1f}",
            f"{row.p95_ms:.1f}",
            f"{row.pairs_per_second:.0f}",
            str(row.num_calls),
        )
    return table
