"""What the tests of the remote clients share: recorded exchanges, and a server that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(autouse=True)
def _dead_servers_are_asked_again_at_once() -> None:
    """Not here: they are asked again when users' programs would ask them."""


@dataclass(frozen=True)
class Exchange:
    """One request to a real server and its reply, byte for byte."""

    name: str
    method: str
    path: str
    request_headers: dict[str, str]
    request_body: bytes
    status_code: int
    response_headers: list[tuple[str, str]]
    response_body: bytes

    @classmethod
    def load(cls, file: Path) -> Exchange:
        """Read a recording."""
        content = json.loads(file.read_text())
        raw_request = content["request_raw_b64"]
        if raw_request is None:  # too large to have been kept; all of these are JSON
            request = json.dumps(content["request_body_decoded"]).encode()
        else:
            request = base64.b64decode(raw_request).partition(b"\r\n\r\n")[2]
        reply = base64.b64decode(content["response_raw_b64"]).partition(b"\r\n\r\n")[2]
        return cls(
            name=file.stem,
            method=content["method"],
            path=content["path"],
            request_headers=content["request_headers"],
            request_body=request,
            status_code=int(content["status_line"].split()[1]),
            response_headers=[(name, value) for name, value in content["response_headers"]],
            response_body=reply,
        )

    @property
    def is_msgpack(self) -> bool:
        """Whether the request's body is msgpack."""
        return "msgpack" in self.request_headers.get("Content-Type", "")

    def request(self) -> Any:
        """Decode the request's body."""
        body = self.request_body
        return msgpack.unpackb(body) if self.is_msgpack else json.loads(body)

    def reply(self) -> Any:
        """Decode the reply's body."""
        kind = dict(self.response_headers).get("content-type", "")
        is_msgpack = "msgpack" in kind
        return msgpack.unpackb(self.response_body) if is_msgpack else json.loads(self.response_body)

    def respond(self, _: httpx.Request) -> httpx.Response:
        """Give the recorded reply to any request."""
        return httpx.Response(
            self.status_code,
            headers=[pair for pair in self.response_headers if pair[0] != "connection"],
            content=self.response_body,
        )


EXCHANGES = {file.stem: Exchange.load(file) for file in sorted(RECORDED.glob("*.json"))}


@pytest.fixture(scope="session")
def exchanges() -> dict[str, Exchange]:
    """Every recorded exchange by name."""
    return EXCHANGES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for an `exchange` once for each recording."""
    if "exchange" in metafunc.fixturenames:
        metafunc.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES.keys())


@dataclass
class Arrived:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


Handler = Callable[["Exchanger"], Awaitable[None]]


@dataclass
class Exchanger:
    """One request on one connection, and the means to answer it well or badly."""

    server: RawServer
    request: Arrived
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def items(self) -> list[dict[str, Any]]:
        """Return the items sent."""
        if "msgpack" in self.request.headers.get("content-type", ""):
            return list(msgpack.unpackb(self.request.body)["items"])
        return list(json.loads(self.request.body)["items"])

    def scores(self) -> dict[str, Any]:
        """Return the right answer: a text's score is the number it holds, negative."""
        ranked = sorted(self.items(), key=lambda item: -_score(item))
        return {
            "model": "test/model",
            "query_id": None,
            "scores": [
                {"item_id": item["id"], "score": _score(item), "rank": rank}
                for rank, item in enumerate(ranked)
            ],
            "usage": {"input_tokens": len(ranked)},
        }

    async def answer(self) -> None:
        """Give the right answer in msgpack."""
        await self.send(200, msgpack.packb(self.scores()), "application/msgpack")

    async def fail(self, status: int, code: str | None = None, **headers: str) -> None:
        """Refuse, in the server's own shape."""
        body = b""
        if code is not None:
            body = json.dumps({"detail": {"code": code, "message": "as told"}}).encode()
        await self.send(status, body, "application/json", **headers)

    async def send(self, status: int, body: bytes, content_type: str, **headers: str) -> None:
        """Send a whole reply."""
        self.writer.write(self.head(status, len(body), content_type, **headers) + body)
        await self.writer.drain()

    @staticmethod
    def head(status: int, length: int | None, content_type: str, **headers: str) -> bytes:
        """Return a reply's head."""
        lines = [f"HTTP/1.1 {status} Whatever", f"content-type: {content_type}"]
        if length is not None:
            lines.append(f"content-length: {length}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def hang_up(self) -> None:
        """Close the connection."""
        self.writer.close()


def _score(item: dict[str, Any]) -> float:
    digits = "".join(char for char in item.get("text", "") if char.isdigit())
    return -float(digits or 0)


@dataclass
class RawServer:
    """A server on loopback over bare streams, in a thread: it answers as its handler wants.

    With several handlers the first answers the first request, and so on; the last stays.
    """

    handlers: list[Handler]
    port: int = 0
    requests: list[Arrived] = field(default_factory=list)
    num_connections: int = 0
    problems: list[BaseException] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        """Close everything; may be called twice."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.stopping.set)
            self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self.stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        number = self.num_connections
        try:
            while await self._exchange(reader, writer, number):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as exc:  # noqa: BLE001 -- shown by the fixture
            self.problems.append(exc)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Arrived(method, path, headers, body, number)
        index = len(self.requests)
        self.requests.append(request)
        handler = self.handlers[min(index, len(self.handlers) - 1)]
        await handler(Exchanger(self, request, reader, writer))
        return not writer.is_closing()


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    """Start servers whose handlers misbehave; they are stopped after the test."""
    servers: list[RawServer] = []

    def start(*handlers: Handler, port: int = 0) -> RawServer:
        server = RawServer(list(handlers), port=port)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
    problems = [problem for server in servers for problem in server.problems]
    assert not problems
