"""How a fine-tuning run goes: its numbers, and their defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sie_core.errors import InvalidRequestError

Loss = Literal["listwise", "binary", "margin-mse"]

LORA_LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 3e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Settings of one run.

    Attributes:
        loss: `listwise`: softmax cross-entropy over a query's documents. `binary`: cross-entropy of
            each pair. `margin-mse`: a teacher's differences between relevant and other documents.
        full: Train all weights instead of a LoRA adapter.
        rank: Of the adapter.
        alpha: Its strength is `alpha / rank`.
        learning_rate: At its highest; None means 5e-4 for an adapter, 3e-5 for all weights.
        num_epochs: How often all queries are seen.
        queries_per_step: Whose losses are one step.
        documents_per_query: At most, the relevant ones first.
        max_length: Tokens of query and document together.
        warmup: Part of the steps in which the learning rate rises.
        weight_decay: Of AdamW.
        evaluations: How often nDCG@10 of the dev split is measured and a checkpoint written.
        patience: Stop after so many of them without a better one.
        bfloat16: Multiply in it; None means where it is fast.
        device: As torch has it; None means a GPU if there is one.
        num_threads: Cores used on the CPU; None leaves that to torch.
        seed: Decides order and initial weights.
    """

    loss: Loss = "listwise"
    full: bool = False
    rank: int = 16
    alpha: int = 32
    learning_rate: float | None = None
    num_epochs: int = 1
    queries_per_step: int = 8
    documents_per_query: int = 10
    max_length: int = 256
    warmup: float = 0.1
    weight_decay: float = 0.01
    evaluations: int = 5
    patience: int = 3
    bfloat16: bool | None = None
    device: str | None = None
    num_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if self.loss not in get_args(Loss):
            msg = f"loss must be {', '.join(get_args(Loss))}, but got {self.loss!r}"
            raise InvalidRequestError(msg)
        at_least_1 = ("rank", "alpha", "num_epochs", "queries_per_step", "evaluations", "patience")
        for name in at_least_1:
            _check(name, getattr(self, name), 1)
        _check("documents_per_query", self.documents_per_query, 2)
        _check("max_length", self.max_length, 8)
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            msg = f"learning_rate must be above 0 and below 1, but got {self.learning_rate}"
            raise InvalidRequestError(msg)

    @property
    def chosen_learning_rate(self) -> float:
        """Return the learning rate, the default for what is trained if none was named."""
        if self.learning_rate is not None:
            return self.learning_rate
        return FULL_LEARNING_RATE if self.full else LORA_LEARNING_RATE

    def described(self) -> dict[str, Any]:
        """Return them by name, the learning rate as it is."""
        return asdict(self) | {"learning_rate": self.chosen_learning_rate}


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        msg = f"{name} must be at least {least}, but got {value}"
        raise InvalidRequestError(msg)
