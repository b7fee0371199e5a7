"""What the client costs beyond the server: `python benchmarks/remote_overhead.py`.

A server on loopback answers score requests at once and says in `X-Total-Time` how long it took.
Each round measures, for the same bytes: a bare `httpx.Client.post`, `SIEClient.score`, and their
asynchronous twins. From each time the server's own is subtracted; the ratio of the medians is
printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import httpcore
import httpx
import msgpack
import uvicorn

from sie_core.remote import SIEAsyncClient, SIEClient
from sie_core.remote.plan import Send
from sie_core.types import Item

MODEL = "bench/model"
WORDS = ("the", "server", "ranks", "a", "document", "by", "how", "well", "it", "answers")


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer any POST with a score for each item."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    started = time.perf_counter()
    items = msgpack.unpackb(body)["items"]
    scores = [
        {"item_id": item["id"], "score": -float(i), "rank": i} for i, item in enumerate(items)
    ]
    reply = msgpack.packb({"model": MODEL, "query_id": None, "scores": scores})
    total_ms = 1000 * (time.perf_counter() - started)
    headers = [
        (b"content-type", b"application/msgpack"),
        (b"content-length", str(len(reply)).encode()),
        (b"x-total-time", f"{total_ms:.4f}".encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


class Stopwatch:
    """Collects times beyond the server's own, in milliseconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def note(self, seconds: float, response: httpx.Response | httpcore.Response) -> None:
        """Add how long a call took that had this reply; reading its headers is not part of it."""
        server_ms = float(httpx.Headers(response.headers)["x-total-time"])
        self.times.append(1000 * seconds - server_ms)

    @property
    def p50(self) -> float:
        """The median, without the warm-up."""
        return statistics.median(self.times[WARM_UP:])


def request_of(client: SIEClient, query: Item, items: list[Item]) -> Send:
    """Return the request that `client.score` sends."""
    plan = client._endpoint.score(MODEL, query, items, _no_arguments()).plans[0]  # noqa: SLF001
    step = next(plan)
    assert isinstance(step, Send)  # noqa: S101
    return step


def _no_arguments() -> Any:
    from sie_core.remote.endpoint import CallArguments

    return CallArguments(
        instruction=None, options=None, gpu=None, wait_for_capacity=None, timeout_seconds=None
    )


def measure_sync(url: str, query: Item, items: list[Item], num_rounds: int) -> tuple[float, float]:
    """Return the medians of a bare post and of our client, measured in turn."""
    bare, ours = Stopwatch(), Stopwatch()
    with SIEClient(url) as client, httpx.Client() as http:
        step = request_of(client, query, items)
        assert step.request.body is not None  # noqa: S101
        body, headers = step.request.body(), dict(step.request.headers)
        pool: Any = client._connections()  # noqa: SLF001
        handle_request = pool.handle_request
        last: list[httpcore.Response] = []

        def keep_and_hand_on(request: httpcore.Request) -> httpcore.Response:
            last[:] = [handle_request(request)]
            return last[0]

        pool.handle_request = keep_and_hand_on
        for _ in range(WARM_UP + num_rounds):
            started = time.perf_counter()
            response = http.post(step.url, content=body, headers=headers)
            bare.note(time.perf_counter() - started, response)
            started = time.perf_counter()
            client.score(MODEL, query, items)
            ours.note(time.perf_counter() - started, last[0])
    return bare.p50, ours.p50


async def measure_async(
    url: str, query: Item, items: list[Item], num_rounds: int
) -> tuple[float, float]:
    """Do the same for the asynchronous clients."""
    bare, ours = Stopwatch(), Stopwatch()
    async with SIEAsyncClient(url) as client, httpx.AsyncClient() as http:
        with SIEClient(url) as twin:
            step = request_of(twin, query, items)
        assert step.request.body is not None  # noqa: S101
        body, headers = step.request.body(), dict(step.request.headers)
        pool: Any = await client._connections()  # noqa: SLF001
        handle_async_request = pool.handle_async_request
        last: list[httpcore.Response] = []

        async def keep_and_hand_on(request: httpcore.Request) -> httpcore.Response:
            last[:] = [await handle_async_request(request)]
            return last[0]

        pool.handle_async_request = keep_and_hand_on
        for _ in range(WARM_UP + num_rounds):
            started = time.perf_counter()
            response = await http.post(step.url, content=body, headers=headers)
            bare.note(time.perf_counter() - started, response)
            started = time.perf_counter()
            await client.score(MODEL, query, items)
            ours.note(time.perf_counter() - started, last[0])
    return bare.p50, ours.p50


WARM_UP = 20


def run_server(port_sent: Connection) -> None:
    """Serve in a process of its own, so that it does not compete for the interpreter's lock."""
    # asyncio sends small writes at once only on sockets that say they are TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    port_sent.send(listener.getsockname()[1])
    config = uvicorn.Config(application, log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    """Print a line per number of documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--documents", type=int, nargs="*", default=[10, 100, 512])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=run_server, args=(sender,))
    server.start()
    url = f"http://127.0.0.1:{receiver.recv()}"
    rows = []
    try:
        for count in arguments.documents:
            query = Item(text="which documents are relevant?")
            text = " ".join(WORDS * 10)
            items = [Item(text=f"{i} {text}") for i in range(count)]
            for kind in ("sync", "async"):
                if kind == "sync":
                    bare, ours = measure_sync(url, query, items, arguments.rounds)
                else:
                    bare, ours = asyncio.run(measure_async(url, query, items, arguments.rounds))
                rows.append((kind, count, bare, ours))
    finally:
        server.terminate()
        server.join()
    if arguments.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
        return
    print("client time beyond the server's own, p50")
    for kind, count, bare, ours in rows:
        print(
            f"{kind:>5} {count:>4} documents of 100 words: httpx post {bare:6.3f} ms, "
            f"ours {ours:6.3f} ms, ratio {ours / bare:.2f}"
        )


COLUMNS = ("kind", "num_documents", "httpx_ms", "ours_ms")

if __name__ == "__main__":
    main()
