"""Several queries at once: shared batches, answers in order, and who fails."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sie_core import Item, LocalAsyncClient, LocalClient, Reranker
from sie_core.errors import InvalidRequestError, ServerError
from sie_core.pace import cost_of, pace_of
from sie_core.ranking import Ranking

DOCUMENTS = ["museum of berlin", "paris", "a river", "language of the tower"]


def _queries(num: int) -> list[tuple[str, list[str]]]:
    return [(f"berlin {i}", DOCUMENTS[: 1 + i % 4]) for i in range(num)]


def _scores(ranking: Ranking) -> dict[int, float | None]:
    return {entry.index: entry.score for entry in ranking}


@pytest.fixture(params=["own", "given", "chain"])
def reranker(request: pytest.FixtureRequest, tiny_bert: Path) -> Reranker:
    """Rerankers of one model: with a client of its own, a given one, and a fallback."""
    model = str(tiny_bert)
    if request.param == "own":
        return Reranker(model)
    if request.param == "given":
        client = LocalClient()
        return Reranker(model, client=client, async_client=LocalAsyncClient(client))
    return Reranker(model, base_url="http://127.0.0.1:9", fallback="local")


def test_each_query_gets_its_own_ranking(reranker: Reranker) -> None:
    """In the order of the queries, sync and async, with the scores that it has alone."""
    queries = _queries(30)
    alone = [reranker.rerank(*query) for query in queries]
    for rankings in (reranker.rank_many(queries), asyncio.run(reranker.arank_many(queries))):
        assert len(rankings) == len(alone)
        for ranking, expected in zip(rankings, alone, strict=True):
            assert _scores(ranking) == pytest.approx(_scores(expected), abs=2e-2)
    assert reranker.rank_many([]) == []


@pytest.mark.usefixtures("released")
def test_all_queries_share_batches(tiny_bert: Path) -> None:
    """Forty queries of a few short documents take far fewer batches than queries."""
    from sie_core.local.registry import REGISTRY

    with Reranker(str(tiny_bert), num_threads=1) as reranker:
        reranker.warm_up()
        [loaded] = REGISTRY.loaded().values()
        begun = loaded.scheduler.stats().num_batches
        queries = _queries(40)
        reranker.rank_many(queries)
        num_batches = loaded.scheduler.stats().num_batches - begun
    assert num_batches < len(queries)


def test_settings_hold_for_each_query(tiny_bert: Path) -> None:
    """top_k cuts each ranking; retrieval scores go with their own query."""
    reranker = Reranker(str(tiny_bert))
    queries = [("berlin", DOCUMENTS), ("paris", DOCUMENTS[:2])]
    assert [len(it) for it in reranker.rank_many(queries, top_k=2)] == [2, 2]
    fused = reranker.rank_many(
        queries, fuse_retrieval_score=1.0, retrieval_scores=[[1.0, 2.0, 3.0, 4.0], [2.0, 1.0]]
    )
    assert [[entry.index for entry in it] for it in fused] == [[3, 2, 1, 0], [0, 1]]
    with pytest.raises(InvalidRequestError, match="1 lists for 2 queries"):
        reranker.rank_many(queries, retrieval_scores=[[1.0] * 4])
    with pytest.raises(TypeError, match="top_n"):
        reranker.rank_many(queries, top_n=2)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "wrong", ["q", {"q": ["d"]}, [("q",)], ["qd"], [("q", "text")], [("q", ["d"], 1)]]
)
def test_what_is_no_query_with_documents_is_refused(wrong: Any) -> None:
    """Before anything is computed; the error says which one it is."""
    with pytest.raises(InvalidRequestError):
        Reranker("/no/such/model").rank_many(wrong)


class Picky:
    """A client that refuses one query."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, model: str, query: Item, items: Sequence[Item], **_: Any) -> Mapping[str, Any]:
        self.asked.append(query["text"])
        if query["text"] == "bad":
            msg = "no"
            raise ServerError(msg)
        return {"model": model, "scores": [{"item_id": it["id"], "score": 1.0} for it in items]}


def test_the_first_error_is_raised_or_stands_in_its_place() -> None:
    """By default one failing query fails the call; else the others are ranked."""
    client = Picky()
    reranker = Reranker("m", client=client)
    queries = [("good", ["a"]), ("bad", ["a"]), ("good", ["a"]), (" ", ["a"])]
    with pytest.raises(InvalidRequestError, match="query must be") as refused:
        reranker.rank_many(queries)
    assert refused.value.__notes__ == ["in queries[3]"]
    assert client.asked == []
    with pytest.raises(ServerError, match="no"):
        reranker.rank_many(queries[:3])
    for mixed in (
        reranker.rank_many(queries, return_exceptions=True),
        asyncio.run(reranker.arank_many(queries, return_exceptions=True)),
    ):
        kinds = [type(it).__name__ for it in mixed]
        assert kinds == ["Ranking", "ServerError", "Ranking", "InvalidRequestError"]


def test_a_full_queue_is_waited_for(tiny_bert: Path) -> None:
    """More work than may wait is queued as room is made by this very call."""
    client = LocalClient(max_queued_tokens=64, num_threads=1)
    reranker = Reranker(str(tiny_bert), client=client)
    rankings = reranker.rank_many(_queries(60))
    assert [len(it) for it in rankings] == [len(documents) for _, documents in _queries(60)]


def test_queries_with_a_deadline_know_of_each_other(client: Any) -> None:
    """Of five queries each begins a fifth of what one alone would, as they share the machine."""
    documents = [f"paris {i:02d}" for i in range(90)]
    pace = pace_of("OverlapClient", "of five queries", "None")
    pace.observe(cost_of("berlin", documents[0], None), 0.2)
    reranker = Reranker("of five queries", client=client, max_latency_ms=10_000)
    reranker.rank_many([("berlin", documents)] * 5)
    first = [len(texts) for texts in client.texts[:5]]
    assert all(4 <= num <= 5 for num in first)


def test_a_deadline_holds_for_all_queries_together(tiny_bert: Path) -> None:
    """What is not scored when time is up is said in each ranking."""
    reranker = Reranker(str(tiny_bert))
    reranker.warm_up()
    queries = [(f"berlin {i}", ["river " * 200 + str(j) for j in range(300)]) for i in range(10)]
    rankings = reranker.rank_many(queries, max_latency_ms=60)
    assert {ranking.status for ranking in rankings} == {"partial"}
    assert all(len(ranking) == 300 for ranking in rankings)
