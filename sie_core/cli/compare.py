"""`sie compare`: several models, or one here and on a server, on the same candidates."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sie_core.cli.backend import (
    Backend,
    BaseUrlOption,
    BatchSizeOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    GpuOption,
    InstructionOption,
    MaxLengthOption,
    ModeName,
    ModeOption,
    NumThreadsOption,
    ScoreSpaceOption,
    TimeoutOption,
    WaitForCapacityOption,
)
from sie_core.cli.figures import print_comparison
from sie_core.cli.measuring import (
    DEFAULT_DEPTHS,
    DEFAULT_EMBEDDING_MODEL,
    CandidatesOption,
    CorpusOption,
    Data,
    DatasetOption,
    DepthsOption,
    EmbeddingModelOption,
    FirstStageOption,
    JsonOption,
    Measuring,
    Outputs,
    QrelsOption,
    QueriesOption,
    QueryFileOption,
    ReportOption,
    ResumeOption,
    RunsOption,
    SeedOption,
    SplitOption,
    TimedQueriesOption,
    TitlesOption,
    show,
)


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
    dataset: DatasetOption = None,
    split: SplitOption = "test",
    corpus: CorpusOption = None,
    query_file: QueryFileOption = None,
    qrels: QrelsOption = None,
    queries: QueriesOption = None,
    seed: SeedOption = 0,
    titles: TitlesOption = True,
    first_stage: FirstStageOption = "bm25",
    embedding_model: EmbeddingModelOption = DEFAULT_EMBEDDING_MODEL,
    candidates: CandidatesOption = 100,
    depths: DepthsOption = DEFAULT_DEPTHS,
    timed_queries: TimedQueriesOption = 20,
    resume: ResumeOption = None,
    json: JsonOption = None,
    runs: RunsOption = None,
    report: ReportOption = None,
    score_space: ScoreSpaceOption = None,
    instruction: InstructionOption = None,
    max_length: MaxLengthOption = None,
    base_url: BaseUrlOption = None,
    gpu: GpuOption = None,
    wait_for_capacity: WaitForCapacityOption = False,
    device: DeviceOption = None,
    mode: ModeOption = ModeName.AUTO,
    dtype: DtypeOption = None,
    num_threads: NumThreadsOption = None,
    batch_size: BatchSizeOption = None,
    timeout: TimeoutOption = None,
    debug: DebugOption = False,  # noqa: ARG001 -- its callback does the work
) -> None:
    """Measure several models on the same candidates: quality against latency, and who is better.

    The models run one after the other, each loaded when the one before is released.
    Ctrl-C loses at most one query; the same command continues.

    Examples:
      sie compare cross-encoder/ms-marco-MiniLM-L6-v2 BAAI/bge-reranker-base --dataset hotpotqa
      sie compare my-model my-model@http://gpu:8080 --dataset ./scifact --report report/
    """
    outputs = Outputs(json=json, runs=runs, report=report)
    measuring = Measuring(
        data=Data(
            dataset=dataset,
            split=split,
            corpus=corpus,
            query_file=query_file,
            qrels=qrels,
            num_queries=queries,
            seed=seed,
            with_titles=titles,
        ),
        first_stage=first_stage,
        embedding_model=embedding_model,
        num_candidates=candidates,
        depths=depths,
        num_timed=timed_queries,
        resume=resume,
        outputs=outputs,
        backend=Backend(
            base_url=base_url,
            gpu=gpu,
            wait_for_capacity=wait_for_capacity,
            instruction=instruction,
            score_space=score_space,
            timeout=timeout,
            device=device,
            mode=mode,
            dtype=dtype,
            num_threads=num_threads,
            max_length=max_length,
            batch_size=batch_size,
        ),
        make_reranker=ctx.obj,
    )
    outcome = measuring.run(models)
    show(outcome, outputs, lambda: print_comparison(outcome, Console()))
