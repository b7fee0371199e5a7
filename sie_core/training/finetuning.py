"""One fine-tuning run, from prepared data to a folder that serves, with its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sie_core.errors import InvalidRequestError
from sie_core.evaluation.journal import StateFolder
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.models.checkpoint import ADAPTER_CONFIG, CONFIG
from sie_core.models.sources import resolve
from sie_core.reranker import Reranker
from sie_core.settings import DEFAULT_MODEL, SourceSettings
from sie_core.training.assessment import AFTER, BEFORE, Assessment, verdict
from sie_core.training.card import write_card
from sie_core.training.preparation import Prepared, Retrieving
from sie_core.training.settings import TrainingSettings
from sie_core.training.splits import check_leaks, sizes
from sie_core.training.teacher import Teacher, taught

if TYPE_CHECKING:
    from sie_core.training.trainer import Trained

FIGURES = "figures.json"

STATE = "run"
"""The sub-folder of checkpoints, TensorBoard's files and scores."""

MERGED = "merged"
"""The sub-folder of the full model with the adapter merged in."""

OpenReranker = Callable[..., Reranker]
"""Makes a reranker of a model's name and, by keyword, `lora`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: Holds the adapter or the model, its card and figures.
        training: What happened, in sentences.
        figures: Before and after, as `sie compare` has them.
        verdict: Whether it helped, in a sentence.
        helped: Whether the interval of the difference in nDCG@10 is above zero.
    """

    folder: Path
    training: list[str]
    figures: dict[str, Any]
    verdict: str
    helped: bool


@dataclass(slots=True, kw_only=True)
class Finetuning:
    """One run.

    Attributes:
        data: What is learnt from and measured on.
        out: Becomes a folder with the adapter or model.
        model: The name or folder that training starts from.
        settings: How it is trained.
        retrieving: How the test's candidates are found.
        teacher: For distillation, if the data has no teacher's scores.
        merge: Also write a full model, with the adapter merged in.
        with_titles: Put titles before texts in the test.
        open_reranker: Makes the rerankers that the test is scored by.
        keep: Keep checkpoints and TensorBoard's files when all is done.
        watch: Shows the progress.
        tell: Told what happens.
    """

    data: Prepared
    out: Path
    model: str = DEFAULT_MODEL
    settings: TrainingSettings
    retrieving: Retrieving
    teacher: Teacher | None = None
    merge: bool = False
    with_titles: bool = True
    open_reranker: OpenReranker = Reranker
    keep: bool = False
    watch: Watch = unwatched
    tell: Callable[[str], None] = lambda _: None

    def run(self) -> Outcome:
        """Measure before, train, save, measure after, and write the card.

        What an interrupted run with the same settings and data left in the folder is continued.

        Raises:
            InvalidRequestError: The folder holds something else.
            SIEError: What the steps raise.
        """
        check_out(self.out)
        check_leaks(self.data.splits)
        state = StateFolder(self.out / STATE, self._identity())
        try:
            outcome = self._run(state.path)
        except BaseException as exc:
            if not isinstance(exc, InvalidRequestError):  # the same call would fail again
                self.tell(
                    f"what was done is kept in {state.path}; the same command continues there"
                )
            raise
        finally:
            state.close()
        if not self.keep:
            state.delete()
        return outcome

    def _run(self, folder: Path) -> Outcome:
        assessment = Assessment(
            self.data.test,
            folder / "test",
            retrieving=self.retrieving,
            with_titles=self.with_titles,
            watch=self.watch,
        )
        try:
            with self.open_reranker(self.model) as reranker:
                before = assessment.measure(BEFORE, reranker, settings={"model": self.model})
            trained = self._train(folder)
            shutil.rmtree(folder / "test" / AFTER, ignore_errors=True)  # of other weights
            with self._open_result() as reranker:
                after = assessment.measure(AFTER, reranker, settings={"model": str(self.out)})
            figures = assessment.compare(before, after, seed=self.settings.seed)
        finally:
            assessment.close()
        return self._finish(trained, figures)

    def _train(self, folder: Path) -> Trained:
        # Imported here: all that stands above needs no torch.
        from sie_core.training.network import Network
        from sie_core.training.trainer import train

        files = resolve(self.model, SourceSettings())
        network = Network.load(files, self.settings)
        dtype = "bfloat16" if network.uses_bfloat16 else "float32"
        self.tell(
            f"training {network.num_trained:,} numbers of {files.name} on {network.device}, {dtype}"
        )
        splits = self.data.splits
        train_examples, dev_examples = splits.train, splits.dev
        if self.settings.loss == "margin-mse":
            train_examples = self._with_teacher()
        trained = train(
            network,
            train_examples,
            dev_examples,
            folder / "checkpoints",
            settings=self.settings,
            watch=self.watch,
            tell=self.tell,
        )
        network.save(self.out, merged=self.out / MERGED if self.merge else None)
        return trained

    def _with_teacher(self) -> list[Any]:
        examples = self.data.splits.train
        num_untaught = sum(not example.has_teacher for example in examples)
        if num_untaught and self.teacher is None:
            msg = (
                f"margin-mse learns a teacher's differences, but {num_untaught} of {len(examples)} "
                "queries have no scores of one; name a teacher (--teacher), or choose another loss"
            )
            raise InvalidRequestError(msg)
        if not num_untaught:
            return list(examples)
        return taught(examples, cast("Teacher", self.teacher), watch=self.watch)

    def _open_result(self) -> Reranker:
        if self.settings.full:
            return self.open_reranker(str(self.out.absolute()))
        return self.open_reranker(self.model, lora=str(self.out.absolute()))

    def _finish(self, trained: Trained, figures: dict[str, Any]) -> Outcome:
        training = describe_training(trained, self.settings)
        said = verdict(figures)
        pair = next(one for one in figures["pairs"] if one["name"] == "nDCG@10")
        for folder in [self.out, *([self.out / MERGED] if self.merge else [])]:
            write_card(
                folder,
                base=self.model,
                is_adapter=not self.settings.full and folder == self.out,
                data=self.data.name,
                notes=self.data.notes,
                settings=self.settings.described() | {"date": datetime.now(UTC).date().isoformat()},
                training=training,
                figures=figures,
                verdict=said,
            )
        content = json.dumps(figures | {"training": training, "verdict": said}, indent=2)
        (self.out / FIGURES).write_text(content + "\n", encoding="utf-8")
        return Outcome(
            folder=self.out,
            training=training,
            figures=figures,
            verdict=said,
            helped=pair["verdict"] == "better",
        )

    def _identity(self) -> dict[str, Any]:
        """Return what the weights depend on."""
        return {
            "data": dict(self.data.identity),
            "queries": dict(sizes(self.data.splits)),
            "model": self.model,
            "settings": self.settings.described(),
            "merge": self.merge,
        }


def describe_training(trained: Trained, settings: TrainingSettings) -> list[str]:
    """Say what happened in training, in sentences."""
    kind = "all weights" if settings.full else f"a LoRA adapter of rank {settings.rank}"
    curve = ", ".join(f"{value:.4f} at {step}" for step, value in sorted(trained.dev.items()))
    steps = f"{trained.num_steps:,} of {trained.num_planned:,} steps"
    lines = [
        f"{kind}, {settings.loss} loss",
        f"{steps} of {settings.queries_per_step} queries in {trained.seconds / 60:.1f} minutes",
        f"nDCG@10 of the dev split by step: {curve}",
        f"the weights of step {trained.best_step:,} were kept, the best on the dev split",
    ]
    if trained.num_steps < trained.num_planned:
        lines.append(f"stopped early: {settings.patience} evaluations brought nothing better")
    if trained.resumed_at is not None:
        lines.append(f"continued from step {trained.resumed_at:,} after an interruption")
    return lines


def check_out(folder: Path) -> None:
    """Raise InvalidRequestError unless a model may be written to `folder`."""
    if folder.is_file():
        msg = f"{folder} is a file; name a folder to write the result to"
        raise InvalidRequestError(msg)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if (folder / FIGURES).exists() and not (folder / STATE / "settings.json").exists():
        msg = f"{folder} holds the result of another run; name another folder, or delete it"
        raise InvalidRequestError(msg)
    if there and STATE not in there:
        msg = (
            f"{folder} is not empty (it holds {there[0]}), and is no run of `sie finetune` that "
            "could be continued; name another folder"
        )
        raise InvalidRequestError(msg)
    if {CONFIG, ADAPTER_CONFIG} & set(there) and STATE not in there:
        msg = f"{folder} holds a model; name another folder"
        raise InvalidRequestError(msg)
