from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sie_core import Reranker
from sie_core.distributed import list_ranker
from sie_core.distributed.columns import Columns
from sie_core.distributed.list_ranker import ListRanker
from sie_core.errors import ModelNotFoundError, SIEConnectionError


@pytest.fixture(scope="module")
def reranker(tiny_bert: Path) -> Reranker:
    """Of a tiny model."""
    return Reranker(str(tiny_bert))


def test_a_row_s_ranking_is_that_of_rerank(reranker: Reranker) -> None:
    """Order and scores, whatever else is ranked with it."""
    documents = ["the river", "a banana is yellow", "the city of berlin"]
    rows = ListRanker(reranker, Columns()).rank(
        ["berlin", "a fruit"], [documents, [*documents, None]]
    )
    for query, row in zip(["berlin", "a fruit"], rows, strict=True):
        expected = reranker.rerank(query, documents)
        assert row.ranking is not None
        assert [entry["index"] for entry in row.ranking[:3]] == [it.index for it in expected]
        assert [entry["score"] for entry in row.ranking[:3]] == pytest.approx(
            [it.score for it in expected], abs=1e-5
        )
        assert (row.status, row.reason, row.num_scored) == ("complete", None, 3)
    assert rows[1].ranking is not None
    assert rows[1].ranking[3] == {"index": 3, "score": None}


def test_ids_go_into_the_ranking(reranker: Reranker) -> None:
    """Each entry has its own candidate's; None where that has none."""
    candidates: list[Any] = [{"id": 7, "text": "the river"}, {"text": "berlin"}, "a city"]
    [row] = ListRanker(reranker, Columns(id="id")).rank(["berlin"], [candidates])
    assert row.ranking is not None
    assert {entry["index"]: entry["id"] for entry in row.ranking} == {0: 7, 1: None, 2: None}


@pytest.mark.parametrize(
    ("query", "documents", "reason"),
    [
        (None, ["a"], "the query must be a text, but is NoneType: None"),
        ("  ", ["a"], "query must"),
        ("q", None, "the documents must be a list, but are NoneType: None"),
        ("q", "a text", "the documents must be a list, but are str: 'a text'"),
        ("q", [{"title": "t"}], "a candidate has no one of text"),
    ],
)
def test_a_row_that_cannot_be_ranked_fails_alone(
    reranker: Reranker, query: Any, documents: Any, reason: str
) -> None:
    """It says why, and the others are ranked."""
    rows = ListRanker(reranker, Columns()).rank(
        ["berlin", query, "paris"], [["a city"], documents, ["a tower", "a river"]]
    )
    assert [row.status for row in rows] == ["complete", "failed", "complete"]
    assert rows[1].ranking is None
    assert rows[1].reason is not None
    assert rows[1].reason.startswith(reason)
    assert rows[2].ranking is not None
    assert len(rows[2].ranking) == 2


def test_a_row_without_candidates_is_ranked(reranker: Reranker) -> None:
    """There is nothing to order, which is no failure."""
    [row] = ListRanker(reranker, Columns()).rank(["berlin"], [[]])
    assert (row.status, row.ranking) == ("complete", [])


def test_a_model_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    """It would be every row's reason."""
    ranker = ListRanker(Reranker(str(tmp_path / "none")), Columns())
    with pytest.raises(ModelNotFoundError):
        ranker.rank(["berlin"], [["a city"]])


class Failing:
    """A client whose server is gone; it counts the calls."""

    num_calls = 0

    def score(self, *_: Any, **__: Any) -> Any:
        """Fail."""
        self.num_calls += 1
        msg = "nobody is there"
        raise SIEConnectionError(msg)


def test_what_fails_for_all_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or for as many calls as are under way: each may wait for minutes."""
    monkeypatch.setattr(list_ranker, "_PAIRS_PER_CALL", 1)
    client = Failing()
    ranker = ListRanker(Reranker("m", client=client), Columns())
    with pytest.raises(SIEConnectionError):
        ranker.rank(["berlin"] * 100, [["a city"]] * 100)
    assert client.num_calls <= 10


def test_many_rows_are_several_calls(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is split into calls is put together again in order, a row longer than a call too."""
    monkeypatch.setattr(list_ranker, "_PAIRS_PER_CALL", 4)
    lists = [[f"document {i} {j}" for j in range(i % 7)] for i in range(20)]
    rows = ListRanker(reranker, Columns()).rank([f"query {i}" for i in range(20)], lists)
    assert [len(row.ranking or []) for row in rows] == [i % 7 for i in range(20)]
    whole = reranker.rerank("query 6", lists[6])
    assert rows[6].ranking is not None
    assert rows[6].ranking[0]["index"] == whole.entries[0].index
