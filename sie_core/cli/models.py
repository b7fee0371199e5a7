"""`sie models`: the models that are known by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sie_core.models.catalog import CATALOG


def models(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list, with every field, instead.")
    ] = False,
) -> None:
    """List the models known by name, and when to choose which.

    Any other sequence classifier with one or two labels works too: by its name or its folder.
    """
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(spec) for spec in CATALOG], indent=2))
    else:
        Console().print(_table())


def _table() -> Table:
    table = Table(box=box.SIMPLE, padding=0, show_edge=False, show_lines=True)
    # Names are what people copy: they are not broken where the terminal can hold them.
    longest = max(len(spec.name) for spec in CATALOG)
    table.add_column("model", overflow="fold", min_width=longest)
    table.add_column("size", justify="right")
    table.add_column("languages")
    table.add_column("tokens", justify="right")
    table.add_column("licence")
    for spec in CATALOG:
        advice = f"{spec.when_to_choose} Scores: {spec.score_space}."
        table.add_row(
            Text.assemble((spec.name, "bold"), "\n", (advice, "dim")),
            f"{spec.num_parameters / 1e6:.0f} M",
            ", ".join(spec.languages),
            str(spec.max_length),
            spec.license,
        )
    return table
