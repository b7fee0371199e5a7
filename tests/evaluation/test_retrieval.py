"""The BM25 order."""

from __future__ import annotations

import pytest

from sie_core.evaluation.retrieval import bm25_order


def test_the_passage_with_the_querys_words_comes_first() -> None:
    """Rarer words count more, and stop words not at all."""
    passages = [
        "This is the of and in that is for it.",
        "Paris is a city with a tower.",
        "Berlin is a city with a museum.",
    ]
    order = bm25_order("what is the museum in the city of Berlin?", passages)
    assert order == [2, 1, 0]


def test_shorter_passages_win_at_equal_counts() -> None:
    """As BM25's length normalisation has it."""
    passages = ["museum among very many other different words", "museum here"]
    assert bm25_order("museum", passages) == [1, 0]


def test_equal_scores_keep_the_order_given() -> None:
    """So that the order is the same on every machine."""
    assert bm25_order("museum", ["tower"] * 3 + ["museum"] * 3) == [3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize("query", ["", "the of and", "zebra"])
def test_a_query_that_says_nothing_keeps_the_order_given(query: str) -> None:
    """Blank, stop words only, or no word in common."""
    assert bm25_order(query, ["a museum", "a tower"]) == [0, 1]


@pytest.mark.parametrize("passages", [[], [""], ["", "the"]])
def test_passages_that_say_nothing_keep_their_order(passages: list[str]) -> None:
    """An index of nothing is no error."""
    assert bm25_order("museum", passages) == list(range(len(passages)))


def test_an_empty_passage_comes_last() -> None:
    """It is kept all the same."""
    assert bm25_order("museum", ["", "tower", "museum"])[0] == 2
    assert sorted(bm25_order("museum", ["", "tower", "museum"])) == [0, 1, 2]
