"""The two clients over real sockets: connections, splitting, loops, threads, forks and copies."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

import sie_core
from sie_core.errors import (
    AuthenticationError,
    ClientClosedError,
    InputTooLongError,
    InvalidRequestError,
    InvalidResponseError,
    SIEConnectionError,
    SIEError,
)
from sie_core.remote import SIEAsyncClient, SIEClient
from sie_core.settings import RemoteSettings
from sie_core.types import Item

QUERY = Item(text="q")
KEY = "key-that-nobody-may-see"


def items(count: int, size: int = 0) -> list[Item]:
    """Make items whose right score is minus their number."""
    return [Item(text=f"{i} {'x' * size}") for i in range(count)]


async def answer(x: Any) -> None:
    """Answer rightly."""
    await x.answer()


def check_order(result: Any, count: int) -> None:
    """The right scores of `items(count)`, ranked."""
    found = [(entry["item_id"], entry["score"], entry["rank"]) for entry in result["scores"]]
    assert found == [(f"item-{i}", -float(i), i) for i in range(count)]


def test_one_connection_serves_a_hundred_calls(serve: Any) -> None:
    """Connections are kept alive and reused."""
    server = serve(answer)
    with SIEClient(server.url) as client:
        for _ in range(100):
            check_order(client.score("m", QUERY, items(2)), 2)
    assert len(server.requests) == 100
    assert server.num_connections == 1


async def test_one_connection_serves_a_hundred_async_calls(serve: Any) -> None:
    """The same for the asynchronous client."""
    server = serve(answer)
    async with SIEAsyncClient(server.url) as client:
        for _ in range(100):
            check_order(await client.score("m", QUERY, items(2)), 2)
    assert len(server.requests) == 100
    assert server.num_connections == 1


@pytest.mark.parametrize(("count", "num_parts"), [(512, 1), (513, 3), (3000, 12)])
async def test_large_calls_are_split_and_put_together(
    count: int, num_parts: int, serve: Any
) -> None:
    """No request has over 512 items, and the answer is ranked as a whole.

    Two parts under way hold no more than 512 items together, which is what a server's queue holds.
    """
    server = serve(answer)
    with SIEClient(server.url) as client:
        result = await asyncio.to_thread(client.score, "m", QUERY, items(count))
    check_order(result, count)
    async with SIEAsyncClient(server.url) as async_client:
        assert await async_client.score("m", QUERY, items(count)) == result
    assert len(server.requests) == 2 * num_parts
    assert result["usage"] == {"input_tokens": count}


def test_calls_are_split_by_bytes_too(serve: Any) -> None:
    """No request is over the limit in bytes, query and all."""
    server = serve(answer)
    settings = RemoteSettings(max_request_bytes=100_000, max_item_bytes=50_000)
    with SIEClient(server.url, settings=settings) as client:
        check_order(client.score("m", QUERY, items(30, 9_000)), 30)
        assert len(server.requests) > 2
        assert max(len(request.body) for request in server.requests) <= 100_000
        with pytest.raises(InputTooLongError, match=r"items\[1\]"):
            client.score("m", QUERY, [Item(text="a"), Item(text="x" * 50_001)])
        with pytest.raises(InputTooLongError, match="query"):
            client.score("m", Item(text="x" * 50_001), items(1))


def test_an_item_over_two_mebibytes_is_refused_before_anything_is_sent(serve: Any) -> None:
    """Even where it stands in the last of several parts."""
    server = serve(answer)
    with (
        SIEClient(server.url) as client,
        pytest.raises(InputTooLongError, match=r"items\[600\] holds 2097153 bytes"),
    ):
        client.score("m", QUERY, [*items(600), Item(text="x" * (2 * 1024 * 1024 + 1))])
    assert server.requests == []


class PartFailer:
    """Refuses the part that holds item 0, the first few times."""

    def __init__(self, num_refusals: int, status: int = 503) -> None:
        self.num_refusals = num_refusals
        self.status = status
        self.under_way = 0
        self.most_under_way = 0

    async def __call__(self, x: Any) -> None:
        """Answer, or refuse."""
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.05)  # so that the parts meet
        self.under_way -= 1
        if self.num_refusals and x.items()[0]["id"] == "item-0":
            self.num_refusals -= 1
            await x.fail(self.status, "QUEUE_FULL" if self.status == 503 else "INFERENCE_ERROR")
        else:
            await x.answer()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_failed_part_is_retried_alone(kind: str, serve: Any) -> None:
    """The other parts are not sent again, and not more go at once than allowed."""
    failer = PartFailer(2)
    server = serve(failer)
    check_order(run(kind, server.url, 3000, max_concurrency=3), 3000)
    firsts = [x.body for x in server.requests]
    assert len(firsts) == 20
    assert len(set(firsts)) == 18
    assert failer.most_under_way == 3


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_part_that_cannot_be_had_ends_the_call(kind: str, serve: Any) -> None:
    """The first part's failure is raised at once; parts not begun are not sent."""
    server = serve(PartFailer(1, status=500))
    started = time.perf_counter()
    with pytest.raises(SIEError, match="500 INFERENCE_ERROR"):
        run(kind, server.url, 5000, max_concurrency=2)
    assert time.perf_counter() - started < 2
    assert len(server.requests) < 5


def test_the_other_parts_are_called_off(serve: Any) -> None:
    """A part that would take for ever does not hold back another's failure."""

    async def handler(x: Any) -> None:
        if x.items()[0]["id"] == "item-0":
            await x.fail(500, "INFERENCE_ERROR")
        else:
            await x.server.stopping.wait()

    server = serve(handler)
    started = time.perf_counter()
    with pytest.raises(SIEError, match="500 INFERENCE_ERROR"):
        run("sync", server.url, 600)
    assert time.perf_counter() - started < 2


def run(kind: str, url: str, count: int, **settings: Any) -> Any:
    """Score that many items with the client of that kind."""
    if kind == "sync":
        with SIEClient(url, **settings) as client:
            return client.score("m", QUERY, items(count))

    async def call() -> Any:
        async with SIEAsyncClient(url, **settings) as client:
            return await client.score("m", QUERY, items(count))

    return asyncio.run(call())


def test_no_items_need_no_server() -> None:
    """An empty list gives an empty list, without asking."""
    with SIEClient("http://127.0.0.1:1") as client:
        result: Any = client.score("m", Item(id="q1", text="q"), [])
        assert result == {"model": "m", "query_id": "q1", "scores": []}
        assert client.encode("m", []) == []


def test_ids_lead_back_to_the_caller(serve: Any) -> None:
    """The caller's ids come back even where they could not travel."""
    server = serve(answer)
    with SIEClient(server.url) as client:
        result = client.score(
            "m",
            Item(id="q1", text="q"),
            [Item(id="same", text="1"), Item(text="2"), Item(id="same", text="3")],
        )
        assert [entry["item_id"] for entry in result["scores"]] == ["same", "item-1", "same"]
        assert result["query_id"] == "q1"
        client.score("m", QUERY, [Item(id="a", text="1"), Item(id="b", text="2")])
    sent = [[item["id"] for item in msgpack.unpackb(x.body)["items"]] for x in server.requests]
    assert sent == [["item-0", "item-1", "item-2"], ["a", "b"]]


def test_what_the_caller_gave_is_not_changed(serve: Any) -> None:
    """Items, query and options are read only."""
    server = serve(answer)
    query, documents, options = Item(text="q"), items(2), {"profile": "p"}
    before = copy.deepcopy((query, documents, options))
    with SIEClient(server.url, options=options) as client:
        client.score("m", query, documents, options=options)
    assert (query, documents, options) == before


def test_the_callers_options_win(serve: Any) -> None:
    """Options, gpu and pool of the client are sent with each call, unless it has its own."""
    server = serve(answer)
    settings: dict[str, Any] = {
        "options": {"a": 1, "b": 1},
        "gpu": "l4",
        "pool": "p",
        "api_key": KEY,
    }
    with SIEClient(server.url, content_format="json", **settings) as client:
        client.score("m", QUERY, items(1), options={"b": 2}, gpu="own/a100", instruction="find")
        client.score("m", QUERY, items(1))
    first, second = server.requests
    assert json.loads(first.body)["options"] == {"a": 1, "b": 2}
    assert json.loads(first.body)["instruction"] == "find"
    assert first.headers["x-sie-machine-profile"] == "a100"
    assert first.headers["x-sie-pool"] == "own"
    assert second.headers["x-sie-machine-profile"] == "l4"
    assert second.headers["x-sie-pool"] == "p"
    assert second.headers["authorization"] == f"Bearer {KEY}"
    assert second.headers["accept-encoding"] == "identity"
    assert "instruction" not in json.loads(second.body)


async def encodings(x: Any) -> None:
    """Answer an encode call with what was asked."""
    request = msgpack.unpackb(x.request.body)
    values = np.arange(4, dtype="<f2")
    array = {
        b"nd": True,
        b"type": "<f2",
        b"kind": b"",
        b"shape": [4],
        b"data": values.tobytes(),
    }
    matrix = {**array, b"shape": [2, 2]}
    embedding = {
        "dense": {"dims": 4, "dtype": "float16", "values": array},
        "multivector": {"token_dims": 2, "num_tokens": 2, "dtype": "float16", "values": matrix},
    }
    body = {"model": "m", "items": [{"id": item["id"], **embedding} for item in request["items"]]}
    await x.send(200, msgpack.packb(body), "application/msgpack")


async def test_encode_gives_one_result_for_one_item_and_a_list_for_a_list(serve: Any) -> None:
    """Embeddings come as arrays; parameters travel as the server wants them."""
    server = serve(encodings)
    with SIEClient(server.url) as client:
        one = client.encode("m", Item(id="a", text="x"), is_query=True, output_dtype="float16")
        many = client.encode("m", items(600), output_types=["dense", "multivector"])
    assert one["id"] == "a"
    np.testing.assert_array_equal(one["dense"], np.arange(4, dtype="float16"))
    assert one["multivector"].shape == (2, 2)
    assert len(many) == 600
    assert "id" not in many[0]
    bodies = [msgpack.unpackb(request.body) for request in server.requests]
    assert bodies[0]["params"] == {"output_dtype": "float16", "options": {"is_query": True}}
    assert bodies[1]["params"] == {"output_types": ["dense", "multivector"]}
    assert [len(body["items"]) for body in bodies] == [1, 200, 200, 200]
    async with SIEAsyncClient(server.url) as async_client:
        again = await async_client.encode("m", Item(text="x"))
    np.testing.assert_array_equal(again["dense"], one["dense"])


async def test_models_can_be_listed(serve: Any) -> None:
    """`list_models` and `get_model` give what the server says."""

    async def models(x: Any) -> None:
        one = {"name": "a/b", "outputs": ["score"]}
        body = one if x.request.path == "/v1/models/a/b" else {"models": [one]}
        await x.send(200, json.dumps(body).encode(), "application/json")

    server = serve(models)
    with SIEClient(server.url) as client:
        assert client.list_models() == [client.get_model("a/b")]
    async with SIEAsyncClient(server.url) as async_client:
        assert await async_client.list_models() == [await async_client.get_model("a/b")]


async def test_health_is_asked_once(serve: Any) -> None:
    """A health check does not retry: it reports."""

    async def handler(x: Any) -> None:
        await x.fail(503)

    server = serve(handler)
    with SIEClient(server.url) as client, pytest.raises(SIEError, match="503"):
        client.health()
    async with SIEAsyncClient(server.url) as async_client:
        with pytest.raises(SIEError, match="503"):
            await async_client.health()
    assert len(server.requests) == 2


def test_many_threads_share_a_client(serve: Any) -> None:
    """Answers do not get mixed up."""
    server = serve(answer)
    with SIEClient(server.url) as client, ThreadPoolExecutor(8) as threads:
        counts = [1 + i % 7 for i in range(60)]
        results = threads.map(lambda count: client.score("m", QUERY, items(count)), counts)
        for result, count in zip(results, counts, strict=True):
            check_order(result, count)
    assert server.num_connections <= 8


def test_one_async_client_serves_event_loops_in_turn(serve: Any) -> None:
    """Each loop has its own connections, and closes them before it ends."""
    server = serve(answer)
    client = SIEAsyncClient(server.url)

    async def twice() -> None:
        for _ in range(2):
            check_order(await client.score("m", QUERY, items(2)), 2)

    for _ in range(3):
        asyncio.run(twice())
    gc.collect()
    assert server.num_connections == 3
    asyncio.run(client.close())


def test_one_async_client_serves_event_loops_at_once(serve: Any) -> None:
    """Loops in several threads do not disturb each other."""
    server = serve(answer)
    client = SIEAsyncClient(server.url)
    meeting = threading.Barrier(4)

    async def calls() -> None:
        await asyncio.to_thread(meeting.wait, 10)
        for count in range(1, 6):
            check_order(await client.score("m", QUERY, items(count)), count)

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(asyncio.run, calls()) for _ in range(4)]:
            future.result(timeout=20)
    asyncio.run(client.close())
    assert len(server.requests) == 20


def test_close_reaches_other_loops(serve: Any) -> None:
    """Closing from one loop closes the connections of another that still runs."""
    server = serve(answer)
    client = SIEAsyncClient(server.url)
    used, closed = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        await client.score("m", QUERY, items(1))
        used.set()
        await asyncio.to_thread(closed.wait, 10)
        with pytest.raises(ClientClosedError):
            await client.score("m", QUERY, items(1))

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(asyncio.run, elsewhere())
        assert used.wait(10)
        asyncio.run(client.close())
        closed.set()
        future.result(timeout=10)


async def test_an_async_client_that_was_not_closed_warns(serve: Any) -> None:
    """Losing a client with open connections is said out loud."""
    server = serve(answer)
    client = SIEAsyncClient(server.url)
    await client.score("m", QUERY, items(1))
    lost = [client]
    del client
    with pytest.warns(ResourceWarning, match="was not closed"):
        lost.clear()
    await asyncio.sleep(0)  # the loop closes the lost connections itself
    async with SIEAsyncClient(server.url):
        pass  # never used: nothing to close, nothing to say


async def test_concurrent_async_calls_share_the_pool(serve: Any) -> None:
    """Many calls at once on one loop all get their own answer."""
    server = serve(answer)
    async with SIEAsyncClient(server.url) as client:
        counts = [1 + i % 5 for i in range(40)]
        calls = (client.score("m", QUERY, items(count)) for count in counts)
        for result, count in zip(await asyncio.gather(*calls), counts, strict=True):
            check_order(result, count)


async def test_a_cancelled_call_is_cancelled(serve: Any) -> None:
    """Cancelling the task ends the call and leaves the client usable."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def never(x: Any) -> None:
        loop.call_soon_threadsafe(asked.set)
        await x.server.stopping.wait()

    server = serve(never, answer)
    async with SIEAsyncClient(server.url) as client:
        task = asyncio.create_task(client.score("m", QUERY, items(1)))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        check_order(await client.score("m", QUERY, items(1)), 1)


def test_a_killed_server_is_said_to_be_gone(serve: Any) -> None:
    """A server that dies during a call gives a connection error, not a hang."""
    asked = threading.Event()

    async def never(x: Any) -> None:
        asked.set()
        await x.server.stopping.wait()

    server = serve(never)
    with SIEClient(server.url, timeout_seconds=900) as client, ThreadPoolExecutor(1) as threads:
        future = threads.submit(client.score, "m", QUERY, items(1))
        assert asked.wait(10)
        server.stop()
        started = time.perf_counter()
        with pytest.raises(SIEConnectionError):
            future.result(timeout=10)
        assert time.perf_counter() - started < 2


def test_a_restarted_server_is_found_again(serve: Any) -> None:
    """Connections that died with the old server are replaced."""
    server = serve(answer)
    with SIEClient(server.url) as client:
        check_order(client.score("m", QUERY, items(2)), 2)
        server.stop()
        serve(answer, port=server.port)
        check_order(client.score("m", QUERY, items(2)), 2)


def test_close_ends_calls_under_way(serve: Any) -> None:
    """A call in another thread ends with ClientClosedError, and so does every later one."""
    asked = threading.Event()

    async def never(x: Any) -> None:
        asked.set()
        await x.server.stopping.wait()

    server = serve(never)
    client = SIEClient(server.url, timeout_seconds=900)
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(client.score, "m", QUERY, items(1))
        assert asked.wait(10)
        client.close()
        with pytest.raises(ClientClosedError):
            future.result(timeout=5)
    client.close()
    with pytest.raises(ClientClosedError):
        client.score("m", QUERY, items(1))


async def test_a_closed_async_client_says_so() -> None:
    """A closed client does not come back to life."""
    client = SIEAsyncClient("http://127.0.0.1:1")
    await client.close()
    await client.close()
    with pytest.raises(ClientClosedError):
        await client.score("m", QUERY, items(1))


@pytest.mark.parametrize("client_class", [SIEClient, SIEAsyncClient])
def test_secrets_stay_inside(client_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in no repr and no pickle; another process reads it from its own environment."""
    monkeypatch.delenv("SIE_API_KEY", raising=False)
    client = client_class("http://127.0.0.1:1", api_key=KEY)
    assert KEY not in repr(client)
    assert KEY not in repr(vars(client))
    pickled = pickle.dumps(client)
    assert KEY.encode() not in pickled
    lost = pickle.loads(pickled)
    with pytest.raises(AuthenticationError, match="SIE_API_KEY"):
        asyncio.run(lost.score("m", QUERY, items(1)))
    monkeypatch.setenv("SIE_API_KEY", "another-key")
    found = pickle.loads(pickled)
    assert found._endpoint.api_key == "another-key"
    assert copy.deepcopy(client)._endpoint.api_key == KEY
    assert copy.copy(client)._endpoint.api_key == KEY


def test_copies_keep_their_settings_and_not_the_connections(serve: Any) -> None:
    """A deep copy and an unpickled client work as the first does, over their own connection."""
    server = serve(answer)
    with SIEClient(server.url, timeout_s=7, gpu="l4", options={"a": 1}) as client:
        client.score("m", QUERY, items(1))
        copies = [copy.deepcopy(client), pickle.loads(pickle.dumps(client))]
        for twin in copies:
            assert twin.timeout_seconds == 7
            with twin:
                check_order(twin.score("m", QUERY, items(2)), 2)
        check_order(client.score("m", QUERY, items(1)), 1)
    assert server.num_connections == 3
    assert {x.headers["x-sie-machine-profile"] for x in server.requests} == {"l4"}


def _score_in_child(client: SIEClient, results: Any) -> None:
    results.put(len(client.score("m", QUERY, items(3))["scores"]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_opens_its_own_connection(serve: Any) -> None:
    """Parent and child do not speak over one socket."""
    server = serve(answer)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with SIEClient(server.url) as client:
        check_order(client.score("m", QUERY, items(2)), 2)
        child = context.Process(target=_score_in_child, args=(client, results))
        child.start()
        assert results.get(timeout=20) == 3
        child.join(20)
        assert child.exitcode == 0
        check_order(client.score("m", QUERY, items(2)), 2)
    assert [request.connection for request in server.requests] == [1, 2, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_of_an_async_client_opens_its_own_connection(serve: Any) -> None:
    """The same, from within a running event loop."""
    server = serve(answer)
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    async def parent() -> None:
        async with SIEAsyncClient(server.url) as client:
            await client.score("m", QUERY, items(2))

            def in_child() -> None:
                asyncio._set_running_loop(None)
                results.put(len(asyncio.run(client.score("m", QUERY, items(3)))["scores"]))

            child = context.Process(target=in_child)
            child.start()
            assert await asyncio.to_thread(results.get, timeout=20) == 3
            child.join(20)
            assert child.exitcode == 0
            await client.score("m", QUERY, items(2))

    asyncio.run(parent())
    assert [request.connection for request in server.requests] == [1, 2, 1]


def test_the_key_does_not_follow_a_redirect_to_another_port(serve: Any) -> None:
    """Another port is another origin: it gets neither the key nor the documents."""
    thief = serve(answer)

    async def redirect(x: Any) -> None:
        await x.send(307, b"", "text/plain", location=f"{thief.url}/v1/score/m")

    server = serve(redirect)
    with SIEClient(server.url, api_key=KEY) as client, pytest.raises(SIEError, match="redirect"):
        client.score("m", QUERY, items(1))
    assert thief.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "localhost:8080"},
        {"base_url": "ftp://host"},
        {"base_url": "http://"},
        {"base_url": "http://host:port"},
        {"base_url": "http://host/?a=b"},
        {"base_url": 5},
        {"timeout_seconds": 0},
        {"timeout_seconds": "5"},
        {"timeout_s": -1},
        {"timeout_s": 1, "timeout_seconds": 1},
        {"connect_timeout_seconds": 0},
        {"provision_timeout_seconds": float("inf")},
        {"max_concurrency": 0},
        {"content_format": "xml"},
        {"gpu": ""},
        {"options": [1]},
        {"api_key": "a\nb"},
        {"api_key": "schlüssel"},
    ],
)
@pytest.mark.parametrize("client_class", [SIEClient, SIEAsyncClient])
def test_wrong_arguments_are_refused(client_class: Any, arguments: dict[str, Any]) -> None:
    """The constructor says which argument is wrong."""
    with pytest.raises(InvalidRequestError):
        client_class(**{"base_url": "http://127.0.0.1:1", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [{"base_url": f"http://user:{KEY}@host"}, {"api_key": f"{KEY}\n"}, {"api_key": f"ü{KEY}"}],
)
def test_a_wrong_secret_is_not_shown(arguments: dict[str, Any]) -> None:
    """An error about credentials does not repeat them."""
    try:
        SIEClient(**{"base_url": "http://127.0.0.1:1", **arguments})
    except InvalidRequestError as error:
        assert KEY not in str(error)  # noqa: PT017 -- a trailing line break is forgiven


def test_address_and_key_come_from_the_environment(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIE_BASE_URL and SIE_API_KEY stand in for the arguments; one of the addresses must be."""
    server = serve(answer)
    monkeypatch.setenv("SIE_BASE_URL", f"{server.url}/")
    monkeypatch.setenv("SIE_API_KEY", KEY)
    with SIEClient() as client:
        client.score("m", QUERY, items(1))
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    monkeypatch.delenv("SIE_BASE_URL")
    with pytest.raises(InvalidRequestError, match="SIE_BASE_URL"):
        SIEClient()


def test_a_path_in_the_address_is_kept(serve: Any) -> None:
    """A server behind a gateway's path is reached under that path."""
    server = serve(answer)
    with SIEClient(f"{server.url}/sie/") as client:
        client.score("a/b", QUERY, items(1))
    assert server.requests[0].path == "/sie/v1/score/a/b"


def test_a_proxy_of_the_environment_is_used(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY applies, and NO_PROXY takes it back."""
    proxy, server = serve(answer), serve(answer)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with SIEClient(server.url) as client:
        client.score("m", QUERY, items(1))
    assert proxy.requests[0].path == f"{server.url}/v1/score/m"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with SIEClient(server.url) as client:
        client.score("m", QUERY, items(1))
    assert len(server.requests) == 1


async def test_an_async_client_uses_the_proxy_too(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY applies to asyncio as well."""
    proxy = serve(answer)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with SIEAsyncClient("http://nowhere.invalid:1") as client:
        check_order(await client.score("m", QUERY, items(2)), 2)
    assert proxy.requests[0].path == "http://nowhere.invalid:1/v1/score/m"
    assert proxy.requests[0].headers["host"] == "nowhere.invalid:1"


def test_the_limit_of_a_reply_can_be_set(serve: Any) -> None:
    """A reply with embeddings is read up to `max_reply_bytes`."""
    server = serve(encodings)
    with (
        SIEClient(server.url, settings=RemoteSettings(max_reply_bytes=100)) as client,
        pytest.raises(InvalidResponseError, match="100 bytes"),
    ):
        client.encode("m", items(5))


def test_the_clients_are_exported_lazily() -> None:
    """`sie_core.SIEClient` is the client, and a module of its own."""
    assert sie_core.SIEClient is SIEClient
    assert sie_core.SIEAsyncClient is SIEAsyncClient


def test_a_transport_can_be_given() -> None:
    """Tests of callers need no server."""

    def respond(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/healthz"
        return httpx.Response(200, text="ok", headers={"X-SIE-Server-Version": "0.10.1"})

    with SIEClient("http://server", transport=httpx.MockTransport(respond)) as client:
        assert client.health() == {"status": "ok", "server_version": "0.10.1"}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_given_transport_sees_the_whole_request(kind: str) -> None:
    """Address, headers, body and timeouts arrive as a transport of httpx expects them."""
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        sent = msgpack.unpackb(request.content)["items"]
        scores = [{"item_id": item["id"], "score": 1.0, "rank": 0} for item in sent]
        reply = msgpack.packb({"model": "m", "query_id": None, "scores": scores})
        return httpx.Response(200, content=reply, headers={"Content-Type": "application/msgpack"})

    url = "http://[::1]:8080/under"
    run(kind, url, 1, transport=httpx.MockTransport(respond), api_key=KEY, timeout_seconds=30)
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", f"{url}/v1/score/m")
    assert request.headers["host"] == "[::1]:8080"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["accept-encoding"] == "identity"
    assert int(request.headers["content-length"]) == len(request.content)
    timeout = request.extensions["timeout"]
    assert timeout["connect"] <= 10
    assert 20 < timeout["read"] <= 30


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_given_transport_may_be_a_real_one(kind: str, serve: Any) -> None:
    """Those of httpx work, keep their connections, and are closed with the client."""
    server = serve(answer)
    transport = httpx.HTTPTransport() if kind == "sync" else httpx.AsyncHTTPTransport()
    check_order(run(kind, server.url, 3000, transport=transport, max_concurrency=1), 3000)
    assert len(server.requests) == 6
    assert server.num_connections == 1


async def set_cookie(x: Any) -> None:
    """Answer, and ask to have a cookie back."""
    body = msgpack.packb(x.scores())
    await x.send(200, body, "application/msgpack", set_cookie="machine=7; Path=/")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_cookies_go_back_to_the_server_that_set_them(kind: str, serve: Any) -> None:
    """A load balancer may keep a client on one machine."""
    server = serve(set_cookie, answer)
    run(kind, server.url, 600, max_concurrency=1)
    assert [request.headers.get("cookie") for request in server.requests] == [None, "machine=7"]


OWN: list[dict[str, Any]] = [
    {},
    {"options": {"max_length": 8}},
    {"options": {"max_length": 9}},
    {"gpu": "l4"},
    {"pool": "p"},
    {"gpu": "p/l4"},
]
"""What clients of the same server may ask it for of their own accord."""


@pytest.mark.parametrize("client_class", [SIEClient, SIEAsyncClient])
def test_a_client_names_what_its_scores_depend_on(client_class: Any) -> None:
    """A bare one by its addresses alone; neither the key nor how a call travels is in the name."""
    several = ["http://one:1", "http://two:2"]
    names = {client_class(several, **own).source_of("m", None) for own in OWN}
    assert len(names) == len(OWN)
    bare = client_class(several, api_key=KEY, timeout_seconds=3, content_format="json")
    assert bare.source_of("m") == bare.base_url == "http://one:1,http://two:2"
    keyed = client_class(several, api_key=KEY, options={"a": 1, "b": {"c": 2}})
    assert keyed.source_of("m") == pickle.loads(pickle.dumps(keyed)).source_of("m")
    twin = client_class(several, options={"b": {"c": 2}, "a": 1})
    assert keyed.source_of("m") == twin.source_of("m")
    assert KEY not in keyed.source_of("m")


def test_scores_are_shared_only_by_clients_that_ask_for_the_same(serve: Any) -> None:
    """A cache tells what one client asks for by itself from what another does."""
    server, cache = serve(answer), sie_core.ScoreCache(10**6)
    for own in OWN:
        for num_cached in (0, 2):
            with SIEClient(server.url, **own) as client:
                reranker = sie_core.Reranker("m", client=client, score_cache=cache)
                assert reranker.rerank("q", ["1", "2"]).num_cached == num_cached
    assert len(server.requests) == len(OWN)
