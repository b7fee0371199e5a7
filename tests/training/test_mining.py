"""Negatives out of what retrieval found, and a teacher who refuses some."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from sie_core.errors import InvalidRequestError
from sie_core.evaluation.collection import Document
from sie_core.evaluation.texts import TextStore
from sie_core.ranking import Ranking
from sie_core.reranker import Reranker
from sie_core.training.example import Example, Judged
from sie_core.training.mining import Mined, Mining, mine
from sie_core.training.teacher import Teacher, as_teacher, probability, taught

TEXTS = {
    "answer": "the answer",
    "likely": "nearly the answer",
    "hard": "about the same thing",
    "easy": "about something else",
    "copy": "about the same thing",
    "blank": "  ",
}
CANDIDATES = {"q": [(name, 9.0) for name in ("likely", "answer", "hard", "copy", "blank", "easy")]}


def logit(chance: float) -> float:
    """Return the logit of a probability."""
    return math.log(chance / (1 - chance))


CHANCES = {"the answer": 0.9, "nearly the answer": 0.8, "about the same thing": 0.6}


def teacher(query: str, texts: Sequence[str]) -> list[float]:
    """Be as sure as `CHANCES` says."""
    assert query == "question"
    return [logit(CHANCES.get(text, 0.01)) for text in texts]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TextStore]:
    """The corpus."""
    documents = [Document(name, text) for name, text in TEXTS.items()]
    with TextStore.build(tmp_path / "corpus.sqlite", documents) as made:
        yield made


def mined(
    store: TextStore,
    qrels: Mapping[str, Mapping[str, int]],
    by: Teacher | None = None,
    **settings: float,
) -> Mined:
    """Mine for the one query."""
    mining = Mining(**settings)  # type: ignore[arg-type]
    return mine({"q": "question"}, qrels, CANDIDATES, store, mining=mining, teacher=by)


def labels(made: Mined) -> dict[str, float]:
    """Return the one example's labels by text."""
    [example] = made.examples
    return {one.text: one.label for one in example.documents}


def test_without_a_teacher_what_is_found_and_not_judged_is_a_negative(store: TextStore) -> None:
    """In retrieval's order, each text once, and never a blank one."""
    made = mined(store, {"q": {"answer": 1}})
    assert list(labels(made)) == [TEXTS[name] for name in ("answer", "likely", "hard", "easy")]
    assert list(labels(made).values()) == [1, 0, 0, 0]


def test_the_first_so_many_are_kept(store: TextStore) -> None:
    """Retrieval's first are the hardest."""
    made = mined(store, {"q": {"answer": 1}}, num_negatives=1)
    assert labels(made) == {TEXTS["answer"]: 1, TEXTS["likely"]: 0}


def test_the_teacher_refuses_what_may_be_an_answer(store: TextStore) -> None:
    """0.8 is above 0.8 times 0.9, and 0.6 is not."""
    made = mined(store, {"q": {"answer": 1}}, teacher)
    assert labels(made) == {TEXTS["answer"]: 1, TEXTS["hard"]: 0, TEXTS["easy"]: 0}
    assert made.num_refused == 1
    strict = mined(store, {"q": {"answer": 1}}, teacher, max_ratio=0.5)
    assert labels(strict) == {TEXTS["answer"]: 1, TEXTS["easy"]: 0}
    assert strict.num_refused == 2


def test_the_teachers_scores_stay_for_distillation(store: TextStore) -> None:
    """As logits."""
    [example] = mined(store, {"q": {"answer": 1}}, teacher).examples
    assert example.has_teacher
    assert example.documents[0].teacher == pytest.approx(logit(0.9))


def test_judged_negatives_are_believed(store: TextStore) -> None:
    """Whatever the teacher says of them; and they come before those that were found."""
    made = mined(store, {"q": {"likely": 0, "answer": 2, "hard": 1}}, teacher)
    assert labels(made)[TEXTS["likely"]] == 0
    assert labels(made)[TEXTS["hard"]] == 0.5  # a grade of 1 where the highest is 2


def test_what_reads_as_an_answer_is_no_negative_under_another_id(store: TextStore) -> None:
    """With a teacher, who is not asked about it twice, or without one."""
    for by in (None, teacher):
        made = mined(store, {"q": {"hard": 1}}, by)  # `copy` has the same text
        [example] = made.examples
        assert [one.label for one in example.documents if one.text == TEXTS["hard"]] == [1]
        assert [one.text for one in example.documents].count(TEXTS["hard"]) == 1


def test_where_nobody_judged_the_teacher_names_the_answer(store: TextStore) -> None:
    """Its first, if it is sure enough; else the query is left out."""
    made = mined(store, {}, teacher)
    assert labels(made) == {TEXTS["answer"]: 1, TEXTS["hard"]: 0, TEXTS["easy"]: 0}
    unsure = mined(store, {}, teacher, min_probability=0.95)
    assert not unsure.examples
    assert unsure.num_left_out == 1


def test_without_judgements_and_teacher_there_is_nothing_to_learn(store: TextStore) -> None:
    """The error names a query and the way out."""
    with pytest.raises(InvalidRequestError, match=r"1 queries .* 'question'; name a teacher"):
        mined(store, {})


def test_settings_are_checked() -> None:
    """By name and value."""
    with pytest.raises(InvalidRequestError, match="negatives must be at least 1, but got 0"):
        Mining(num_negatives=0)
    with pytest.raises(InvalidRequestError, match="max_ratio must be above 0"):
        Mining(max_ratio=1.5)


def test_a_teacher_is_asked_only_about_what_it_has_not_scored() -> None:
    """Scores that came with the data stay."""
    asked: list[str] = []

    def remember(query: str, texts: Sequence[str]) -> list[float]:
        asked.append(query)
        return [float(len(text)) for text in texts]

    scored = Example(query="old", documents=(Judged(text="a", label=1, teacher=7.0),))
    bare = Example(query="new", documents=(Judged(text="abc", label=1),))
    made = taught([scored, bare], remember)
    assert asked == ["new"]
    assert [one.documents[0].teacher for one in made] == [7.0, 3.0]


def test_a_reranker_teaches_by_its_raw_scores(tiny_bert: Path) -> None:
    """One for each text, in their order."""
    with Reranker(str(tiny_bert), mode="exact", device="cpu") as reranker:
        texts = ["berlin", "the museum is on the river", "banana"]
        found = as_teacher(reranker)("where", texts)
        ranking: Ranking = reranker.rerank("where", texts, score_space="raw")
    assert found == [
        next(entry.score for entry in ranking if entry.index == place) for place in range(3)
    ]


@pytest.mark.parametrize("score", [-800.0, -2.0, 0.0, 2.0, 800.0])
def test_probabilities_of_any_logit(score: float) -> None:
    """No overflow at either end."""
    assert probability(score) + probability(-score) == pytest.approx(1)
