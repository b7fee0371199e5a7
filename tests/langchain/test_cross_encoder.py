"""`SIECrossEncoder` alone and inside LangChain's own cross-encoder reranker."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document

from sie_core.errors import InvalidRequestError
from sie_langchain import SIECrossEncoder


def test_each_pair_gets_its_own_score(client: Any) -> None:
    """Pairs of mixed queries are scored with one call per query and answered in their order."""
    pairs = [
        ("paris france", "paris is in france"),
        ("yellow fruit", "a banana is a yellow fruit"),
        ("paris france", "berlin"),
        ("yellow fruit", "yellow submarine"),
        ("paris france", "spring in paris"),
    ]
    encoder = SIECrossEncoder(client=client, instruction="Find", score_space="raw")
    assert encoder.score(pairs) == [2.0, 2.0, 0.0, 1.0, 1.0]
    assert client.queries == ["paris france", "yellow fruit"]
    assert client.arguments == [{"instruction": "Find", "options": {"score_space": "raw"}}] * 2


def test_a_blank_text_sorts_behind_every_score(client: Any) -> None:
    """It is not sent; its score is -inf, which no measured score can be."""
    scores = SIECrossEncoder(client=client).score([("paris", " "), ("paris", "berlin")])
    assert scores == [float("-inf"), 0.0]
    assert client.texts == [["berlin"]]


def test_no_pairs_give_no_scores(client: Any) -> None:
    """An empty list is answered with an empty list."""
    assert SIECrossEncoder(client=client).score([]) == []


def test_a_blank_query_is_refused(client: Any) -> None:
    """Nothing can be relevant to no question."""
    with pytest.raises(InvalidRequestError, match="query must be a string with text"):
        SIECrossEncoder(client=client).score([(" ", "paris")])


def test_it_serves_the_cross_encoder_reranker(client: Any) -> None:
    """LangChain's own reranker orders by its scores."""
    reranker = CrossEncoderReranker(model=SIECrossEncoder(client=client), top_n=2)
    documents = [Document(page_content=text) for text in ("berlin", "", "paris france", "france")]
    ranked = reranker.compress_documents(documents, "paris france")
    assert [document.page_content for document in ranked] == ["paris france", "france"]


def test_in_retrieval_order_nothing_is_scored() -> None:
    """Without a server every score is -inf, and a stable sort keeps the order."""
    encoder = SIECrossEncoder(base_url="http://127.0.0.1:9", fallback="retrieval_order")
    assert encoder.score([("q", "paris"), ("q", "berlin")]) == [float("-inf")] * 2
    encoder.close()


def test_a_client_of_the_official_package_is_accepted(official_client: Any) -> None:
    """It is called with what it takes."""
    assert SIECrossEncoder(client=official_client).score([("paris", "paris")]) == [1.0]


def test_its_secrets_stay_in_the_process() -> None:
    """A pickle has neither, a deep copy both; neither shows them."""
    secrets: dict[str, Any] = {"api_key": "k-SECRET", "token": "t-SECRET"}
    encoder = SIECrossEncoder(base_url="http://127.0.0.1:9", **secrets)
    assert b"SECRET" not in pickle.dumps(encoder)
    copied = copy.deepcopy(encoder)
    assert (copied.api_key, copied.token) == (encoder.api_key, encoder.token)
    assert "SECRET" not in repr(copied) + str(copied.model_dump()) + copied.model_dump_json()


def test_it_can_be_copied_and_pickled(client: Any) -> None:
    """A copy scores as the original does."""
    encoder = SIECrossEncoder(client=client)
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert copied.score([("paris", "paris")]) == [1.0]
