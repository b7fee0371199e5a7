"""`sie eval`: whether reranking helps on judged queries, at what depth, and at what cost."""

from __future__ import annotations

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
    ModelOption,
    ModeName,
    ModeOption,
    NumThreadsOption,
    ScoreSpaceOption,
    TimeoutOption,
    WaitForCapacityOption,
)
from sie_core.cli.figures import print_evaluation
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
from sie_core.settings import DEFAULT_MODEL


def evaluate(
    ctx: typer.Context,
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
    model: ModelOption = DEFAULT_MODEL,
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
    """Measure what reranking changes on judged queries: quality, for whom, and what it takes.

    Every query's candidates are scored once, at the deepest; quality with fewer is exact from
    the same scores. Latency by depth is that of real calls, for a sample of the queries.
    Ctrl-C loses at most one query; the same command continues.

    Examples:
      sie eval --dataset hotpotqa --queries 300
      sie eval --dataset ./scifact --split test --first-stage hybrid --report report/
      sie eval --corpus docs.jsonl --query-file q.jsonl --qrels qrels.txt --first-stage run.trec
      sie eval --dataset beir/nfcorpus/test --base-url http://gpu:8080 -m BAAI/bge-reranker-v2-m3
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
    outcome = measuring.run([model])
    show(outcome, outputs, lambda: print_evaluation(outcome, Console()))
