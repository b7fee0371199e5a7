"""From files, BEIR folders, HotpotQA and bare queries to splits and a test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.models.wheel import PinnedWheel
from sie_core.training.mining import Mining
from sie_core.training.preparation import (
    OWN,
    Retrieving,
    Sizes,
    load_unjudged,
    prepare_beir,
    prepare_collections,
    prepare_file,
    prepare_hotpotqa,
)
from tests.evaluation.conftest import make_wheel, records  # noqa: F401  fixtures
from tests.training.conftest import toy_examples, write_lists

NUM_QUERIES = 30


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write records as JSONL."""
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A folder in BEIR's layout: each query's answer has its number, others nearly so."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{i}-{kind}", "title": f"topic{i}", "text": f"{kind} words"}
        for i in range(NUM_QUERIES)
        for kind in ("answer", "other", "third")
    ]
    write_jsonl(folder / "corpus.jsonl", documents)
    queries = [{"_id": f"q{i}", "text": f"topic{i} question{i}"} for i in range(NUM_QUERIES)]
    write_jsonl(folder / "queries.jsonl", queries)
    return folder


def judge(folder: Path, split: str, numbers: range, *, kind: str = "answer") -> None:
    """Write a split's judgements."""
    rows = [f"q{i}\td{i}-{kind}\t1" for i in numbers]
    text = "query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n"
    (folder / "qrels" / f"{split}.tsv").write_text(text)


@pytest.fixture
def prepare(beir: Path, tmp_path: Path) -> Callable[..., Any]:
    """Prepare that folder."""

    def start(**options: Any) -> Any:
        chosen = {
            "sizes": Sizes(dev=5, test=10),
            "mining": Mining(num_negatives=1),
            "retrieving": Retrieving(folder=tmp_path / "work", depth=3),
        }
        return prepare_beir(beir, **(chosen | options))

    return start


def test_one_judged_split_is_split_by_query(beir: Path, prepare: Callable[..., Any]) -> None:
    """Negatives are mined for training and dev; the test keeps its corpus and judgements."""
    judge(beir, "test", range(NUM_QUERIES))
    made = prepare()
    assert [len(part) for part in made.splits.named().values()] == [15, 5, 10]
    for example in [*made.splits.train, *made.splits.dev]:
        topic = example.query.split()[0]
        assert [one.text for one in example.relevant] == [f"{topic} answer words"]
        [negative] = example.irrelevant
        assert negative.text.startswith(f"{topic} ")
    assert made.test.first_stage == "bm25"
    assert len(list(made.test.collection.read_documents())) == 3 * NUM_QUERIES
    query = made.splits.test[0].query
    number = query.split()[0].removeprefix("topic")
    assert made.test.collection.qrels[query] == {f"d{number}-answer": 1}


def test_a_folders_own_splits_are_kept(beir: Path, prepare: Callable[..., Any]) -> None:
    """A query of test that training has too is taken out of training."""
    judge(beir, "train", range(20))
    judge(beir, "dev", range(16, 22))
    judge(beir, "test", range(20, NUM_QUERIES), kind="other")
    made = prepare()
    topics = {
        name: {int(one.query.split()[0].removeprefix("topic")) for one in part}
        for name, part in made.splits.named().items()
    }
    assert topics == {
        "train": set(range(16)),
        "dev": set(range(16, 20)),
        "test": set(range(20, NUM_QUERIES)),
    }
    # A query that dev has too is judged as the test's own file says.
    assert made.test.collection.qrels["topic20 question20"] == {"d20-other": 1}
    smaller = prepare(sizes=Sizes(dev=2, test=3), retrieving=Retrieving(folder=beir, depth=3))
    assert [len(part) for part in smaller.splits.named().values()][1:] == [2, 3]


def test_the_number_of_training_queries_is_bounded(beir: Path, prepare: Callable[..., Any]) -> None:
    """The others are not mined for."""
    judge(beir, "test", range(NUM_QUERIES))
    made = prepare(sizes=Sizes(train=4, dev=5, test=10))
    assert len(made.splits.train) == 4


def test_bare_queries_are_judged_by_the_teacher(beir: Path, tmp_path: Path) -> None:
    """Also those of the test, and that is said."""

    def teach(query: str, texts: Sequence[str]) -> list[float]:
        del query
        return [3.0 if "answer" in text else -3.0 for text in texts]

    collection = load_unjudged(corpus=beir / "corpus.jsonl", queries=beir / "queries.jsonl")
    retrieving = Retrieving(folder=tmp_path / "work", depth=3)
    made = prepare_collections(
        {"train": collection},
        sizes=Sizes(dev=5, test=10),
        mining=Mining(),
        retrieving=retrieving,
        teacher=teach,
    )
    assert [len(part) for part in made.splits.named().values()] == [15, 5, 10]
    assert made.test.first_stage == OWN
    assert any("judged by the teacher" in note for note in made.notes)
    with pytest.raises(InvalidRequestError, match="name a teacher"):
        prepare_collections(
            {"train": collection},
            sizes=Sizes(dev=5, test=10),
            mining=Mining(),
            retrieving=Retrieving(folder=tmp_path / "again", depth=3),
        )


def test_a_file_is_split_and_tested_on_its_own_documents(tmp_path: Path) -> None:
    """In an order that tells nothing of what is relevant."""
    path = write_lists(tmp_path / "toy.jsonl", toy_examples(40))
    made = prepare_file(path, sizes=Sizes(dev=10, test=20))
    assert made.test.first_stage == OWN
    assert made.test.own is not None
    firsts = [
        made.test.collection.qrels[query][documents[0][0]] > 0
        for query, documents in made.test.own.items()
    ]
    assert 0 < sum(firsts) < 20
    again = prepare_file(path, sizes=Sizes(dev=10, test=20))
    assert again.test.own == made.test.own


def test_files_that_are_split_already_are_checked_for_leaks(tmp_path: Path) -> None:
    """What training shares with the test is left out of training, and counted."""
    examples = toy_examples(30)
    files = [
        write_lists(tmp_path / f"{name}.jsonl", part)
        for name, part in (
            ("train", examples[:22]),
            ("dev", examples[18:24]),
            ("test", examples[20:]),
        )
    ]
    made = prepare_file(files[0], dev=files[1], test=files[2], sizes=Sizes())
    assert [len(part) for part in made.splits.named().values()] == [18, 2, 10]
    assert "8 queries have a near-duplicate" in made.notes


def test_pairs_without_negatives_get_other_queries_documents(tmp_path: Path) -> None:
    """Questions and answers alone are enough to begin with; it is said what was done."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": f"alpha{i} beta{i}", "answer": f"answer {i}"} for i in range(30)]
    write_jsonl(path, [*rows, {"question": "no answer", "text": "x", "label": 0}])
    made = prepare_file(path, sizes=Sizes(dev=5, test=10))
    assert [len(part) for part in made.splits.named().values()] == [15, 5, 10]
    for example in made.splits.train:
        assert len(example.relevant) == 1
        assert len(example.irrelevant) == 9
    assert any("31 queries have documents of one kind only" in note for note in made.notes)
    assert any("1 queries have no document that answers them" in note for note in made.notes)


def test_hotpotqa_teaches_by_own_paragraphs_and_tests_in_a_pool(
    make_wheel: Callable[[object], PinnedWheel],  # noqa: F811
    records: list[dict[str, Any]],  # noqa: F811
    tmp_path: Path,
) -> None:
    """As `sie eval --dataset hotpotqa` has its candidates."""
    for place, record in enumerate(records):
        record = dict(record, question=f"word{place} name{place} thing{place}")  # noqa: PLW2901
        records[place] = record
    wheel = make_wheel(records)
    sizes = Sizes(train=10, dev=4, test=6)
    made = prepare_hotpotqa(sizes=sizes, cache_dir=tmp_path, wheel=wheel)
    assert [len(part) for part in made.splits.named().values()] == [10, 4, 6]
    assert all(len(one.relevant) == 2 and len(one.irrelevant) == 1 for one in made.splits.train)
    assert made.splits.train[0].documents[0].text == "Paris Paris is a city. It has a tower."
    assert made.test.first_stage == "bm25"
    assert made.test.collection.num_documents == 6 + 2  # each city once, Berlin and Paris once


def test_too_little_data_says_what_is_empty(beir: Path, prepare: Callable[..., Any]) -> None:
    """Sizes and reasons are in the message."""
    judge(beir, "test", range(10))
    with pytest.raises(DatasetError, match="10 queries cannot be split into 5 for dev, 10 for"):
        prepare()
