"""`sie compare`: several models, or one here and on a server, on the same candidates."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sie_core.cli.backend import Backend, DebugOption
from sie_core.cli.figures import print_comparison
from sie_core.cli.groups import grouped
from sie_core.cli.measuring import Data, Measuring, Outputs, Plan, show


@grouped
def compare(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Names or folders; NAME@http://host:port is that model on a server.",
            show_default=False,
        ),
    ],
    *,
    data: Data,
    plan: Plan,
    outputs: Outputs,
    backend: Backend,
    debug: DebugOption = False,  # noqa: ARG001 -- its callback does the work
) -> None:
    """Measure several models on the same candidates: quality against latency, and who is better.

    The models run one after the other, each loaded when the one before is released.
    Ctrl-C loses at most one query; the same command continues.

    Examples:
      sie compare cross-encoder/ms-marco-MiniLM-L6-v2 BAAI/bge-reranker-base --dataset hotpotqa
      sie compare my-model my-model@http://gpu:8080 --dataset ./scifact --report report/
    """
    measuring = Measuring(
        data=data, plan=plan, outputs=outputs, backend=backend, make_reranker=ctx.obj
    )
    outcome = measuring.run(models)
    show(outcome, outputs, lambda: print_comparison(outcome, Console()))
