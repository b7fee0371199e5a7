"""Many callers of an HTTP server at once, as light as Python makes them: they share its cores.

Each caller has a connection of its own and sends its next request when it has the reply to the
last. The requests are bytes that were made before; replies are read no further than their length.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import msgpack
import msgspec

_HEAD_END = b"\r\n\r\n"


class CallError(Exception):
    """A call got no reply, or one that it should not have got."""


@dataclass(slots=True)
class Round:
    """What callers saw in one round.

    Attributes:
        seconds: How long it took, to the last reply.
        milliseconds: Of each call, in the order of the replies.
        generator_seconds: Time that this process computed meanwhile.
    """

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    generator_seconds: float = 0.0

    @property
    def calls_per_second(self) -> float:
        """The throughput."""
        return len(self.milliseconds) / self.seconds

    @property
    def p50(self) -> float:
        """The median call, in milliseconds."""
        return statistics.median(self.milliseconds)


Check = Callable[[int, bytes], None]
"""Is given the number of the request and the body of its reply; raises where it is wrong."""


def score_request(
    url: str, model: str, query: str, documents: Sequence[str], *, content_format: str
) -> bytes:
    """Return the bytes of a score request.

    Args:
        url: Of the server.
        model: As the server names it.
        query: The query.
        documents: The documents.
        content_format: `json` or `msgpack`, of the request and of the reply.
    """
    content: dict[str, Any] = {
        "query": {"text": query},
        "items": [{"id": f"d{i}", "text": text} for i, text in enumerate(documents)],
    }
    encode = msgspec.json.encode if content_format == "json" else msgpack.packb
    body = encode(content)
    kind = f"application/{content_format}"
    head = (
        f"POST /v1/score/{model} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: {kind}\r\nAccept: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def run_callers(
    url: str,
    requests: Sequence[bytes],
    *,
    num_callers: int,
    seconds: float,
    check: Check | None = None,
) -> Round:
    """Let callers send `requests` in turn, for some seconds; calls under way are finished.

    Raises:
        CallError: A call got no reply, or one without status 200.
    """
    if sys.platform == "win32":
        return asyncio.run(_run(url, requests, num_callers, seconds, check))
    import uvloop

    return uvloop.run(_run(url, requests, num_callers, seconds, check))


async def _run(
    url: str, requests: Sequence[bytes], num_callers: int, seconds: float, check: Check | None
) -> Round:
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    seen = Round()
    begun, computed = time.perf_counter(), time.process_time()
    supply = _numbers(len(requests), begun + seconds)
    callers = []
    for _ in range(num_callers):
        caller = _Caller(loop.create_future(), requests, supply, seen, check)
        await loop.create_connection(lambda it=caller: it, address.hostname, address.port)
        callers.append(caller)
    try:
        await asyncio.gather(*(caller.done for caller in callers))
    finally:
        for caller in callers:
            caller.leave()
    seen.seconds = time.perf_counter() - begun
    seen.generator_seconds = time.process_time() - computed
    return seen


def _numbers(num_requests: int, end: float) -> Iterator[int]:
    """Number the requests round and round, until it is time to end."""
    number = 0
    while time.perf_counter() < end:
        yield number
        number = (number + 1) % num_requests


class _Caller(asyncio.Protocol):
    """One connection, with one call on it at a time."""

    def __init__(
        self,
        done: asyncio.Future[None],
        requests: Sequence[bytes],
        supply: Iterator[int],
        seen: Round,
        check: Check | None,
    ) -> None:
        self.done = done
        self._requests = requests
        self._supply = supply
        self._seen = seen
        self._check = check
        self._number = 0
        self._began = 0.0
        self._received = b""
        self._length = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # it is of a TCP connection
        self._next()

    def data_received(self, data: bytes) -> None:
        """Take more of a reply; with the last of it the call is over."""
        self._received = self._received + data if self._received else data
        if not self._length:
            end = self._received.find(_HEAD_END)
            if end < 0:
                return
            self._length = end + len(_HEAD_END) + self._read_head(self._received[:end])
        if len(self._received) < self._length or self.done.done():
            return
        self._seen.milliseconds.append(1e3 * (time.perf_counter() - self._began))
        if self._check is not None:
            body = self._received[self._received.find(_HEAD_END) + len(_HEAD_END) :]
            try:
                self._check(self._number, body)
            except Exception as exc:  # noqa: BLE001  it belongs to who waits for the round
                self._fail(exc)
                return
        self._received, self._length = b"", 0
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        """End, which is wrong in the middle of a call."""
        self._fail(CallError(f"the connection ended in the middle of a call: {error}"))

    def leave(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        number = next(self._supply, None)
        if number is None:
            self.done.set_result(None)
            return
        self._number = number
        self._began = time.perf_counter()
        assert self._transport is not None  # noqa: S101  made before the first call
        self._transport.write(self._requests[number])

    def _read_head(self, head: bytes) -> int:
        """Return the length of the body that follows a reply's head."""
        first, *lines = head.lower().split(b"\r\n")
        if first.split()[1] != b"200":
            self._fail(CallError(f"a call was answered with {self._received[:400]!r}"))
            return 0
        for line in lines:
            if line.startswith(b"content-length:"):
                return int(line.partition(b":")[2])
        self._fail(CallError(f"a reply does not tell its length: {head!r}"))
        return 0

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
