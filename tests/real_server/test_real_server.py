"""Our clients against sie-server 0.10.1 itself, with a cross-encoder of random weights."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sie_core.errors import (
    InputTooLongError,
    InvalidRequestError,
    ModelNotFoundError,
    SIEConnectionError,
)
from sie_core.fallback import FallbackClient
from sie_core.remote import SIEAsyncClient, SIEClient
from sie_core.types import Item

pytestmark = pytest.mark.real_server

QUERY = Item(id="q1", text="what is python")
DOCUMENTS = [
    Item(id="weather", text="the weather is sunny today"),
    Item(id="python", text="python is a programming language"),
    Item(id="fruit", text="bananas are yellow fruit"),
]


def many(count: int) -> list[Item]:
    """Make different documents."""
    return [Item(text=f"document number {i}") for i in range(count)]


def test_a_cold_model_is_waited_for(start_server: Any) -> None:
    """The first call on a fresh server loads the model, and gets its answer within the call."""
    server = start_server()
    with SIEClient(server.url, timeout_seconds=120) as client:
        assert client.get_model(server.model)["loaded"] is False
        result = client.score(server.model, QUERY, DOCUMENTS)
    assert len(result["scores"]) == 3


def test_scores_come_back_with_the_callers_ids(server: Any) -> None:
    """Ids, order and ranks are as the protocol says, in msgpack and in JSON alike."""
    with SIEClient(server.url) as client:
        result = client.score(server.model, QUERY, DOCUMENTS)
    with SIEClient(server.url, content_format="json") as client:
        again = client.score(server.model, QUERY, DOCUMENTS)
    assert again.pop("timing").keys() == result.pop("timing").keys()
    assert again == result
    assert result["model"] == server.model
    assert result["query_id"] == "q1"
    assert {entry["item_id"] for entry in result["scores"]} == {"weather", "python", "fruit"}
    scores = [entry["score"] for entry in result["scores"]]
    assert scores == sorted(scores, reverse=True)
    assert [entry["rank"] for entry in result["scores"]] == [0, 1, 2]
    assert result["usage"]["input_tokens"] > 0


def test_doubled_and_missing_ids_are_mapped_back(server: Any) -> None:
    """Ids that the server would confuse do not reach it."""
    items = [Item(id="same", text="a"), Item(text="b"), Item(id="same", text="c"), Item(text="d")]
    with SIEClient(server.url) as client:
        result = client.score(server.model, QUERY, items)
    assert sorted(entry["item_id"] for entry in result["scores"]) == [
        "item-1",
        "item-3",
        "same",
        "same",
    ]


@pytest.mark.parametrize("count", [1, 512, 513, 3000])
async def test_any_number_of_documents_is_scored(count: int, server: Any) -> None:
    """Calls over the server's limits are split, and score each document as a small call does."""
    items = many(count)
    async with SIEAsyncClient(server.url) as client:
        result = await client.score(server.model, QUERY, items)
        alone = await client.score(server.model, QUERY, items[-1:])
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    assert set(found) == {f"item-{i}" for i in range(count)}
    assert found[f"item-{count - 1}"] == pytest.approx(alone["scores"][0]["score"], abs=1e-4)


def test_an_instruction_changes_the_scores(server: Any) -> None:
    """The instruction reaches the model."""
    with SIEClient(server.url) as client:
        plain = client.score(server.model, QUERY, DOCUMENTS)
        instructed = client.score(server.model, QUERY, DOCUMENTS, instruction="rank by topic")
    assert plain["scores"] != instructed["scores"]


def test_an_unknown_model_is_said_to_be_unknown(server: Any) -> None:
    """The server's 404 is the same exception as in-process."""
    with SIEClient(server.url) as client:
        with pytest.raises(ModelNotFoundError) as caught:
            client.score("no/such", QUERY, DOCUMENTS)
        assert caught.value.code == "MODEL_NOT_FOUND"
        with pytest.raises(ModelNotFoundError):
            client.get_model("no/such")


def test_the_server_describes_itself(server: Any) -> None:
    """Health, models and version are read."""
    with SIEClient(server.url) as client:
        assert client.health()["status"] == "ok"
        assert [model["name"] for model in client.list_models()] == [server.model]
        client.score(server.model, QUERY, DOCUMENTS)
        assert client.server_version == "0.10.1"


def test_the_limit_of_an_item_is_the_servers(server: Any) -> None:
    """A text of exactly two mebibytes passes our check and the server's; one byte more does not."""
    limit = 2 * 1024 * 1024
    with SIEClient(server.url) as client:
        client.score(server.model, QUERY, [Item(text="a" * limit)])
        with pytest.raises(InputTooLongError):
            client.score(server.model, QUERY, [Item(text="a" * (limit + 1))])


def test_large_calls_are_split_by_bytes(server: Any) -> None:
    """Forty megabytes of documents go through a server that takes 34 MiB at once."""
    bulk = {"note": "x" * 1_000_000}  # travels, but is not tokenised
    items = [Item(text=f"document {i}", metadata=bulk) for i in range(40)]
    with SIEClient(server.url) as client:
        result = client.score(server.model, QUERY, items)
    assert len(result["scores"]) == 40


def test_what_the_model_cannot_do_is_an_invalid_request(server: Any) -> None:
    """The server's 400 keeps its words and its code."""
    with (
        SIEClient(server.url) as client,
        pytest.raises(InvalidRequestError, match="does not support") as caught,
    ):
        client.encode(server.model, QUERY)
    assert caught.value.code == "INVALID_INPUT"


def test_a_killed_server_is_noticed_during_the_call(start_server: Any) -> None:
    """A crash ends the calls under way with a connection error, long before the deadline."""
    server = start_server()
    calling = threading.Event()

    def call_until_it_fails(client: SIEClient) -> None:
        while True:
            client.score(server.model, QUERY, many(2000))
            calling.set()

    with SIEClient(server.url, timeout_seconds=300) as client, ThreadPoolExecutor(1) as threads:
        future = threads.submit(call_until_it_fails, client)
        assert calling.wait(120)
        server.kill()
        killed = time.monotonic()
        with pytest.raises(SIEConnectionError):
            future.result(timeout=30)
        assert time.monotonic() - killed < 7


def test_a_chain_survives_a_killed_server(start_server: Any) -> None:
    """With a fallback the same crash gives a degraded answer that says so."""
    server = start_server()
    with FallbackClient([server.url, "retrieval_order"]) as chain:
        assert chain.score(server.model, QUERY, DOCUMENTS)["status"] == "complete"
        server.kill()
        result = chain.score(server.model, QUERY, DOCUMENTS)
    assert result["status"] == "degraded"
    assert result["scores"] == []
    assert server.url in result["reason"]
