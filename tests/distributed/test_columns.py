from __future__ import annotations

from typing import Any

import pytest

from sie_core.distributed.columns import Columns
from sie_core.errors import InvalidRequestError


def test_names_of_what_is_added_follow_one_name() -> None:
    """So that rankings of two models can stand in one row."""
    assert Columns(ranking="second").added == ("second", "second_status", "second_reason")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["documents"], r"no column 'query' for the query; its columns are: documents"),
        (["query", "text"], r"no column 'documents' for the documents"),
        (["query", "documents", "ranking"], r"has a column 'ranking' already"),
        (["query", "documents", "ranking_reason"], r"has a column 'ranking_reason' already"),
    ],
)
def test_missing_and_taken_columns_are_errors(names: list[str], message: str) -> None:
    """They name what there is."""
    with pytest.raises(InvalidRequestError, match=message):
        Columns().check(names, "lists.jsonl")


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        ("a text", "a text"),
        (None, None),
        ({"text": "t", "content": "c"}, "t"),
        ({"content": "c"}, "c"),
        ({"text": None}, None),
    ],
)
def test_text_of_a_candidate(candidate: Any, text: str | None) -> None:
    """A text is itself; a record has it under one of the usual keys."""
    assert Columns().text_of(candidate) == text


@pytest.mark.parametrize(
    ("columns", "candidate", "message"),
    [
        (Columns(), {"title": "t"}, "no one of text, content, page_content, passage, but: title"),
        (Columns(text="body"), {"text": "t"}, "has no 'body', but: text"),
        (Columns(), {"text": 3}, "'text' must be a text, but is int: 3"),
        (Columns(), 3, "must be a text or a record, but is int: 3"),
    ],
)
def test_a_candidate_without_a_telling_text_is_an_error(
    columns: Columns, candidate: Any, message: str
) -> None:
    """A guess would rank by something else."""
    with pytest.raises(InvalidRequestError, match=message):
        columns.text_of(candidate)
