"""The scripts of benchmarks/ as modules, and a tiny corpus to draw from."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from sie_core.evaluation.datasets import Paragraph, Question

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as python does for a script

if TYPE_CHECKING:
    from workload import Corpus

SOAK_MINUTES = 2
"""Long enough for caches to be full, and for growth to stand out: 8 KiB kept of each call would be
20 MiB a minute and more."""

SOAK_TOLERANCE_MIB = 5
"""A minute. Less does not stand out in so short a time; `make soak` allows no growth at all."""

HAS_PROC = Path("/proc/self/statm").exists()
"""Where memory is read from; without it there is no soak."""

_THE_SOAK = "test_nothing_grows_with_use"


@dataclass(frozen=True, slots=True)
class Soak:
    """The script under way, and the file that it prints to."""

    process: subprocess.Popen[bytes]
    printed: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Look at the soak last: it goes on beside the other tests meanwhile."""
    items.sort(key=lambda item: item.name == _THE_SOAK)


@pytest.fixture(scope="session", autouse=True)
def soak(
    request: pytest.FixtureRequest, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Soak | None]:
    """Begin the soak with the first test of this folder, if it was asked for at all."""
    is_asked_for = any(item.name == _THE_SOAK for item in request.session.items)
    if not is_asked_for or not HAS_PROC:
        yield None
        return
    printed = tmp_path_factory.mktemp("soak") / "printed.txt"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [
                *("nice", sys.executable, str(BENCHMARKS / "soak.py")),
                *("--minutes", str(SOAK_MINUTES), "--model", str(tiny_bert)),
                *("--pause-ms", "100", "--tolerance", str(SOAK_TOLERANCE_MIB), "--warm-up", "0.5"),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            # One arena for all threads: with one for each, the last is full only after minutes.
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"},
        )
    yield Soak(process, printed)
    process.kill()  # does nothing to one that has ended
    process.wait()


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
