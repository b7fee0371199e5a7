"""The work of `sie eval` and `sie compare`: candidates once, then each model's scores and times."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sie_core.cli.backend import Backend, RerankerFactory, split_address
from sie_core.cli.economy import Economy
from sie_core.cli.engine import import_engine
from sie_core.cli.progress import Steps
from sie_core.errors import InvalidRequestError
from sie_core.settings import DEFAULT_EMBEDDING_MODEL

if TYPE_CHECKING:
    from sie_core.evaluation.collection import Collection
    from sie_core.evaluation.dense import ClientEmbedder
    from sie_core.evaluation.first_stage import Candidates
    from sie_core.evaluation.journal import StateFolder
    from sie_core.evaluation.outcome import Measured
    from sie_core.evaluation.texts import TextStore
    from sie_core.reranker import Reranker

HOTPOTQA = "hotpotqa"
STDOUT = Path("-")


CorpusOption = Annotated[
    Path | None,
    typer.Option(
        help="Instead of --dataset: documents, JSONL with _id, text and title.",
        rich_help_panel="Data",
    ),
]
QueryFileOption = Annotated[
    Path | None,
    typer.Option(help="Their queries: JSONL with _id and text, or TSV.", rich_help_panel="Data"),
]
TitlesOption = Annotated[
    bool,
    typer.Option(
        "--titles/--no-titles",
        help="Put a document's title before its text.",
        rich_help_panel="Data",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Which data is measured on, as the options say."""

    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="hotpotqa, a folder in BEIR's layout, or a name that ir_datasets knows, such as "
            "beir/scifact/test.",
            rich_help_panel="Data",
        ),
    ] = None
    split: Annotated[
        str, typer.Option(help="Which of a folder's qrels/*.tsv.", rich_help_panel="Data")
    ] = "test"
    corpus: CorpusOption = None
    query_file: QueryFileOption = None
    qrels: Annotated[
        Path | None,
        typer.Option(help="Their judgements, as TREC or BEIR has them.", rich_help_panel="Data"),
    ] = None
    num_queries: Annotated[
        int | None,
        typer.Option(
            "--queries",
            min=1,
            help="Draw so many queries at random.",
            show_default="all",
            rich_help_panel="Data",
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(help="Decides what is drawn, and the resamples.", rich_help_panel="Data"),
    ] = 0
    with_titles: TitlesOption = True

    def open(self) -> Collection:
        """Open the data, with the queries drawn.

        Raises:
            InvalidRequestError: The options do not say one data set.
            DatasetError: It cannot be had or read.
        """
        from sie_core.evaluation import beir
        from sie_core.evaluation.datasets import hotpotqa_collection

        files = (self.corpus, self.query_file, self.qrels)
        if (self.dataset is None) == (files == (None, None, None)):
            msg = (
                "give either --dataset, or --corpus, --query-file and --qrels: "
                f"--dataset is {self.dataset!r}"
            )
            raise InvalidRequestError(msg)
        if self.dataset is None:
            if self.corpus is None or self.query_file is None or self.qrels is None:
                msg = "--corpus, --query-file and --qrels belong together: give all three"
                raise InvalidRequestError(msg)
            collection = beir.load_files(
                corpus=self.corpus, queries=self.query_file, qrels=self.qrels
            )
        elif self.dataset == HOTPOTQA:
            pooled = hotpotqa_collection(self.num_queries, seed=self.seed)
            return pooled.drawn(None, seed=self.seed)
        elif Path(self.dataset).is_dir():
            collection = beir.load_beir(Path(self.dataset), split=self.split)
        else:
            from sie_core.evaluation.catalogued import load_catalogued

            collection = load_catalogued(self.dataset)
        return collection.drawn(self.num_queries, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where the results go, as the options say."""

    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE|-",
            dir_okay=False,
            help="Write every figure as JSON; '-' is standard output, instead of the table.",
            rich_help_panel="Output",
        ),
    ] = None
    runs: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Write TREC runs before and after reranking, and the judgements, into this "
            "folder.",
            rich_help_panel="Output",
        ),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Write report.html, one page that needs nothing else, and its plots as PNG.",
            rich_help_panel="Output",
        ),
    ] = None

    def check(self) -> None:
        """Find out before the work what would fail after it."""
        if self.json is not None and self.json != STDOUT and not self.json.parent.is_dir():
            msg = f"--json {self.json} cannot be written, as there is no folder {self.json.parent}"
            raise InvalidRequestError(msg)
        for folder in (self.runs, self.report):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        if self.report is not None:
            import sie_core.evaluation.plots  # noqa: F401 -- says what is not installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where candidates come from, and what of them is measured."""

    first_stage: Annotated[
        str,
        typer.Option(
            "--first-stage",
            help="Where candidates come from: bm25, dense (embeddings), hybrid (both, by "
            "reciprocal rank fusion), or the file of a TREC run.",
            rich_help_panel="First stage",
        ),
    ] = "bm25"
    embedding_model: Annotated[
        str,
        typer.Option(
            help="Embeds for dense and hybrid, in this process; NAME@http://host:port is on a "
            "server.",
            rich_help_panel="First stage",
        ),
    ] = DEFAULT_EMBEDDING_MODEL
    num_candidates: Annotated[
        int,
        typer.Option(
            "--candidates",
            min=1,
            help="Documents reranked per query.",
            rich_help_panel="First stage",
        ),
    ] = 100
    depths: Annotated[
        str,
        typer.Option(
            help="Numbers of candidates to show quality and latency for; those above --candidates "
            "are left out.",
            rich_help_panel="Measuring",
        ),
    ] = "10,20,50,100"
    timed_queries: Annotated[
        int,
        typer.Option(
            min=0,
            help="Queries whose calls are timed once more at every depth.",
            rich_help_panel="Measuring",
        ),
    ] = 20
    resume: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Keep corpus, embeddings and scores here, to continue from or to use again.",
            show_default="a folder in the cache, deleted when all is done",
            rich_help_panel="Measuring",
        ),
    ] = None

    @property
    def all_depths(self) -> list[int]:
        """Return the numbers of candidates to measure with, up to all."""
        return parse_depths(self.depths, self.num_candidates)


@dataclass(slots=True, kw_only=True)
class Measuring:
    """Measure models over one collection's candidates.

    Attributes:
        data: What on.
        plan: Which candidates, and how they are measured.
        outputs: Where the results go.
        backend: How models run.
        economy: What they leave out.
        make_reranker: Makes the rerankers; None is `Reranker`.
    """

    data: Data
    plan: Plan
    outputs: Outputs
    backend: Backend
    economy: Economy = field(default_factory=Economy)
    make_reranker: RerankerFactory | None = None
    steps: Steps = field(default_factory=Steps)

    def run(self, models: Sequence[str]) -> dict[str, Any]:
        """Measure the models one after the other, write what was asked for, return the outcome."""
        from sie_core.evaluation.first_stage import check_first_stage

        if len(set(models)) < len(models):
            msg = f"a model is named twice: {', '.join(models)}"
            raise InvalidRequestError(msg)
        check_first_stage(self.plan.first_stage)
        depths = self.plan.all_depths
        if self.economy.settings():  # with fewer candidates other documents would be left out
            depths = [self.plan.num_candidates]
        self.outputs.check()
        for model in models:
            self._open_reranker(model).close()  # refuses what is wrong before anything is read
        collection = self.data.open()
        if collection.num_left_out:
            self.steps.note(
                f"{collection.num_left_out} queries of {collection.name} have no text or nothing "
                "relevant, and are left out"
            )
        with self._state(collection, models) as state, self._store(collection, state) as store:
            candidates = self._candidates(collection, store, state)
            measured = [
                self._measure(model, state, depths, (collection, store, candidates))
                for model in models
            ]
            outcome = self._describe(measured, collection, candidates, store, depths)
            self._write(outcome, measured, collection, candidates)
        return outcome

    @contextmanager
    def _state(self, collection: Collection, models: Sequence[str]) -> Iterator[StateFolder]:
        """Hold what is done so far until all is done; with `--resume`, for good."""
        from sie_core.evaluation.journal import StateFolder, fingerprint
        from sie_core.models.cache import cache_folder

        settings = self._settings(collection)
        path = self.plan.resume
        if path is None:
            key = fingerprint(settings | {"models": [self._model_settings(one) for one in models]})
            path = cache_folder() / "evaluations" / key
        state = StateFolder(path, settings)
        try:
            yield state
        except BaseException as exc:
            state.close()
            if not isinstance(exc, InvalidRequestError):  # the same command would fail again
                self.steps.note(
                    f"what was done is kept in {path}; the same command continues there"
                )
            raise
        if self.plan.resume is None:
            state.delete()
        state.close()

    def _settings(self, collection: Collection) -> dict[str, Any]:
        """Return what the candidates depend on."""
        from sie_core.evaluation.beir import file_identity
        from sie_core.evaluation.first_stage import BM25, NEEDS_EMBEDDER

        is_run = self.plan.first_stage not in (BM25, *NEEDS_EMBEDDER)
        return {
            "data": dict(collection.identity),
            "titles": self.data.with_titles,
            "queries": self.data.num_queries,
            "seed": self.data.seed,
            "first stage": file_identity(Path(self.plan.first_stage))
            if is_run
            else self.plan.first_stage,
            "embedding model": self.plan.embedding_model
            if self.plan.first_stage in NEEDS_EMBEDDER
            else None,
            "candidates": self.plan.num_candidates,
        }

    def _store(self, collection: Collection, state: StateFolder) -> TextStore:
        from sie_core.evaluation.texts import TextStore

        path = state.path / "corpus.sqlite"
        if path.exists():
            return TextStore(path)
        with self.steps.watch("reading documents", collection.num_documents) as advance:
            return TextStore.build(
                path,
                collection.read_documents(),
                with_title=self.data.with_titles,
                advance=advance,
            )

    def _candidates(
        self, collection: Collection, store: TextStore, state: StateFolder
    ) -> Candidates:
        from sie_core.evaluation.first_stage import NEEDS_EMBEDDER, retrieve

        with self._embedder(is_needed=self.plan.first_stage in NEEDS_EMBEDDER) as embedder:
            candidates = retrieve(
                self.plan.first_stage,
                collection,
                store,
                depth=self.plan.num_candidates,
                embedder=embedder,
                vectors=state.path / "vectors.f32",
                watch=self.steps.watch,
            )
        num_empty = sum(not documents for documents in candidates.values())
        if num_empty == len(candidates):
            msg = (
                f"the first stage {self.plan.first_stage} has no candidate for any of the "
                f"{num_empty} queries; check that its query ids are those of the data"
            )
            raise InvalidRequestError(msg)
        if num_empty:
            self.steps.note(f"{num_empty} queries have no candidate, and count as 0")
        return candidates

    @contextmanager
    def _embedder(self, *, is_needed: bool) -> Iterator[ClientEmbedder | None]:
        if not is_needed:
            yield None
            return
        from sie_core.evaluation.dense import ClientEmbedder

        model, address = split_address(self.plan.embedding_model)
        with self.backend.open_client(address) as client:
            yield ClientEmbedder(client, model)

    def _measure(
        self,
        named: str,
        state: StateFolder,
        depths: Sequence[int],
        pool: tuple[Collection, TextStore, Candidates],
    ) -> Measured:
        from sie_core.evaluation.outcome import Measured
        from sie_core.evaluation.scoring import Scoring

        collection, store, candidates = pool
        settings = self._model_settings(named)
        folder, changed = state.part(named, settings)
        if changed:
            self.steps.note(
                f"{named} was scored with other settings before ({'; '.join(changed)}), and is "
                "scored anew"
            )
        with self._open_reranker(named) as reranker:
            scoring = Scoring(reranker, collection.queries, candidates, store, folder)
            if scoring.num_continued:
                self.steps.note(
                    f"{scoring.num_continued} of {len(candidates)} queries were scored by {named} "
                    f"before, and are taken from {folder}"
                )
            self._load(reranker)
            execution = reranker.execution
            scoring.score(self.steps.watch)
            seconds = scoring.time_depths(
                depths,
                num_queries=self.plan.timed_queries,
                seed=self.data.seed,
                watch=self.steps.watch,
            )
        return Measured(
            label=named,
            scored=scoring.scored,
            seconds_by_depth=seconds,
            settings=settings,
            execution=execution,
        )

    def _load(self, reranker: Reranker) -> None:
        """Load a model of this process, so that no call's time has it in it."""
        if reranker.base_url is not None:
            return
        with self.steps.loading(reranker.model):
            if self.make_reranker is None:  # another's rerankers bring their own engine
                import_engine()
            reranker.warm_up()

    def _open_reranker(self, named: str) -> Reranker:
        model, address = split_address(named)
        return self.backend.open_reranker(
            model, self.make_reranker, base_url=address, **self.economy.arguments()
        )

    def _model_settings(self, named: str) -> dict[str, Any]:
        return {"model": named, **self.backend.settings(), **self.economy.settings()}

    def _describe(
        self,
        measured: Sequence[Measured],
        collection: Collection,
        candidates: Candidates,
        store: TextStore,
        depths: Sequence[int],
    ) -> dict[str, Any]:
        from sie_core.evaluation import machine, outcome

        seed = self.data.seed
        return {
            "command": shlex.join(["sie", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.describe_machine(),
            "versions": machine.installed_versions(),
            "data": outcome.describe_data(collection, store),
            "first_stage": outcome.describe_first_stage(
                collection, candidates, self.plan.first_stage, depths
            ),
            "statistics": outcome.describe_statistics(seed),
            "models": [
                outcome.describe_model(one, collection, candidates, store, depths=depths, seed=seed)
                for one in measured
            ],
            "pairs": outcome.compare_models(measured, collection, seed=seed),
        }

    def _write(
        self,
        outcome: dict[str, Any],
        measured: Sequence[Measured],
        collection: Collection,
        candidates: Candidates,
    ) -> None:
        from sie_core.evaluation import trec

        if self.outputs.runs is not None:
            folder = self.outputs.runs
            trec.write_qrels(folder / "qrels.txt", collection.qrels)
            trec.write_run(folder / "before.trec", candidates, "before")
            for name, one in zip(run_names([one.label for one in measured]), measured, strict=True):
                run = {query_id: scored.reranked() for query_id, scored in one.scored.items()}
                trec.write_run(folder / f"{name}.trec", run, name)
        if self.outputs.json not in (None, STDOUT):
            content = json.dumps(outcome, indent=2, ensure_ascii=False)
            self.outputs.json.write_bytes(_utf8(content) + b"\n")
        if self.outputs.report is not None:
            from sie_core.evaluation.report import write_report

            write_report(self.outputs.report, outcome)


def show(outcome: dict[str, Any], outputs: Outputs, print_tables: Callable[[], None]) -> None:
    """Put the outcome on standard output: as JSON where that was asked for, else as tables."""
    if outputs.json == STDOUT:
        content = json.dumps(outcome, indent=2, ensure_ascii=False)
        sys.stdout.buffer.write(_utf8(content) + b"\n")
        return
    print_tables()
    if outputs.report is not None:
        typer.echo(f"report: {outputs.report / 'report.html'}")


def run_names(labels: Sequence[str]) -> list[str]:
    """Return the files' names of the models' runs: `after`, or one for each model of several."""
    if len(labels) == 1:
        return ["after"]
    slugs = [
        "".join(char if char.isalnum() or char in "-." else "-" for char in one) for one in labels
    ]
    return [f"after-{number}-{slug[-60:]}" for number, slug in enumerate(slugs, start=1)]


def parse_depths(depths: str, num_candidates: int) -> list[int]:
    """Read numbers of candidates; `num_candidates` itself is always among them.

    Raises:
        InvalidRequestError: One is no number of at least 1.
    """
    parsed = []
    for depth in depths.split(","):
        if not depth.strip().isdecimal() or int(depth) < 1:
            msg = f"--depths must be numbers of at least 1 with commas between, but got {depths!r}"
            raise InvalidRequestError(msg)
        parsed.append(int(depth))
    return sorted({depth for depth in parsed if depth < num_candidates} | {num_candidates})


def _utf8(text: str) -> bytes:
    # Half a surrogate pair cannot be UTF-8; as \ud83d it is the JSON it was read from.
    return text.encode("utf-8", errors="backslashreplace")
