"""`sie eval`: whether reranking helps on judged queries, at what depth, and at what cost."""

from __future__ import annotations

import typer
from rich.console import Console

from sie_core.cli.backend import Backend, DebugOption, ModelOption
from sie_core.cli.economy import Economy
from sie_core.cli.figures import print_evaluation
from sie_core.cli.groups import grouped
from sie_core.cli.measuring import Data, Measuring, Outputs, Plan, show
from sie_core.settings import DEFAULT_MODEL


@grouped
def evaluate(
    ctx: typer.Context,
    *,
    data: Data,
    plan: Plan,
    outputs: Outputs,
    model: ModelOption = DEFAULT_MODEL,
    backend: Backend,
    economy: Economy,
    debug: DebugOption = False,  # noqa: ARG001 -- its callback does the work
) -> None:
    """Measure what reranking changes on judged queries: quality, for whom, and what it takes.

    Every query's candidates are scored once, at the deepest; quality with fewer is exact from
    the same scores. Latency by depth is that of real calls, for a sample of the queries.
    Ctrl-C loses at most one query; the same command continues. With --cascade, --max-latency-ms
    or --stop-when-stable not all are scored: then quality and latency are those of the whole call.

    Examples:
      sie eval --dataset hotpotqa --queries 300
      sie eval --dataset ./scifact --split test --first-stage hybrid --report report/
      sie eval --corpus docs.jsonl --query-file q.jsonl --qrels qrels.txt --first-stage run.trec
      sie eval --dataset hotpotqa --cascade cross-encoder/ms-marco-TinyBERT-L2-v2:0.3
      sie eval --dataset beir/nfcorpus/test --base-url http://gpu:8080 -m BAAI/bge-reranker-v2-m3
    """
    measuring = Measuring(
        data=data,
        plan=plan,
        outputs=outputs,
        backend=backend,
        economy=economy,
        make_reranker=ctx.obj,
    )
    outcome = measuring.run([model])
    show(outcome, outputs, lambda: print_evaluation(outcome, Console()))
