"""Scoring clients written by hand, whose scores can be read off the texts, and a rude server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sie_core.types import Item


@dataclass
class OverlapClient:
    """Score a text by how many of the query's words it has, and remember what was asked."""

    queries: list[str] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    error: BaseException | None = None

    def score(
        self, model: str, query: Item, items: Sequence[Item], **arguments: Any
    ) -> dict[str, Any]:
        """Answer as a real client does, in reverse order: results must be matched by id."""
        self.queries.append(query["text"])
        self.texts.append([item["text"] for item in items])
        self.arguments.append(arguments)
        self.threads.append(threading.get_ident())
        if self.error is not None:
            raise self.error
        words = set(query["text"].lower().split())
        scores = [
            {"item_id": item["id"], "score": float(len(words & set(item["text"].lower().split())))}
            for item in reversed(items)
        ]
        reply = {"model": model, "query_id": None, "scores": scores, "usage": {"input_tokens": 7}}
        asked = (arguments.get("options") or {}).get("score_space")
        return reply if asked is None else reply | {"score_space": asked}


class AsyncOverlapClient(OverlapClient):
    """The same for asyncio."""

    async def score(  # type: ignore[override]  # awaited, or else the same
        self, model: str, query: Item, items: Sequence[Item], **arguments: Any
    ) -> dict[str, Any]:
        """Answer without leaving the event loop's thread."""
        return super().score(model, query, items, **arguments)


class SIEClient:
    """A client as in SIE's own package: it takes these keywords and no others."""

    def __init__(self) -> None:
        self.inner = OverlapClient()

    def score(
        self,
        model: str,
        query: Item,
        items: list[Item],
        *,
        instruction: str | None = None,
        options: dict[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool = True,
        provision_timeout_s: float | None = None,
        max_oom_retries: int = 3,
    ) -> dict[str, Any]:
        """Answer with a dictionary that says less, and more, than ours do."""
        del wait_for_capacity, provision_timeout_s, max_oom_retries
        given = {"instruction": instruction, "options": options, "gpu": gpu}
        reply = self.inner.score(model, query, items, **given)
        return {"model": model, "scores": reply["scores"], "request": {"id": "r-1"}}


class SIEAsyncClient:
    """The same for asyncio."""

    def __init__(self) -> None:
        self.sync = SIEClient()
        self.inner = self.sync.inner

    async def score(
        self,
        model: str,
        query: Item,
        items: list[Item],
        *,
        instruction: str | None = None,
        options: dict[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool = True,
        provision_timeout_s: float | None = None,
        max_oom_retries: int = 3,
    ) -> dict[str, Any]:
        """Answer without leaving the event loop's thread."""
        del wait_for_capacity, provision_timeout_s, max_oom_retries
        return self.sync.score(
            model, query, items, instruction=instruction, options=options, gpu=gpu
        )


class Guard(ThreadingHTTPServer):
    """A server that refuses every key, repeats it in the refusal, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _GuardHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.keys: list[str | None] = []


class _GuardHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    server: Guard

    def do_POST(self) -> None:
        """Refuse."""
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("Authorization")
        self.server.keys.append(key)
        detail = {"code": "UNAUTHORIZED", "message": f"nobody knows {key}"}
        body = json.dumps({"detail": detail}).encode()
        self.send_response(HTTPStatus.UNAUTHORIZED)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Log nothing."""


@pytest.fixture
def client() -> OverlapClient:
    """A client for sync calls."""
    return OverlapClient()


@pytest.fixture
def async_client() -> AsyncOverlapClient:
    """A client for async calls."""
    return AsyncOverlapClient()


@pytest.fixture
def official_client() -> SIEClient:
    """A client of SIE's own package, for sync calls."""
    return SIEClient()


@pytest.fixture
def official_async_client() -> SIEAsyncClient:
    """A client of SIE's own package, for async calls."""
    return SIEAsyncClient()


@pytest.fixture
def guard() -> Iterator[Guard]:
    """A server that lets nobody in."""
    server = Guard()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
