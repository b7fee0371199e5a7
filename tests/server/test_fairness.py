"""Who is served when: a small request does not wait for all of a large one."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sie_core.local import LocalClient
from sie_core.local.scheduler import Scheduler
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

PATIENCE_SECONDS = 30
NUM_LARGE = 512
"""Documents of the large request: over a hundred batches of the size below."""

MAX_BATCH_TOKENS = 64


class BatchByBatch:
    """Lets a scheduler's one worker run a batch for each permit."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._permits = threading.Semaphore(0)
        self._run, self._is_open = scheduler._run, False
        scheduler._run = self._wait_and_run  # type: ignore[method-assign]

    def allow(self, num_batches: int) -> None:
        """Let so many batches run."""
        self._permits.release(num_batches)

    def open(self) -> None:
        """Let all run from now on."""
        self._is_open = True
        self._permits.release()

    def _wait_and_run(self, *arguments: Any) -> None:
        if not self._is_open:
            assert self._permits.acquire(timeout=PATIENCE_SECONDS)
        self._run(*arguments)


@contextlib.contextmanager
def asking(url: str, num_items: int) -> Iterator[http.client.HTTPConnection]:
    """Send a request for scores; give the connection that gets the reply."""
    items = [{"text": f"museum of the river {i}"} for i in range(num_items)]
    body = msgspec.json.encode({"query": {"text": "river"}, "items": items})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/score/m", body, headers)
        yield connection


def num_scores(connection: http.client.HTTPConnection) -> int:
    """Wait for a reply, and count its scores."""
    reply = connection.getresponse()
    assert reply.status == 200
    return len(msgspec.json.decode(reply.read())["scores"])


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(100 * PATIENCE_SECONDS):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError


def test_a_small_request_is_not_stuck_behind_a_large_one(
    serve: Callable[..., Server], tiny_bert: Path
) -> None:
    """It is answered after a few batches, while nearly all of the large one still waits."""
    client = LocalClient(mode="exact", num_threads=1, max_batch_tokens=MAX_BATCH_TOKENS)
    url = serve(models=(ModelSettings(name="m", source=str(tiny_bert)),), client=client).url
    loaded = client.loaded_model(str(tiny_bert))
    assert loaded is not None
    gate = BatchByBatch(loaded.scheduler)
    num_before = loaded.scheduler.stats().num_sequences
    with asking(url, NUM_LARGE) as large:
        wait_for(lambda: loaded.scheduler.stats().num_queued_tokens > 0)
        num_tokens = loaded.scheduler.stats().num_queued_tokens
        with asking(url, 2) as small:
            wait_for(lambda: loaded.scheduler.stats().num_queued_requests == 2)
            gate.allow(3)
            assert num_scores(small) == 2
        assert loaded.scheduler.stats().num_queued_tokens > 0.9 * num_tokens
        gate.open()
        assert num_scores(large) == NUM_LARGE
    assert loaded.scheduler.stats().num_sequences == num_before + NUM_LARGE + 2


def test_a_large_request_leaves_the_event_loop_to_others(
    serve: Callable[..., Server], tiny_bert: Path
) -> None:
    """While the tokens of one request are made, in a thread, the server answers another.

    That one is small: no thread is asked for it.
    """
    client = LocalClient(mode="exact")
    url = serve(models=(ModelSettings(name="m", source=str(tiny_bert)),), client=client).url
    loaded = client.loaded_model(str(tiny_bert))
    assert loaded is not None
    score_job, is_making, may_go_on = loaded.model.score_job, threading.Event(), threading.Event()

    threads: dict[int, str] = {}

    def make_slowly(request: Any) -> Any:
        threads[len(request.items)] = threading.current_thread().name
        if len(request.items) == NUM_LARGE:
            is_making.set()
            assert may_go_on.wait(PATIENCE_SECONDS)
        return score_job(request)

    loaded.model.score_job = make_slowly  # type: ignore[method-assign]
    with asking(url, NUM_LARGE) as large:
        assert is_making.wait(PATIENCE_SECONDS)
        with asking(url, 2) as small:
            assert num_scores(small) == 2
        may_go_on.set()
        assert num_scores(large) == NUM_LARGE
    assert threads[2] == "sie-test-server"  # the event loop's own
    assert threads[NUM_LARGE] != "sie-test-server"
