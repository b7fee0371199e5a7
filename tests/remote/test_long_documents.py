"""Replies to calls that say what is to be done with long documents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from sie_core.errors import InvalidRequestError, InvalidResponseError
from sie_core.remote import SIEAsyncClient, SIEClient, wire
from sie_core.remote.codec import MSGPACK
from sie_core.types import Item

QUERY, ITEMS = Item(text="q"), [Item(text="0 a"), Item(text="1 b")]


async def answer(x: Any) -> None:
    """Answer rightly, and know nothing of options."""
    await x.answer()


def reply_of(content: Mapping[str, Any]) -> wire.Reply:
    """Encode a reply."""
    return wire.Reply(
        status_code=200,
        headers={"content-type": MSGPACK.content_type},
        body=MSGPACK.encoder()(content),
    )


@pytest.mark.parametrize("how", ["max_passage", "error"])
def test_a_server_that_says_nothing_is_refused(serve: Any, how: str) -> None:
    """Sync and async, without any Reranker; truncation needs no word of it."""
    server = serve(answer)
    with SIEClient(server.url) as client:
        with pytest.raises(InvalidRequestError, match="does not say that it did so"):
            client.score("m", QUERY, ITEMS, options={"long_documents": how})
        assert len(client.score("m", QUERY, ITEMS)["scores"]) == 2
        cut = client.score("m", QUERY, ITEMS, options={"long_documents": "truncate"})
        assert len(cut["scores"]) == 2

    async def ask() -> Any:
        async with SIEAsyncClient(server.url) as client:
            return await client.score("m", QUERY, ITEMS, options={"long_documents": how})

    with pytest.raises(InvalidRequestError, match="does not say that it did so"):
        asyncio.run(ask())


def test_a_wrong_option_is_not_sent(serve: Any) -> None:
    """A server that ignores what it does not know would not say that it is wrong."""
    server = serve(answer)
    with (
        SIEClient(server.url) as client,
        pytest.raises(InvalidRequestError, match="long_documents must be"),
    ):
        client.score("m", QUERY, ITEMS, options={"long_documents": "split"})
    assert not server.requests


@pytest.mark.parametrize("span", [[3, 1], [-1, 4], [0.5, 2], [1], "0-3", [True, 2]])
def test_a_place_that_is_none_is_no_reply(span: object) -> None:
    """Numbers are checked before anybody cuts a text by them."""
    entry = {"item_id": "a", "score": 1.0, "rank": 0, "span": span}
    content = {"model": "m", "scores": [entry], "long_documents": "max_passage"}
    with pytest.raises(InvalidResponseError, match="the best passage of 'a' must be"):
        wire.read_scores(reply_of(content), ["a"])
    del content["long_documents"]
    assert wire.read_scores(reply_of(content), ["a"]).spans is None  # another server's own field
