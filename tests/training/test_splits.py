"""Splits by query that do not leak."""

from __future__ import annotations

import random

import pytest

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.training.example import Example, Judged
from sie_core.training.splits import (
    SIMILARITY,
    Splits,
    check_leaks,
    near_duplicates,
    normalise,
    split,
    without_leaks,
)


def example(query: str, *texts: str) -> Example:
    """Make an example whose first document is the answer."""
    labelled = [Judged(text=text, label=float(i == 0)) for i, text in enumerate(texts)]
    return Example(query=query, documents=tuple(labelled))


def numbered(count: int) -> list[Example]:
    """Make examples that share no word."""
    return [
        example(f"alpha{i} beta{i} gamma{i}", f"answer {i}", f"other {i}") for i in range(count)
    ]


def test_every_query_is_in_one_split() -> None:
    """And the sizes are those asked for."""
    made = split(numbered(50), num_dev=7, num_test=11, seed=0)
    assert [len(part) for part in made.named().values()] == [32, 7, 11]
    assert len({one.query for part in made.named().values() for one in part}) == 50


def test_the_seed_decides() -> None:
    """The same one gives the same splits."""
    first, again, other = (
        split(numbered(50), num_dev=7, num_test=11, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first.test != other.test


def test_twins_stay_together() -> None:
    """Case, punctuation, spaces and one word among many make no other query."""
    base = "which river flows through the old city of berlin"
    twins = [
        base,
        "Which river flows through the OLD city of Berlin?",
        "which  river flows  through the old city of, berlin!",
        "which river flows through the big old city of berlin",
    ]
    queries = [*(example(query, "a", "b") for query in twins), *numbered(40)]
    for seed in range(10):
        made = split(queries, num_dev=5, num_test=5, seed=seed)
        homes = [
            name for name, part in made.named().items() if any(one.query in twins for one in part)
        ]
        assert len(homes) == 1
        assert made.num_twins == 4


def test_near_duplicates_are_those_of_comparing_all_pairs() -> None:
    """Prefix filtering misses none and adds none."""
    dice = random.Random(5)
    words = [f"w{i}" for i in range(30)]
    queries = [" ".join(dice.sample(words, dice.randint(1, 9))) for _ in range(150)]
    for query in list(queries[:60]):
        kept = query.split()
        dice.shuffle(kept)
        queries.append(" ".join(kept[: max(1, len(kept) - dice.randint(0, 2))]))
    expected = _by_comparing_all(queries)
    assert near_duplicates(queries) == expected
    assert any(len(group) > 1 for group in expected)


def _by_comparing_all(queries: list[str]) -> list[list[int]]:
    sets = [set(query.split()) for query in queries]
    groups = [{place} for place in range(len(queries))]
    for i, first in enumerate(sets):
        for j in range(i):
            if len(first & sets[j]) >= SIMILARITY * len(first | sets[j]):
                merged = groups[i] | groups[j]
                for place in merged:
                    groups[place] = merged
    return sorted({tuple(sorted(group)): sorted(group) for group in groups}.values())


def test_scripts_without_spaces_are_compared_by_character() -> None:
    """Otherwise a Chinese question would be one word, like no other."""
    first, second = "柏林有多少人口和多少座博物馆呢", "柏林有多少人口和多少座博物馆"
    assert normalise("柏林?") == "柏 林"
    assert near_duplicates([first, second, "巴黎铁塔"]) == [[0, 1], [2]]


def test_queries_of_punctuation_alone_are_not_all_alike() -> None:
    """They have no words to compare."""
    assert near_duplicates(["???", "!!!", "???"]) == [[0, 2], [1]]


def test_a_leak_is_an_error_that_shows_it() -> None:
    """Whoever makes splits is checked."""
    leaking = Splits(
        train=[example("Who built the tower?", "a")],
        dev=[example("where is it", "b")],
        test=[example("who built the tower", "c")],
    )
    with pytest.raises(DatasetError, match=r"'Who built the tower\?' in train and 'who built"):
        check_leaks(leaking)


def test_given_splits_lose_what_would_leak() -> None:
    """The test split stays whole; training gives way, then dev."""
    train = [example("who built the tower", "a"), example("where is the museum", "b")]
    dev = [example("Who built the tower?", "a"), example("how tall is it really", "c")]
    test = [example("who built THE tower", "a")]
    made = without_leaks(Splits(train=train, dev=dev, test=test))
    assert list(made.train) == train[1:]
    assert list(made.dev) == dev[1:]
    assert list(made.test) == test
    assert made.num_twins == 2


def test_shared_documents_are_counted_and_said() -> None:
    """They are no leak by themselves: a corpus is searched for every query."""
    made = Splits(
        train=[example("one", "shared", "x")],
        dev=[example("two", "y")],
        test=[example("three", "shared", "z")],
    )
    assert made.shared_documents(made.test) == (1, 2)
    assert "1 of the test split's 2 documents are in the training split too" in made.describe()


def test_too_few_queries_are_an_error() -> None:
    """Something must be left to learn from."""
    with pytest.raises(DatasetError, match="12 queries cannot be split into 6 for dev, 6 for test"):
        split(numbered(12), num_dev=6, num_test=6, seed=0)
    with pytest.raises(InvalidRequestError, match="the test split must have at least 1"):
        split(numbered(12), num_dev=6, num_test=0, seed=0)
