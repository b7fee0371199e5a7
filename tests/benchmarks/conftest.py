"""The scripts of benchmarks/ as modules, and a tiny corpus to draw from."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from sie_core.evaluation.datasets import Paragraph, Question

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as python does for a script

if TYPE_CHECKING:
    from workload import Corpus


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """The scripts silence our warnings, which the tests after these wait for."""
    logger = logging.getLogger("sie_core")
    level = logger.level
    yield
    logger.setLevel(level)


_WORDS = [
    "the",
    "river",
    "museum",
    "Berlin",
    "in",
    "of",
    "a",
    "population",
    "wxyz",
    "people,",
    "film",
    "1990",
    "born",
    "band's",
    "year",
]
"""Words of one token, and of several, in the tiny checkpoint's vocabulary."""


def make_questions(num_questions: int = 12) -> list[Question]:
    """Make questions of random words, four passages each."""
    rng = random.Random(0)
    return [
        Question(
            id=str(number),
            text=" ".join(rng.choices(_WORDS, k=12)),
            paragraphs=tuple(
                Paragraph("a title", " ".join(rng.choices(_WORDS, k=60))) for _ in range(4)
            ),
            relevant=frozenset({0}),
        )
        for number in range(num_questions)
    ]


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_bert: Path) -> Tokenizer:
    """The tiny checkpoint's tokenizer, which neither cuts nor pads."""
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture(scope="session")
def tiny_corpus(tiny_tokenizer: Tokenizer) -> Corpus:
    """Random words in place of HotpotQA."""
    from workload import Corpus

    return Corpus(tiny_tokenizer, make_questions())
