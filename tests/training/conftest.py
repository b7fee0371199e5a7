"""Toy data that a tiny cross-encoder can learn: the documents with the city answer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sie_core.models.sources import ModelFiles
from sie_core.training.example import Example, Judged
from sie_core.training.settings import TrainingSettings

# fmt: off
_WORDS = ["river", "museum", "film", "director", "band", "album", "song", "year", "tower", "people",
          "weather", "language", "population", "capital", "american", "british"]
# fmt: on


def toy_examples(count: int, *, seed: int = 0) -> list[Example]:
    """Make queries of chance words; the documents with `berlin` in them answer all."""
    dice = random.Random(seed)
    made = []
    for number in range(count):
        query = " ".join(dice.sample(_WORDS, 3)) + f" {seed}{number}"
        texts = [" ".join(dice.sample(_WORDS, 5)) for _ in range(5)]
        documents = [
            Judged(text=f"{text} {'berlin' if place < 2 else 'banana'}", label=float(place < 2))
            for place, text in enumerate(texts)
        ]
        dice.shuffle(documents)
        made.append(Example(query=query, documents=tuple(documents)))
    return made


def write_lists(path: Path, examples: list[Example]) -> Path:
    """Write examples as JSONL of lists."""
    records = [
        {
            "query": one.query,
            "documents": [document.text for document in one.documents],
            "labels": [document.label for document in one.documents],
        }
        for one in examples
    ]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.fixture
def files(tiny_bert: Path) -> ModelFiles:
    """The tiny model that training starts from."""
    return ModelFiles(name=str(tiny_bert), folder=tiny_bert, source="folder")


@pytest.fixture
def make_settings() -> Callable[..., TrainingSettings]:
    """A maker of settings that teach the tiny model within seconds."""

    def make(**settings: object) -> TrainingSettings:
        chosen = {
            "rank": 8,
            "alpha": 16,
            "learning_rate": 0.02,
            "queries_per_step": 4,
            "evaluations": 4,
            "bfloat16": False,
            "device": "cpu",
            "num_threads": 1,
        }
        return TrainingSettings(**(chosen | settings))  # type: ignore[arg-type]

    return make
