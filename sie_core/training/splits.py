"""Splitting by query, so that nothing tested on was trained on.

A query's twin gives its answer away as well as the query itself. So queries whose words are nearly
the same always land in the same split, and where the data comes split, those that have a twin in a
later split are taken out of the earlier one.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.training.example import Example

SIMILARITY = 0.8
"""Queries that share at least this part of their words (Jaccard) are near-duplicates."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
"""Words; where a script has no spaces between them, its characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Examples for training, for deciding when to stop, and for the final figures.

    Attributes:
        train: What is learnt.
        dev: What decides when to stop.
        test: What before and after are measured on.
        num_twins: Queries that were kept together with a near-duplicate, or left out for it.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    num_twins: int = 0

    def named(self) -> dict[str, Sequence[Example]]:
        """Return them by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    def shared_documents(self, held_out: Sequence[Example]) -> tuple[int, int]:
        """Count the documents of held-out examples, and those that training sees as well."""
        trained = {document.text for example in self.train for document in example.documents}
        held = {document.text for example in held_out for document in example.documents}
        return len(held & trained), len(held)

    def describe(self) -> list[str]:
        """Say how large they are and what they share."""
        shared, num_held = self.shared_documents(self.test)
        counts = (
            f"{len(self.train):,} queries to train on, {len(self.dev):,} to decide when to stop, "
            f"{len(self.test):,} to test on"
        )
        lines = [
            f"{counts}; no query, nor one with nearly the same words, is in two of them",
            f"{shared:,} of the test split's {num_held:,} documents are in the training split too",
        ]
        if self.num_twins:
            lines.append(f"{self.num_twins:,} queries have a near-duplicate")
        return lines


def normalise(query: str) -> str:
    """Return a query's words in their order, without case, accents' spelling or punctuation."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", query).casefold()))


def split(examples: Sequence[Example], *, num_dev: int, num_test: int, seed: int) -> Splits:
    """Split examples by query at random; near-duplicates stay together.

    Args:
        examples: One for each query.
        num_dev: Queries of the dev split; a few more where twins stay together.
        num_test: The same for the test split.
        seed: Decides who goes where.

    Raises:
        InvalidRequestError: A size is below 1.
        DatasetError: There are too few queries.
    """
    for name, number in (("dev", num_dev), ("test", num_test)):
        if number < 1:
            msg = f"the {name} split must have at least 1 query, but got {number}"
            raise InvalidRequestError(msg)
    if len(examples) <= num_dev + num_test:
        msg = (
            f"{len(examples)} queries cannot be split into {num_dev} for dev, {num_test} for test "
            "and some to train on; make those smaller, or give more queries"
        )
        raise DatasetError(msg)
    groups = near_duplicates([example.query for example in examples])
    random.Random(seed).shuffle(groups)
    parts: dict[str, list[Example]] = {"test": [], "dev": [], "train": []}
    wanted = {"test": num_test, "dev": num_dev, "train": len(examples)}
    for group in groups:
        part = next(name for name in parts if len(parts[name]) < wanted[name])
        parts[part] += [examples[place] for place in group]
    num_twins = sum(len(group) for group in groups if len(group) > 1)
    made = Splits(train=parts["train"], dev=parts["dev"], test=parts["test"], num_twins=num_twins)
    check_leaks(made)
    return made


def without_leaks(splits: Splits) -> Splits:
    """Take out of training what has a twin in dev or test, and out of dev what has one in test."""
    dev = _without(splits.dev, splits.test)
    train = _without(splits.train, [*dev, *splits.test])
    num_out = len(splits.dev) - len(dev) + len(splits.train) - len(train)
    made = Splits(train=train, dev=dev, test=splits.test, num_twins=num_out)
    check_leaks(made)
    return made


def check_leaks(splits: Splits) -> None:
    """Raise DatasetError if a query, or a near-duplicate of it, is in two splits."""
    owners: list[tuple[str, str]] = [
        (name, example.query) for name, part in splits.named().items() for example in part
    ]
    for group in near_duplicates([query for _, query in owners]):
        names = {owners[place][0] for place in group}
        if len(names) > 1:
            shown = " and ".join(f"{owners[place][1]!r} in {owners[place][0]}" for place in group)
            msg = f"the splits leak, as these queries have nearly the same words: {shown[:500]}"
            raise DatasetError(msg)


def near_duplicates(queries: Sequence[str]) -> list[list[int]]:
    """Group queries with nearly the same words; the groups' members by their places.

    Twins are found by prefix filtering (Chaudhuri, Ganti and Kaushik, 2006): two sets as alike as
    `SIMILARITY` share one of the few rarest words of either. A group holds whoever is linked by a
    chain of twins.

    Returns:
        Groups in the order of their first members; most hold one query.
    """
    sets = [frozenset(_words(query)) for query in queries]
    frequency = Counter(word for words in sets for word in words)
    owner = list(range(len(queries)))
    by_word: dict[str, list[int]] = {}
    for place, words in enumerate(sets):
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        prefix = rarest[: len(rarest) - math.ceil(SIMILARITY * len(rarest)) + 1]
        for other in {other for word in prefix for other in by_word.get(word, ())}:
            if _is_alike(words, sets[other]):
                owner[_root(owner, place)] = _root(owner, other)
        for word in prefix:
            by_word.setdefault(word, []).append(place)
    groups: dict[int, list[int]] = {}
    for place in range(len(queries)):
        groups.setdefault(_root(owner, place), []).append(place)
    return sorted(groups.values())


def _words(query: str) -> Iterable[str]:
    # A query of punctuation alone is its own only word.
    return normalise(query).split() or [query]


def _is_alike(first: frozenset[str], second: frozenset[str]) -> bool:
    return len(first & second) >= SIMILARITY * len(first | second)


def _root(owner: list[int], place: int) -> int:
    while owner[place] != place:
        owner[place] = owner[owner[place]]
        place = owner[place]
    return place


def _without(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    count = len(examples)
    groups = near_duplicates([example.query for example in [*examples, *others]])
    out = {
        place
        for group in groups
        if any(place >= count for place in group)
        for place in group
        if place < count
    }
    return [example for place, example in enumerate(examples) if place not in out]


def sizes(splits: Splits) -> Mapping[str, int]:
    """Return how many queries each has."""
    return {name: len(part) for name, part in splits.named().items()}
