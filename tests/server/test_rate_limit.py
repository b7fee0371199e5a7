"""What one caller may ask for in a time, and when they may come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sie_core.errors import InvalidRequestError
from sie_core.server.keys import make_key
from sie_core.server.rate_limit import RateLimited, parse_rate_limit
from sie_core.server.record import record_of
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

BODY = {"query": {"text": "paris"}, "items": [{"text": "a"}, {"text": "b"}, {"text": "c"}]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("600/minute", "600 requests per minute"),
        ("600 per minute", "600 requests per minute"),
        ("5 requests/second", "5 requests per second"),
        ("5000 items/10 seconds", "5000 items per 10 seconds"),
        ("100000 Tokens per hour", "100000 tokens per hour"),
    ],
)
def test_a_limit_is_read_as_people_write_it(text: str, shown: str) -> None:
    """And shown in full."""
    assert str(parse_rate_limit(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "600", "0/minute", "-1/minute", "many/minute", "6/fortnight", "6/minute;7/day"]
)
def test_what_is_none_is_said_at_the_start(text: str) -> None:
    """Rather than not to hold."""
    with pytest.raises(InvalidRequestError, match="a rate limit is such as 600/minute"):
        parse_rate_limit(text)


class Calls:
    """A limited app, called by made-up callers."""

    def __init__(self, *limits: str, usage: dict[str, Any] | None = None, items: int = 0) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            record_of(scope).usage = usage or {}
            record_of(scope).num_items = items
            await PlainTextResponse("done")(scope, receive, send)

        self._app = RateLimited(app, [parse_rate_limit(limit) for limit in limits])

    async def __call__(
        self, *, client: str = "192.0.2.1", key: str | None = None, path: str = "/v1/models"
    ) -> httpx.Response:
        """Call once."""

        async def as_caller(scope: Scope, receive: Receive, send: Send) -> None:
            record_of(scope).caller = key
            await self._app(scope, receive, send)

        transport = httpx.ASGITransport(as_caller, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://sie") as caller:
            return await caller.get(path)


async def test_requests_are_counted_as_they_come() -> None:
    """The one too many is told when to come back, and is not computed."""
    call = Calls("3/hour")
    assert [(await call()).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = await call()
    assert 0 < int(refused.headers["Retry-After"]) <= 3600
    assert refused.json()["detail"]["code"] == "RATE_LIMIT"
    assert "more than 3 requests per hour" in refused.json()["detail"]["message"]


@pytest.mark.parametrize(
    ("limit", "cost"),
    [
        ("10 items/hour", {"items": 5}),
        ("10 tokens/hour", {"usage": {"input_tokens": 5}}),
    ],
)
async def test_items_and_tokens_are_counted_once_they_are_known(
    limit: str, cost: dict[str, Any]
) -> None:
    """A call is let in while anything is left, and a large one may use up more than that."""
    call = Calls(limit, **cost)
    assert [(await call()).status_code for _ in range(3)] == [200, 200, 429]


async def test_every_limit_holds() -> None:
    """And a refused request counts for none."""
    call = Calls("2/hour", "5 items/hour", items=5)
    assert [(await call()).status_code for _ in range(3)] == [200, 429, 429]


async def test_callers_do_not_share_a_limit() -> None:
    """They are told apart by key; by address only where there is none."""
    call = Calls("1/hour")
    assert (await call(client="192.0.2.1")).status_code == 200
    assert (await call(client="192.0.2.2")).status_code == 200
    assert (await call(client="192.0.2.1")).status_code == 429
    assert (await call(client="192.0.2.1", key="a")).status_code == 200
    assert (await call(client="192.0.2.9", key="a")).status_code == 429


async def test_one_ipv6_network_is_one_caller() -> None:
    """A home has 2**64 addresses."""
    call = Calls("1/hour")
    assert (await call(client="2001:db8::1")).status_code == 200
    assert (await call(client="2001:db8::2")).status_code == 429
    assert (await call(client="2001:db8:0:1::1")).status_code == 200


async def test_health_and_metrics_are_not_counted() -> None:
    """Or a busy caller on the same address would make the server look dead."""
    call = Calls("1/hour")
    for _ in range(3):
        assert (await call(path="/healthz")).status_code == 200
        assert (await call(path="/metrics")).status_code == 200
    assert (await call()).status_code == 200
    assert (await call()).status_code == 429
    assert (await call(path="/healthz")).status_code == 200


def test_a_server_holds_each_key_to_the_limits(
    serve: Callable[..., Server], tiny_bert: Path, tmp_path: Path
) -> None:
    """Over HTTP, with what the engine says a call has cost."""
    keys = [make_key(name) for name in ("a", "b")]
    (tmp_path / "keys").write_text("".join(f"{line}\n" for _, line in keys))
    server = serve(
        models=(ModelSettings(name="tiny", source=str(tiny_bert)),),
        api_key_file=str(tmp_path / "keys"),
        rate_limits=("6 items/hour",),
    )

    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{server.url}/v1/score/tiny", json=BODY, headers=headers).status_code

    assert [status(keys[0][0]) for _ in range(3)] == [200, 200, 429]
    assert status(keys[1][0]) == 200
