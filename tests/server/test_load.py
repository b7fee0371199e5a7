"""The server as a process of its own: under many callers, and ended in the middle of calls."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from sie_core import SIEClient
from sie_core.local import LocalClient
from sie_core.settings import DEFAULT_MODEL, RemoteSettings
from sie_core.types import Item

WORDS = ["river", "museum", "people", "berlin", "population", "film", "banana", "the", "of", "in"]
NUM_CALLERS = 64
NUM_DOCUMENTS = 20
TOLERANCE = {"exact": 1e-4, "fast": 0.05}
PATIENCE_SECONDS = 60

Call = tuple[Item, list[Item]]
ServeCommand = Callable[..., AbstractContextManager[tuple[str, subprocess.Popen[str]]]]


def calls(num_calls: int, *, num_documents: int = NUM_DOCUMENTS, num_words: int = 12) -> list[Call]:
    """Make queries with documents of their own: no two calls share a text."""
    words = iter(f"{WORDS[i % len(WORDS)]} {i}" for i in range(10**9))

    def text() -> str:
        return " ".join(next(words) for _ in range(num_words // 2))

    return [
        (Item(text=text()), [Item(id=f"{call}-{i}", text=text()) for i in range(num_documents)])
        for call in range(num_calls)
    ]


def scores_of(result: Any) -> dict[str, float]:
    """Return the scores of a reply by id."""
    return {entry["item_id"]: entry["score"] for entry in result["scores"]}


def solo_scores(client: LocalClient, model: str, asked: list[Call]) -> list[dict[str, float]]:
    """Score each document in a call of its own, one after the other."""
    return [
        {item["id"]: client.score(model, query, [item])["scores"][0]["score"] for item in items}
        for query, items in asked
    ]


def ask_all(url: str, model: str, asked: list[Call], *, num_rounds: int) -> list[dict[str, float]]:
    """Let as many callers as there are calls make theirs, again and again, all at the same time."""
    together = threading.Barrier(len(asked))

    def caller(call: Call) -> list[dict[str, float]]:
        with SIEClient(url, timeout_seconds=PATIENCE_SECONDS) as client:
            together.wait(PATIENCE_SECONDS)
            return [scores_of(client.score(model, *call)) for _ in range(num_rounds)]

    with ThreadPoolExecutor(len(asked)) as pool:
        rounds = list(pool.map(caller, asked))
    return [found for each in zip(*rounds, strict=True) for found in each]


@pytest.mark.weights
def test_many_callers_get_their_own_scores(serve_command: ServeCommand) -> None:
    """64 callers of 20 documents each, with the embedded model: nothing lost, nothing mixed up."""
    asked = calls(NUM_CALLERS // 4)
    local = LocalClient()
    expected = 4 * solo_scores(local, DEFAULT_MODEL, asked)
    mode = "exact" if local.describe().startswith("exact") else "fast"
    with serve_command(DEFAULT_MODEL) as (url, _):
        found = ask_all(url, DEFAULT_MODEL, 4 * asked, num_rounds=2)
        status = httpx.get(f"{url}/v1/status").json()
    assert len(found) == 2 * NUM_CALLERS
    for scores, solo in zip(found, [*expected, *expected], strict=True):
        assert scores == pytest.approx(solo, abs=TOLERANCE[mode])
    assert status["requests"] == {"total": 2 * NUM_CALLERS, "failed": 0, "in_flight": 0}
    assert status["models"][DEFAULT_MODEL]["queued_tokens"] == 0


@pytest.fixture
def long_calls() -> list[bytes]:
    """Bodies of requests that take a while, each its own."""
    return [
        msgspec.json.encode({"query": query, "items": items})
        for query, items in calls(8, num_documents=400, num_words=60)
    ]


def test_requests_in_progress_are_finished_after_sigterm(
    serve_command: ServeCommand, tiny_bert: Path, long_calls: list[bytes]
) -> None:
    """All who were let in get their replies, nobody else is let in, and the exit code is 0."""
    with (
        contextlib.ExitStack() as stack,
        serve_command(f"m={tiny_bert}", "--mode", "exact") as (url, process),
    ):
        address = urlsplit(url).netloc
        connections = [
            stack.enter_context(
                contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS))
            )
            for _ in long_calls
        ]
        for connection, body in zip(connections, long_calls, strict=True):
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request("POST", "/v1/score/m", body, headers)
        wait_until_in_flight(url, len(connections))
        process.send_signal(signal.SIGTERM)
        replies = [connection.getresponse() for connection in connections]
        scored = [msgspec.json.decode(reply.read()) for reply in replies]
        assert [reply.status for reply in replies] == [200] * len(connections)
        for number, result in enumerate(scored):
            assert sorted(scores_of(result)) == sorted(f"{number}-{i}" for i in range(400))
        assert process.wait(PATIENCE_SECONDS) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", urlsplit(url).port), PATIENCE_SECONDS)


def wait_until_in_flight(url: str, num_requests: int) -> None:
    """Wait until so many requests with a body are in the server."""
    for _ in range(100 * PATIENCE_SECONDS):
        if httpx.get(f"{url}/v1/status").json()["requests"]["in_flight"] == num_requests:
            return
        threading.Event().wait(0.01)
    pytest.fail(f"there were never {num_requests} requests in progress")


def test_a_server_that_crashes_and_comes_back_loses_no_call(
    serve_command: ServeCommand, tiny_bert: Path
) -> None:
    """Clients call on: what was under way is asked again, at the same address, and answered."""
    asked = calls(8)
    expected = solo_scores(LocalClient(mode="exact"), str(tiny_bert), asked)
    is_back, is_over = threading.Event(), threading.Event()
    has_begun, again = ([threading.Event() for _ in asked] for _ in range(2))

    def caller(number: int) -> Iterator[dict[str, float]]:
        with SIEClient(url, settings=RemoteSettings(restart_seconds=PATIENCE_SECONDS)) as client:
            while not is_over.is_set():
                yield scores_of(client.score("m", *asked[number]))
                has_begun[number].set()
                if is_back.is_set():
                    again[number].set()

    with ThreadPoolExecutor(len(asked)) as pool:
        try:
            with serve_command(f"m={tiny_bert}", "--mode", "exact") as (url, process):
                found = [pool.submit(list, caller(number)) for number in range(len(asked))]
                assert all(event.wait(PATIENCE_SECONDS) for event in has_begun)
                process.kill()
                process.wait(PATIENCE_SECONDS)
            port = str(urlsplit(url).port)
            with serve_command(f"m={tiny_bert}", "--mode", "exact", "--port", port):
                is_back.set()
                assert all(event.wait(PATIENCE_SECONDS) for event in again)
                is_over.set()
                answers = [each.result(PATIENCE_SECONDS) for each in found]
        finally:
            is_over.set()
    for number, mine in enumerate(answers):
        assert len(mine) >= 2
        for scores in mine:
            assert scores == pytest.approx(expected[number], abs=TOLERANCE["exact"])
