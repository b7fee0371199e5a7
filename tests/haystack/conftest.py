"""A scoring client written by hand: its scores can be read off the texts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        return {"model": model, "query_id": None, "scores": scores, "usage": {"input_tokens": 7}}


class AsyncOverlapClient(OverlapClient):
    """The same for asyncio."""

    async def score(  # type: ignore[override]  # awaited, or else the same
        self, model: str, query: Item, items: Sequence[Item], **arguments: Any
    ) -> dict[str, Any]:
        """Answer without leaving the event loop's thread."""
        return super().score(model, query, items, **arguments)


@pytest.fixture
def client() -> OverlapClient:
    """A client for sync calls."""
    return OverlapClient()


@pytest.fixture
def async_client() -> AsyncOverlapClient:
    """A client for async calls."""
    return AsyncOverlapClient()
