"""`/rerank`, and Haystack's HuggingFaceTEIRanker against it, unmodified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.huggingface_api.ranker import TruncationDirection

from sie_core.local import LocalClient
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

QUERY = "what is python"
TEXTS = ["the weather is sunny today", "python is a programming language", "bananas are yellow"]
LONG = "a b c d " * 100


def expected(folder: Path, texts: list[str], space: str) -> list[dict[str, Any]]:
    """Score with the engine directly, and write that as such a server does."""
    items: list[Any] = [{"id": str(place), "text": text} for place, text in enumerate(texts)]
    result = LocalClient(mode="exact").score(
        str(folder), {"text": QUERY}, items, options={"score_space": space}
    )
    return [{"index": int(entry["item_id"]), "score": entry["score"]} for entry in result["scores"]]


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Compare rankings: the same places, and the same scores up to the batches' rounding."""
    scores = [rank["score"] for rank in wanted]
    return [rank["index"] for rank in found] == [rank["index"] for rank in wanted] and [
        rank["score"] for rank in found
    ] == pytest.approx(scores, abs=1e-6)


def post(server: Server, **body: Any) -> httpx.Response:
    """Ask for a ranking."""
    return httpx.post(f"{server.url}/rerank", json={"query": QUERY, "texts": TEXTS} | body)


def test_texts_are_ranked_by_the_first_model_that_scores(
    serve: Callable[..., Server], tiny_embedder: Path, tiny_xlmr: Path, tiny_bert: Path
) -> None:
    """Another one answers where it is named; a server that has none says so."""
    embedder, xlmr, bert = (
        ModelSettings(name=folder.name, source=str(folder))
        for folder in (tiny_embedder, tiny_xlmr, tiny_bert)
    )
    server = serve(models=(embedder, xlmr, bert))
    assert same(post(server).json(), expected(tiny_xlmr, TEXTS, "probability"))
    named = post(server, model=bert.name).json()
    assert same(named, expected(tiny_bert, TEXTS, "probability"))
    reply = post(serve(models=(embedder,)))
    assert reply.status_code == 404
    assert reply.json()["error_type"] == "Validation"
    assert "no model that scores" in reply.json()["error"]


def test_raw_scores_and_texts_are_given_to_who_asks(
    serve: Callable[..., Server], tiny_xlmr: Path
) -> None:
    """Scores are probabilities otherwise, and texts stay away."""
    server = serve(models=(ModelSettings(name="m", source=str(tiny_xlmr)),))
    ranks = post(server, raw_scores=True, return_text=True).json()
    wanted = expected(tiny_xlmr, TEXTS, "raw")
    assert same(ranks, wanted)
    assert [rank["text"] for rank in ranks] == [TEXTS[rank["index"]] for rank in wanted]
    assert all(set(rank) == {"index", "score"} for rank in post(server).json())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 200),
        ({"truncate": True}, 200),
        ({"truncate": None, "truncation_direction": "Right"}, 200),
        ({"truncate": False}, 413),
        ({"truncate": True, "truncation_direction": "Left"}, 422),
    ],
)
def test_a_text_is_cut_only_where_and_if_the_caller_lets_it_be(
    served: Server, body: dict[str, Any], status: int
) -> None:
    """Texts that fit are ranked whatever is said of cutting."""
    assert post(served, **body).status_code == 200
    reply = post(served, texts=["a", LONG], **body)
    assert reply.status_code == status
    if status != 200:
        assert reply.json()["error"].startswith("1 of 2 texts are longer than the model reads")
        assert reply.json()["error_type"] == "Validation"


@pytest.mark.parametrize(
    ("body", "status", "error_type", "message"),
    [
        ({"texts": []}, 400, "Empty", "'texts' must not be empty"),
        ({"texts": "a"}, 400, "Validation", "'texts' must be an array of strings"),
        ({"query": None}, 400, "Validation", "'query' must be a string"),
        ({"truncation_direction": "up"}, 400, "Validation", "must be 'Right' or 'Left'"),
        ({"texts": ["a"] * 513}, 413, "Validation", "at most 512 are taken per request"),
        ({"model": "no/such"}, 404, "Validation", "'no/such' not found"),
        ({"model": "test/nan-ce"}, 500, "Backend", "gave no finite score"),
    ],
)
def test_errors_are_written_as_such_a_server_does(
    served: Server, body: dict[str, Any], status: int, error_type: str, message: str
) -> None:
    """A sentence, and its kind."""
    reply = post(served, **body)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "error_type"}
    assert reply.json()["error_type"] == error_type
    assert message in reply.json()["error"]


def ranker(server: Server, **settings: Any) -> HuggingFaceTEIRanker:
    """Make Haystack's component."""
    return HuggingFaceTEIRanker(url=server.url, token=Secret.from_token("key"), **settings)


def as_ranks(documents: list[Document]) -> list[dict[str, Any]]:
    """Read ranked documents by their places."""
    return [{"index": document.meta["n"], "score": document.score} for document in documents]


async def test_haystacks_ranker_ranks(served: Server, tiny_bert: Path) -> None:
    """Synchronously and not; with its options; documents keep their metadata."""
    documents = [Document(content=text, meta={"n": n}) for n, text in enumerate(TEXTS)]
    wanted = expected(tiny_bert, TEXTS, "probability")
    component = ranker(served)
    assert same(as_ranks(component.run(QUERY, documents)["documents"]), wanted)
    found = await component.run_async(QUERY, documents, top_k=2)
    assert same(as_ranks(found["documents"]), wanted[:2])
    cut = component.run(QUERY, documents, truncation_direction=TruncationDirection.RIGHT)
    assert same(as_ranks(cut["documents"]), wanted)
    raw = ranker(served, raw_scores=True).run(QUERY, documents)["documents"]
    assert same(as_ranks(raw), expected(tiny_bert, TEXTS, "raw"))


def test_haystacks_ranker_tells_what_was_wrong(served: Server) -> None:
    """Our words reach its user."""
    documents = [Document(content=LONG)]
    with pytest.raises(RuntimeError, match="'truncation_direction' must be 'Right'"):
        ranker(served).run(QUERY, documents, truncation_direction=TruncationDirection.LEFT)
