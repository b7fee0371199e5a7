"""The training loop: transformers' `Trainer`, with our batches, losses and early stop by nDCG."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_core.errors import MissingDependencyError, ResourceExhaustedError
from sie_core.evaluation.metrics import evaluate
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.training.example import Example
from sie_core.training.network import Network, score
from sie_core.training.settings import TrainingSettings

try:
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from transformers import (
        EarlyStoppingCallback,
        PrinterCallback,
        ProgressCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.integrations.integration_utils import TensorBoardCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[local,training]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

from sie_core.training.losses import LOSSES

METRIC = "ndcg_at_10"

_EVAL_QUERIES = 8
"""Queries in one pass over the dev split."""

_LOGS = 50
"""Points of the loss's curve, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training came to.

    Attributes:
        dev: nDCG@10 of the dev split by step; step 0 is before training.
        best_step: Whose weights were kept.
        num_steps: Made.
        num_planned: Without an early stop.
        resumed_at: The step that an interrupted run was continued from; None for a whole run.
        seconds: How long this process trained.
    """

    dev: dict[int, float]
    best_step: int
    num_steps: int
    num_planned: int
    resumed_at: int | None
    seconds: float


def train(
    network: Network,
    train_examples: Sequence[Example],
    dev_examples: Sequence[Example],
    folder: Path,
    *,
    settings: TrainingSettings,
    watch: Watch = unwatched,
    tell: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train, and leave the network with the weights that were best on dev.

    Args:
        network: What is trained, in place.
        train_examples: Learnt from.
        dev_examples: Measured on, to stop early and to choose.
        folder: Of checkpoints and TensorBoard's files; a run that ended there is continued.
        settings: Everything else.
        watch: Shows the progress.
        tell: Told each figure of the dev split.

    Raises:
        ResourceExhaustedError: Memory did not suffice.
    """
    if settings.num_threads is not None and network.device.type == "cpu":
        torch.set_num_threads(settings.num_threads)
    steps_per_epoch = -(-len(train_examples) // settings.queries_per_step)
    num_steps = steps_per_epoch * settings.num_epochs
    every = max(1, -(-num_steps // settings.evaluations))
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=settings.queries_per_step,
        learning_rate=settings.chosen_learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=int(settings.warmup * num_steps),
        lr_scheduler_type="linear",
        bf16=network.uses_bfloat16,
        use_cpu=network.device.type == "cpu",
        seed=settings.seed,
        eval_on_start=last is None,  # how good it is before: step 0
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=max(1, num_steps // _LOGS),
        load_best_model_at_end=True,
        metric_for_best_model=METRIC,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        report_to=[],
        dataloader_pin_memory=network.device.type == "cuda",
        label_names=["labels"],
    )
    with ExitStack() as stack:
        writer = SummaryWriter(log_dir=str(folder / "tensorboard"))
        stack.callback(writer.close)
        trainer = RerankerTrainer(
            model=network.model,
            args=arguments,
            data_collator=network.batcher,
            train_dataset=list(train_examples),
            eval_dataset=list(dev_examples),
            callbacks=[
                EarlyStoppingCallback(early_stopping_patience=settings.patience),
                TensorBoardCallback(writer),
                _Shown(watch, stack),
            ],
        )
        trainer.loss_name = settings.loss
        trainer.tell = tell
        for printing in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printing)
        began = time.perf_counter()
        try:
            trainer.train(resume_from_checkpoint=last)
        except torch.OutOfMemoryError as exc:
            msg = (
                f"{network.device} has too little memory for {settings.queries_per_step} queries "
                f"of {settings.documents_per_query} documents in a step; make those fewer"
            )
            raise ResourceExhaustedError(msg) from exc
        seconds = time.perf_counter() - began
    history = {
        int(entry["step"]): float(entry[f"eval_{METRIC}"])
        for entry in trainer.state.log_history
        if f"eval_{METRIC}" in entry
    }
    return Trained(
        dev=history,
        best_step=int(trainer.state.best_global_step or trainer.state.global_step),
        num_steps=int(trainer.state.global_step),
        num_planned=num_steps,
        resumed_at=None if last is None else int(Path(last).name.rpartition("-")[2]),
        seconds=seconds,
    )


class RerankerTrainer(Trainer):
    """`Trainer` over queries with their documents.

    The network computes as it does when it scores, without dropout: an adapter is small enough not
    to need it, it takes a quarter of the time on a CPU, and runs are repeatable without it.
    """

    loss_name: Any = "listwise"
    tell: Callable[[str], None]
    loss_is_scaled_for_ga = False  # losses are means

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of one step."""
        del num_items_in_batch, return_outputs
        model.eval()
        scores = score(model, inputs["chunks"], inputs["places"], inputs["mask"].shape)
        labels, teacher, mask = (inputs[name] for name in ("labels", "teacher", "mask"))
        compute = LOSSES[self.loss_name]
        with torch.autocast(scores.device.type, enabled=False):
            return compute(scores, labels, teacher, mask)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure nDCG@10 of the dev split's queries over their own documents."""
        del ignore_keys
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        found = self._ndcg(examples)
        metrics = {f"{metric_key_prefix}_{METRIC}": found}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.tell(f"step {self.state.global_step:,}: nDCG@10 of the dev split is {found:.4f}")
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count none: inputs are chunks, which `Trainer` cannot count."""
        del inputs
        return 0

    def _ndcg(self, examples: Sequence[Example]) -> float:
        model: Any = self.model
        model.eval()
        rankings: dict[str, list[int]] = {}
        relevant: dict[str, list[int]] = {}
        for start in range(0, len(examples), _EVAL_QUERIES):
            batch = examples[start : start + _EVAL_QUERIES]
            collate: Any = self.data_collator
            inputs: dict[str, Any] = self._prepare_inputs(collate(batch))
            with torch.no_grad(), self.compute_loss_context_manager():
                scores = score(model, inputs["chunks"], inputs["places"], inputs["mask"].shape)
            for row, example in enumerate(batch):
                count = int(inputs["mask"][row].sum())
                # Relevant documents come first in a batch: ties must not favour them.
                order = [(-float(scores[row, place]), -place) for place in range(count)]
                rankings[example.query] = [-place for _, place in sorted(order)]
                relevant[example.query] = [
                    place for place in range(count) if float(inputs["labels"][row, place]) > 0
                ]
        return evaluate(rankings, relevant).mean.ndcg_at_10


class _Shown(TrainerCallback):
    """Shows the steps while they are made."""

    def __init__(self, watch: Watch, stack: ExitStack) -> None:
        self._watch = watch
        self._stack = stack
        self._advance: Callable[[int], None] = lambda _: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step that is continued from."""
        del args, control
        self._advance = self._stack.enter_context(
            self._watch("training, in steps", state.max_steps)
        )
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance it."""
        del args, state, control
        self._advance(1)
