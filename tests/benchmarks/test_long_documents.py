"""Needles in haystacks: made as they are said to be, and found by passages."""

from __future__ import annotations

import random
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from sie_core import LocalClient
from sie_core.settings import DEFAULT_MODEL, SourceSettings

if TYPE_CHECKING:
    from long_documents import Haystack

WORDS = (files("sie_core.evaluation") / "words.txt").read_text("utf-8").split()


def haystack_of(tokenizer: Tokenizer) -> Haystack:
    """Make one of random words."""
    from long_documents import Haystack

    rng = random.Random(3)
    return Haystack([" ".join(rng.choices(WORDS, k=80)) + "." for _ in range(50)], tokenizer)


def test_a_case_is_the_same_every_time_and_has_its_answer_once(tiny_tokenizer: Tokenizer) -> None:
    """The answer is where the case says, and in no other document."""
    from long_documents import make_case

    haystack = haystack_of(tiny_tokenizer)
    places = []
    for number in range(12):
        case = make_case(haystack, number, num_documents=3, num_tokens=400)
        assert case == make_case(haystack, number, num_documents=3, num_tokens=400)
        text = case.documents[case.right]
        answer = text[slice(*case.span)]
        assert sum(document.count(answer) for document in case.documents) == 1
        for document in case.documents:
            assert abs(len(tiny_tokenizer.encode(document).ids) - 400) < 12
        places.append(case.span[0] / len(text))
    assert min(places) < 0.3
    assert max(places) > 0.7


def test_outcomes_are_summed_up_for_each_handling() -> None:
    """Shares and counts."""
    from long_documents import rows_of

    def outcome(handling: str, *, is_right: bool) -> dict[str, object]:
        return {
            "handling": handling,
            "is_right": is_right,
            "holds_answer": is_right,
            "tokens": 10,
            "seconds": 1.0,
        }

    rows = rows_of(
        [
            outcome("truncate", is_right=False),
            outcome("truncate", is_right=True),
            outcome("max_passage", is_right=True),
        ]
    )
    assert [(row["long_documents"], row["share"], row["cases"]) for row in rows] == [
        ("truncate", 0.5, 2),
        ("max_passage", 1.0, 1),
    ]


@pytest.mark.weights
def test_the_right_document_is_first_by_its_best_passage() -> None:
    """Four cases of 1,500 tokens with the default model; cut documents do not tell."""
    from long_documents import PASSAGE_LENGTH, make_case, score_case

    from sie_core.models.sources import resolve

    folder = resolve(DEFAULT_MODEL, SourceSettings()).folder
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    haystack = haystack_of(tokenizer)
    client = LocalClient()
    cases = [make_case(haystack, n, num_documents=3, num_tokens=1500) for n in range(4)]
    found = [
        score_case(client, str(folder), case, "max_passage", passage_length=PASSAGE_LENGTH)
        for case in cases
    ]
    assert [outcome["is_right"] for outcome in found] == [True] * 4
    assert sum(outcome["holds_answer"] for outcome in found) >= 3  # a part of it may do as well
    cut = [score_case(client, str(folder), case, "truncate") for case in cases]
    assert sum(outcome["is_right"] for outcome in cut) < len(cases)
