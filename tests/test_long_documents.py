"""Long documents over the wire: options that travel, and servers that do not know them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from sie_core import Item, LocalClient, Reranker, SIEClient
from sie_core.errors import InvalidRequestError
from sie_core.long_documents import LongDocuments, check_confirmed
from sie_core.settings import RemoteSettings

QUERY = "how many people live in berlin"
TEXTS = ["river " * 200 + "people of berlin", "berlin museum", "museum " * 300, "the band " * 99]
OPTIONS = {"long_documents": "max_passage", "passage_overlap": 16, "score_space": "raw"}


class Forgetful:
    """A client of a server that does not know the option, and says nothing of it."""

    def score(self, model: str, query: Item, items: list[Item], **_: Any) -> Mapping[str, Any]:
        return {
            "model": model,
            "query_id": query.get("id"),
            "scores": [
                {"item_id": item["id"], "score": -float(i), "rank": i}
                for i, item in enumerate(items)
            ],
        }


def items(texts: list[str]) -> list[Item]:
    """Make items without ids."""
    return [Item(text=text) for text in texts]


@pytest.mark.parametrize("max_items", [512, 1])
def test_our_server_answers_as_the_model_in_this_process(
    sie_server: str, tiny_bert: Any, max_items: int
) -> None:
    """Scores, places and counts; also where a call is split into several requests."""
    local = LocalClient().score(str(tiny_bert), Item(text=QUERY), items(TEXTS), options=OPTIONS)
    with SIEClient(sie_server, settings=RemoteSettings(max_items=max_items)) as client:
        remote = client.score("test/tiny-bert", Item(text=QUERY), items(TEXTS), options=OPTIONS)
    assert remote["long_documents"] == "max_passage"
    assert remote["usage"]["passages"] == local["usage"]["passages"]
    spans = {entry["item_id"]: entry.get("span") for entry in local["scores"]}
    assert {entry["item_id"]: entry.get("span") for entry in remote["scores"]} == spans
    assert sum(span is not None for span in spans.values()) == 3
    scores = {entry["item_id"]: entry["score"] for entry in local["scores"]}
    assert {entry["item_id"]: entry["score"] for entry in remote["scores"]} == pytest.approx(
        scores, abs=0.05
    )


@pytest.mark.parametrize("how", ["max_passage", "error"])
def test_a_backend_that_says_nothing_is_refused(how: Any) -> None:
    """It would have cut long documents silently; truncation needs no word of it."""
    reranker = Reranker(client=Forgetful(), long_documents=how)
    with pytest.raises(InvalidRequestError, match=f"long_documents='{how}' was asked for, but the"):
        reranker.rerank(QUERY, TEXTS)
    with pytest.raises(InvalidRequestError, match="does not say that it did so"):
        asyncio.run(reranker.arerank(QUERY, TEXTS))
    assert len(reranker.rerank(QUERY, TEXTS, long_documents="truncate")) == 4
    assert len(reranker.rerank(QUERY, [])) == 0
    assert len(Reranker(client=Forgetful()).rerank(QUERY, TEXTS)) == 4


def test_options_say_what_was_given_and_no_more() -> None:
    """Sizes travel with max_passage only, so that a call may override the constructor's choice."""
    sizes = {"passage_overlap": 8, "max_passages": 2}
    assert LongDocuments(how="max_passage", **sizes).as_options() == {
        "long_documents": "max_passage",
        **sizes,
    }
    assert LongDocuments(how="error", **sizes).as_options() == {"long_documents": "error"}
    assert LongDocuments(**sizes).as_options() == {}


def test_another_handling_than_asked_for_is_named() -> None:
    """The message says both."""
    reply = {"scores": [{}], "long_documents": "truncate"}
    with pytest.raises(InvalidRequestError, match="but the backend says 'truncate'"):
        check_confirmed({"long_documents": "max_passage"}, reply)


def test_a_call_decides_for_itself(tiny_bert: Any) -> None:
    """The constructor's choice stands where a call makes none."""
    reranker = Reranker(str(tiny_bert), long_documents="max_passage", passage_overlap=16)
    ranking = reranker.rerank(QUERY, TEXTS)
    assert {entry.index for entry in ranking if entry.span is not None} == {0, 2, 3}
    assert ranking.usage["passages"] == 8
    assert ranking.usage["truncated_items"] == 0
    cut = reranker.rerank(QUERY, TEXTS, long_documents="truncate")
    assert all(entry.span is None for entry in cut)
    assert cut.usage["truncated_items"] == 3
    with pytest.raises(InvalidRequestError, match="long_documents must be"):
        reranker.rerank(QUERY, TEXTS, long_documents="split")  # type: ignore[arg-type]


def test_kept_scores_have_their_places(tiny_bert: Any) -> None:
    """A score from the cache is that of the same handling, with the place of the best passage."""
    reranker = Reranker(str(tiny_bert), score_cache=2**20, long_documents="max_passage")
    first, second = reranker.rerank(QUERY, TEXTS), reranker.rerank(QUERY, TEXTS)
    assert second.num_cached == 4
    assert second.entries == first.entries
    cut = reranker.rerank(QUERY, TEXTS, long_documents="truncate")
    assert cut.num_cached == 0
    assert all(entry.span is None for entry in cut)


def test_the_stages_of_a_cascade_handle_long_documents_alike(
    tiny_bert: Any, tiny_xlmr: Any
) -> None:
    """A cheap model that cuts what the costly one reads whole would throw the best away."""
    reranker = Reranker(str(tiny_xlmr), cascade=[(str(tiny_bert), 2)], long_documents="max_passage")
    ranking = reranker.rerank(QUERY, TEXTS)
    cheap = Reranker(str(tiny_bert), long_documents="max_passage").rerank(QUERY, TEXTS)
    best = {entry.index for entry in cheap.entries[:2]}
    assert {entry.index for entry in ranking if entry.score is not None} == best
