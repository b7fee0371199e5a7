"""`SIECrossEncoder` alone and inside LangChain's own cross-encoder reranker."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document

from sie_core.errors import DeadlineExceededError, InvalidRequestError
from sie_core.types import Item
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
    assert sorted(client.queries) == ["paris france", "yellow fruit"]
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


class Rushed:
    """Answer so many calls, and then find that time is up."""

    def __init__(self, num_answered: int) -> None:
        self._num_left = num_answered

    def score(self, model: str, _: Item, items: Sequence[Item], **__: Any) -> dict[str, Any]:
        self._num_left -= 1
        if self._num_left < 0:
            msg = "time was up"
            raise DeadlineExceededError(msg)
        return {"model": model, "scores": [{"item_id": it["id"], "score": 1.0} for it in items]}


def test_a_deadline_that_leaves_pairs_unscored_is_an_error() -> None:
    """It says how many are scored; no number stands for a score that was not measured."""
    pairs = [("paris", f"text {i}") for i in range(5)]
    encoder = SIECrossEncoder(model="test/rushed", client=Rushed(1), max_latency_ms=60_000)
    with pytest.raises(DeadlineExceededError, match=r"max_latency_ms=60000.* only 2 of 5 pairs"):
        encoder.score(pairs)
    in_time = SIECrossEncoder(model="test/in-time", client=Rushed(9), max_latency_ms=60_000)
    assert in_time.score(pairs) == [1.0] * 5


def test_what_is_left_out_on_purpose_is_no_error() -> None:
    """Where the top did not change, what follows sorts behind it."""
    encoder = SIECrossEncoder(client=Rushed(2), stop_when_stable=1, options={"batch_size": 10})
    scores = encoder.score([("paris", f"text {i}") for i in range(30)])
    assert scores == [1.0] * 20 + [float("-inf")] * 10


def test_several_queries_share_one_deadline() -> None:
    """They are asked at once, each with the time that is left of it."""

    class Paired:
        def __init__(self) -> None:
            self.are_both_here = threading.Barrier(2, timeout=60)
            self.bounds: list[float] = []

        def score(
            self, model: str, _: Item, items: Sequence[Item], *, timeout_seconds: float
        ) -> dict[str, Any]:
            self.are_both_here.wait()
            self.bounds.append(timeout_seconds)
            return {"model": model, "scores": [{"item_id": it["id"], "score": 1} for it in items]}

    client = Paired()
    encoder = SIECrossEncoder(client=client, max_latency_ms=90_000)
    assert encoder.score([("paris", "berlin"), ("banana", "fruit")]) == [1.0, 1.0]
    assert len(client.bounds) == 2
    assert all(0 < bound < 90 for bound in client.bounds)


def test_a_wrong_deadline_is_refused(client: Any) -> None:
    """At construction, and where it was assigned later."""
    with pytest.raises(ValueError, match="max_latency_ms must be a positive number"):
        SIECrossEncoder(max_latency_ms=-5)
    encoder = SIECrossEncoder(client=client)
    encoder.max_latency_ms = -5
    with pytest.raises(InvalidRequestError, match="max_latency_ms must be a positive number"):
        encoder.score([("paris", "paris")])


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
