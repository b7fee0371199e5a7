"""The tables of `sie eval` and `sie compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sie_core.cli.terminal import printable

_ALIASES = {"RR@10": "MRR@10", "AP": "MAP"}
_STYLES = {"better": "green", "worse": "red"}


def measure_name(name: str) -> str:
    """Return a measure's name for its mean over queries: MRR@10 for RR@10."""
    return _ALIASES.get(name, name)


def print_evaluation(outcome: Mapping[str, Any], console: Console) -> None:
    """Print one model's figures."""
    (model,) = outcome["models"]
    _print_heading(outcome, console)
    console.print(Text(f"reranked by {printable(model['label'])}"))
    table = _table("", "before", "after", "difference", "95 % interval", "p", "")
    for metric in model["metrics"]:
        table.add_row(
            measure_name(metric["name"]),
            f"{metric['before']:.4f}",
            f"{metric['after']:.4f}",
            *_difference_cells(metric),
        )
    console.print(table)
    _print_changes(model, console)
    _print_latency(model["latency"], console)
    _print_depths(outcome, [model], console)
    for outcome_of_query in ("lost", "won"):
        _print_queries(outcome_of_query, model[f"{outcome_of_query}_most"], console)


def print_comparison(outcome: Mapping[str, Any], console: Console) -> None:
    """Print several models' figures, and their differences from each other."""
    _print_heading(outcome, console)
    names = [metric["name"] for metric in outcome["models"][0]["metrics"]]
    table = _table("", *map(measure_name, names), "lost/won", "p50 ms", "p95 ms", "pairs/s")
    before = [f"{outcome['first_stage']['metrics'][name]:.4f}" for name in names]
    table.add_row("first stage", *before, "", "", "", "")
    for model in outcome["models"]:
        latency = model["latency"]
        table.add_row(
            Text(printable(model["label"])),
            *(f"{metric['after']:.4f}" for metric in model["metrics"]),
            f"{model['num_lost']}/{model['num_won']}",
            _number(latency["p50_ms"]),
            _number(latency["p95_ms"]),
            _number(latency["pairs_per_second"]),
        )
    console.print(table)
    pairs = _table("second minus first", "", "difference", "95 % interval", "p", "")
    for pair in outcome["pairs"]:
        pairs.add_row(
            Text(f"{printable(pair['second'])} - {printable(pair['first'])}"),
            measure_name(pair["name"]),
            *_difference_cells(pair),
        )
    console.print(pairs)
    _print_depths(outcome, outcome["models"], console)


def _print_heading(outcome: Mapping[str, Any], console: Console) -> None:
    data, first = outcome["data"], outcome["first_stage"]
    recall = first["recall"][str(first["num_candidates"])]
    console.print(
        Text(
            f"{printable(data['name'])}: {data['num_queries']:,} queries, "
            f"{data['num_documents']:,} documents; first stage {printable(first['name'])}, "
            f"{first['num_candidates']} candidates, Recall@{first['num_candidates']} {recall:.4f} "
            "(no reranker can exceed it)"
        )
    )


def _print_changes(model: Mapping[str, Any], console: Console) -> None:
    console.print(
        f"queries by nDCG@10: {model['num_lost']} lost, {model['num_unchanged']} unchanged, "
        f"{model['num_won']} won"
    )


def _print_latency(latency: Mapping[str, Any], console: Console) -> None:
    console.print(
        f"latency per query: p50 {_number(latency['p50_ms'])} ms, "
        f"p95 {_number(latency['p95_ms'])} ms; {_number(latency['pairs_per_second'])} pairs per "
        f"second; {latency['num_truncated']:,} of {latency['num_pairs']:,} documents truncated"
    )
    if latency["num_scored"] < latency["num_pairs"]:
        console.print(
            f"scored by the model: {latency['num_scored']:,} of {latency['num_pairs']:,} documents"
        )


def _print_depths(
    outcome: Mapping[str, Any], models: Sequence[Mapping[str, Any]], console: Console
) -> None:
    is_one = len(models) == 1
    names = [] if is_one else [""]
    table = _table(*names, "candidates", "recall", "nDCG@10", "p50 ms", "p95 ms", "calls timed")
    for model in models:
        for point in model["depths"]:
            table.add_row(
                *([] if is_one else [Text(printable(model["label"]))]),
                str(point["depth"]),
                f"{outcome['first_stage']['recall'][str(point['depth'])]:.4f}",
                f"{point['metrics']['nDCG@10']:.4f}",
                _number(point["p50_ms"]),
                _number(point["p95_ms"]),
                str(point["num_calls"]),
            )
    console.print(table)


def _print_queries(done: str, queries: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not queries:
        console.print(f"no query {done}")
        return
    table = Table(title=f"queries that {done} most", title_justify="left", box=box.SIMPLE)
    for column in ("nDCG@10", "query", "first before", "first after"):
        table.add_column(column, overflow="fold")
    for query in queries:
        table.add_row(
            f"{query['before']:.2f} → {query['after']:.2f}",
            Text(printable(query["query"])),
            *(_document_cell(query[key]) for key in ("first_before", "first_after")),
        )
    console.print(table)


def _document_cell(document: Mapping[str, Any]) -> Text:
    mark = "[relevant] " if document["is_relevant"] else "[not relevant] "
    return Text.assemble((mark, "dim"), printable(document["text"], max_chars=100))


def _difference_cells(found: Mapping[str, Any]) -> list[str | Text]:
    style = _STYLES.get(found["verdict"], "")
    return [
        Text(f"{found['difference']:+.4f}", style=style),
        f"{found['low']:+.4f} … {found['high']:+.4f}",
        f"{found['p_value']:.4f}",
        Text(found["verdict"], style=style),
    ]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if number == 0 else "right",
            overflow="fold",
            no_wrap=number > 0,
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 -- three digits
