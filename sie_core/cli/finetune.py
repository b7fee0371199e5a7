"""`sie finetune`: train a reranker on a domain's data, and see whether it paid."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sie_core.cli.backend import DebugOption, ModelOption, split_address
from sie_core.cli.engine import Engine, import_engine
from sie_core.cli.figures import print_comparison
from sie_core.cli.groups import grouped
from sie_core.cli.measuring import (
    HOTPOTQA,
    CorpusOption,
    QueryFileOption,
    TitlesOption,
)
from sie_core.cli.progress import Steps
from sie_core.errors import InvalidRequestError
from sie_core.reranker import Reranker
from sie_core.settings import DEFAULT_EMBEDDING_MODEL, DEFAULT_MODEL

if TYPE_CHECKING:
    from sie_core.evaluation.collection import Collection
    from sie_core.evaluation.dense import ClientEmbedder
    from sie_core.training.finetuning import Outcome
    from sie_core.training.preparation import Prepared, Retrieving, Sizes
    from sie_core.training.settings import TrainingSettings
    from sie_core.training.teacher import Teacher


class LossName(StrEnum):
    """What is made small."""

    LISTWISE = "listwise"
    BINARY = "binary"
    MARGIN_MSE = "margin-mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is learnt from, as the options say."""

    dataset: Annotated[
        str | None,
        typer.Option(
            help="Instead of FILE: hotpotqa, or a folder in BEIR's layout.", rich_help_panel="Data"
        ),
    ] = None
    corpus: CorpusOption = None
    query_file: QueryFileOption = None
    qrels: Annotated[
        Path | None,
        typer.Option(
            help="Their judgements, as TREC or BEIR has them; without any the teacher judges.",
            rich_help_panel="Data",
        ),
    ] = None
    dev_file: Annotated[
        Path | None,
        typer.Option(
            help="As FILE: decides when to stop.",
            show_default="drawn from FILE",
            rich_help_panel="Data",
        ),
    ] = None
    test_file: Annotated[
        Path | None,
        typer.Option(
            help="As FILE: what before and after are measured on.",
            show_default="drawn from FILE",
            rich_help_panel="Data",
        ),
    ] = None
    num_queries: Annotated[
        int | None,
        typer.Option(
            "--queries",
            min=1,
            help="Learn from so many queries at most.",
            show_default="all that are left",
            rich_help_panel="Data",
        ),
    ] = None
    num_dev: Annotated[
        int, typer.Option("--dev", min=1, help="Queries of the dev split.", rich_help_panel="Data")
    ] = 100
    num_test: Annotated[
        int,
        typer.Option("--test", min=1, help="Queries of the test split.", rich_help_panel="Data"),
    ] = 200
    with_titles: TitlesOption = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Negatives:
    """Where candidates and negatives come from."""

    first_stage: Annotated[
        str,
        typer.Option(
            help="Finds negatives in a corpus, and candidates for the test: bm25, dense, hybrid, "
            "or the file of a TREC run.",
            rich_help_panel="Negatives",
        ),
    ] = "bm25"
    embedding_model: Annotated[
        str,
        typer.Option(help="Embeds for dense and hybrid.", rich_help_panel="Negatives"),
    ] = DEFAULT_EMBEDDING_MODEL
    num_candidates: Annotated[
        int,
        typer.Option(
            "--candidates",
            min=2,
            help="Candidates of each query that negatives are chosen from, and that the test "
            "reranks.",
            rich_help_panel="Negatives",
        ),
    ] = 50
    num_negatives: Annotated[
        int,
        typer.Option(
            "--negatives", min=1, help="Mined for each query.", rich_help_panel="Negatives"
        ),
    ] = 9
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A reranker whose scores say which candidates are answers rather than negatives, "
            "and what margin-mse learns; NAME@http://host:port is on a server.",
            show_default="none",
            rich_help_panel="Negatives",
        ),
    ] = None
    max_ratio: Annotated[
        float,
        typer.Option(
            help="A negative's probability, by the teacher, is at most this part of the answer's.",
            rich_help_panel="Negatives",
        ),
    ] = 0.8
    min_probability: Annotated[
        float,
        typer.Option(
            help="Without judgements: how sure the teacher must be of an answer.",
            rich_help_panel="Negatives",
        ),
    ] = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How it is trained."""

    loss: Annotated[
        LossName,
        typer.Option(
            help="listwise: the answers above a query's other documents. binary: each pair by "
            "itself. margin-mse: a teacher's differences.",
            rich_help_panel="Training",
        ),
    ] = LossName.LISTWISE
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Train all weights, not a LoRA adapter.", rich_help_panel="Training"
        ),
    ] = False
    rank: Annotated[
        int, typer.Option(min=1, help="Of the adapter.", rich_help_panel="Training")
    ] = 16
    alpha: Annotated[
        int,
        typer.Option(
            min=1, help="The adapter's strength is alpha / rank.", rich_help_panel="Training"
        ),
    ] = 32
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="At its highest.",
            show_default="5e-4, with --full 3e-5",
            rich_help_panel="Training",
        ),
    ] = None
    num_epochs: Annotated[
        int,
        typer.Option(
            "--epochs", min=1, help="How often all queries are seen.", rich_help_panel="Training"
        ),
    ] = 1
    queries_per_step: Annotated[
        int, typer.Option(min=1, help="Queries of a step.", rich_help_panel="Training")
    ] = 8
    documents_per_query: Annotated[
        int,
        typer.Option(min=2, help="Documents of a query, at most.", rich_help_panel="Training"),
    ] = 10
    max_length: Annotated[
        int,
        typer.Option(
            min=8, help="Tokens of query and document in training.", rich_help_panel="Training"
        ),
    ] = 256
    evaluations: Annotated[
        int,
        typer.Option(
            min=1,
            help="How often nDCG@10 of the dev split is measured, and a checkpoint written.",
            rich_help_panel="Training",
        ),
    ] = 5
    patience: Annotated[
        int,
        typer.Option(
            min=1, help="Stop after so many without a better one.", rich_help_panel="Training"
        ),
    ] = 3
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            "--bf16/--no-bf16",
            help="Multiply in bfloat16.",
            show_default="where it is fast",
            rich_help_panel="Training",
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(help="Decides splits, order and initial weights.", rich_help_panel="Training"),
    ] = 0

    def settings(self, engine: Engine) -> TrainingSettings:
        """Return them as the training has them, which runs on the engine's first device."""
        from sie_core.training.settings import TrainingSettings

        return TrainingSettings(
            loss=self.loss.value,
            full=self.full,
            rank=self.rank,
            alpha=self.alpha,
            learning_rate=self.learning_rate,
            num_epochs=self.num_epochs,
            queries_per_step=self.queries_per_step,
            documents_per_query=self.documents_per_query,
            max_length=self.max_length,
            evaluations=self.evaluations,
            patience=self.patience,
            bfloat16=self.bfloat16,
            device=engine.devices[0] if isinstance(engine.devices, list) else engine.device,
            num_threads=engine.num_threads,
            seed=self.seed,
        )


@grouped
def finetune(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Labelled pairs, triplets or lists: JSONL.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", file_okay=False, help="The folder that becomes the adapter or model."
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    data: Data,
    negatives: Negatives,
    training: Training,
    engine: Engine,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Also write a full model with the adapter merged in, into OUT/merged.",
            rich_help_panel="Output",
        ),
    ] = False,
    keep_run: Annotated[
        bool,
        typer.Option(
            "--keep-run",
            help="Keep checkpoints, scores and TensorBoard's files, in OUT/run.",
            rich_help_panel="Output",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON.", rich_help_panel="Output")
    ] = False,
    debug: DebugOption = False,  # noqa: ARG001 -- its callback does the work
) -> None:
    """Fine-tune a reranker on your own data, and measure before and after on other queries.

    A LoRA adapter is trained, which is used as lora=OUT, on a model that is serving too.
    Ctrl-C loses the steps since the last checkpoint; the same command continues.

    Examples:
      sie finetune judged.jsonl --out adapters/legal
      sie finetune --dataset ./scifact --first-stage hybrid --out adapters/scifact
      sie finetune --corpus docs.jsonl --query-file q.jsonl --teacher BAAI/bge-reranker-v2-m3 -o a
      sie finetune --dataset hotpotqa --queries 1000 --test 300 --out adapters/hotpotqa
    """
    source = _Source(file=file, data=data, negatives=negatives, training=training)
    source.check()
    settings = training.settings(engine)
    import_engine()
    # What is not installed is said before any data is read.
    import sie_core.training.trainer  # noqa: F401
    from sie_core.training.finetuning import Finetuning, check_out

    check_out(out)
    steps = Steps()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sie-finetune-")))
        client = stack.enter_context(engine.open_local())
        teacher = stack.enter_context(_open_teacher(negatives.teacher, client))
        embedder = _open_embedder(negatives, client)
        prepared, retrieving = source.prepare(folder, embedder, teacher, steps)
        for note in prepared.notes:
            steps.note(note)
        outcome = Finetuning(
            data=prepared,
            out=out,
            model=model,
            settings=settings,
            retrieving=retrieving,
            teacher=teacher,
            merge=merge,
            with_titles=data.with_titles,
            open_reranker=partial(Reranker, client=client),
            keep=keep_run,
            watch=steps.watch,
            tell=steps.note,
        ).run()
    _show(outcome, model=model, full=training.full, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where the data comes from: one of the four ways to name it."""

    file: Path | None
    data: Data
    negatives: Negatives
    training: Training

    def check(self) -> None:
        """Find out before anything is loaded whether the options name one source."""
        from sie_core.evaluation.first_stage import check_first_stage

        check_first_stage(self.negatives.first_stage)
        data = self.data
        named = [self.file is not None, data.dataset is not None, data.corpus is not None]
        if sum(named) != 1:
            msg = (
                "give one of: a FILE of labelled records, --dataset (hotpotqa or a BEIR folder), "
                "or --corpus and --query-file"
            )
            raise InvalidRequestError(msg)
        if (data.corpus is None) != (data.query_file is None):
            msg = "--corpus and --query-file belong together: give both"
            raise InvalidRequestError(msg)
        if data.qrels is not None and data.corpus is None:
            msg = "--qrels are of --corpus and --query-file: give these too"
            raise InvalidRequestError(msg)
        if self.file is None and (data.dev_file or data.test_file):
            msg = "--dev-file and --test-file go with a FILE of labelled records"
            raise InvalidRequestError(msg)
        if data.dataset not in (None, HOTPOTQA) and not Path(data.dataset).is_dir():
            msg = f"--dataset must be hotpotqa or a folder in BEIR's layout, but got {data.dataset}"
            raise InvalidRequestError(msg)
        if data.corpus is not None and data.qrels is None and self.negatives.teacher is None:
            msg = (
                "without --qrels nobody says which documents answer the queries; name a model that "
                "does, with --teacher"
            )
            raise InvalidRequestError(msg)

    def prepare(
        self,
        folder: Path,
        embedder: ClientEmbedder,
        teacher: Teacher | None,
        steps: Steps,
    ) -> tuple[Prepared, Retrieving]:
        """Read the data, mine negatives, and split it."""
        from sie_core.training import preparation
        from sie_core.training.mining import Mining

        data, negatives = self.data, self.negatives
        retrieving = preparation.Retrieving(
            folder=folder,
            first_stage=negatives.first_stage,
            depth=negatives.num_candidates,
            embedder=embedder,
            watch=steps.watch,
        )
        if self.file is not None:
            files = {"dev": data.dev_file, "test": data.test_file}
            return preparation.prepare_file(self.file, **files, sizes=self._sizes()), retrieving
        if data.dataset == HOTPOTQA:
            return (
                preparation.prepare_hotpotqa(
                    sizes=self._sizes(), first_stage=negatives.first_stage
                ),
                retrieving,
            )
        mining = Mining(
            num_negatives=negatives.num_negatives,
            max_ratio=negatives.max_ratio,
            min_probability=negatives.min_probability,
        )
        settings: dict[str, Any] = {
            "sizes": self._sizes(),
            "mining": mining,
            "retrieving": retrieving,
            "teacher": teacher,
            "with_titles": data.with_titles,
        }
        if data.dataset is not None:
            return preparation.prepare_beir(Path(data.dataset), **settings), retrieving
        collections = {"train": self._collection()}
        return preparation.prepare_collections(collections, **settings), retrieving

    def _collection(self) -> Collection:
        from sie_core.evaluation import beir
        from sie_core.training.preparation import load_unjudged

        data = self.data
        assert data.corpus is not None  # noqa: S101 -- `check` saw to it
        assert data.query_file is not None  # noqa: S101
        if data.qrels is None:
            return load_unjudged(corpus=data.corpus, queries=data.query_file)
        found = beir.load_files(corpus=data.corpus, queries=data.query_file, qrels=data.qrels)
        return found.drawn(None, seed=self.training.seed)

    def _sizes(self) -> Sizes:
        from sie_core.training.preparation import Sizes

        data = self.data
        return Sizes(
            train=data.num_queries, dev=data.num_dev, test=data.num_test, seed=self.training.seed
        )


@contextmanager
def _open_teacher(named: str | None, client: Any) -> Iterator[Teacher | None]:
    from sie_core.training.teacher import as_teacher

    if named is None:
        yield None
        return
    model, address = split_address(named)
    here = {} if address is not None else {"client": client}
    with Reranker(model, base_url=address, **here) as reranker:
        yield as_teacher(reranker)


def _open_embedder(negatives: Negatives, client: Any) -> ClientEmbedder:
    from sie_core.evaluation.dense import ClientEmbedder

    return ClientEmbedder(client, negatives.embedding_model)


def _show(outcome: Outcome, *, model: str, full: bool, as_json: bool) -> None:
    if as_json:
        content = outcome.figures | {"training": outcome.training, "verdict": outcome.verdict}
        sys.stdout.write(json.dumps(content | {"helped": outcome.helped}, indent=2) + "\n")
        return
    console = Console()
    print_comparison(outcome.figures, console)
    for line in outcome.training:
        console.print(line, markup=False, highlight=False)
    style = "green" if outcome.helped else "yellow"
    console.print(outcome.verdict, style=style, markup=False, highlight=False)
    use = (
        f'Reranker("{outcome.folder}")' if full else f'Reranker("{model}", lora="{outcome.folder}")'
    )
    console.print(f"use it: {use}", markup=False, highlight=False)
