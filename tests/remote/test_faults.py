"""A table of everything that a server, a gateway or the network did wrong, and what comes of it.

Each fault is met by the synchronous and the asynchronous client, over real sockets. The outcome is
an answer or one exception, and the time it took is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import msgpack
import pytest

from sie_core.errors import (
    AuthenticationError,
    CreditsError,
    DeadlineExceededError,
    InferenceError,
    InputTooLongError,
    InvalidRequestError,
    InvalidResponseError,
    ModelLoadError,
    ModelLoadingError,
    ModelNotFoundError,
    ProvisioningError,
    QueueFullError,
    RateLimitedError,
    ResourceExhaustedError,
    ServerError,
    ServerUnavailableError,
    SIEConnectionError,
    SIEError,
)
from sie_core.remote import SIEAsyncClient, SIEClient
from sie_core.types import Item

API_KEY = "key-that-nobody-may-see"
MSGPACK = "application/msgpack"
SLACK_SECONDS = 0.8
"""What a loaded machine may add to any bound."""


async def answer(x: Any) -> None:
    """Do everything right."""
    await x.answer()


async def never(x: Any) -> None:
    """Take the request and say nothing."""
    await x.server.stopping.wait()


async def late(x: Any) -> None:
    """Answer, but not at once."""
    await asyncio.sleep(0.3)
    await x.answer()


async def hang_up(x: Any) -> None:
    """Close without a word."""
    x.hang_up()


async def reset(x: Any) -> None:
    """Reset without a word."""
    x.reset()


async def half(x: Any) -> None:
    """Close in the middle of the body."""
    body = msgpack.packb(x.scores())
    x.writer.write(x.head(200, len(body), MSGPACK) + body[: len(body) // 2])
    await x.writer.drain()
    x.hang_up()


async def half_then_reset(x: Any) -> None:
    """Reset in the middle of the body."""
    body = msgpack.packb(x.scores())
    x.writer.write(x.head(200, len(body), MSGPACK) + body[: len(body) // 2])
    await x.writer.drain()
    await asyncio.sleep(0.05)  # or the reset overtakes the bytes
    x.reset()


async def half_chunked(x: Any) -> None:
    """Close in the middle of a chunked body."""
    x.writer.write(x.head(200, None, MSGPACK, transfer_encoding="chunked") + b"10\r\nabc")
    await x.writer.drain()
    x.hang_up()


async def half_head(x: Any) -> None:
    """Close in the middle of the head."""
    x.writer.write(b"HTTP/1.1 200 OK\r\ncontent-")
    await x.writer.drain()
    x.hang_up()


async def half_then_silence(x: Any) -> None:
    """Stop in the middle of the body, and stay."""
    body = msgpack.packb(x.scores())
    x.writer.write(x.head(200, len(body), MSGPACK) + body[: len(body) // 2])
    await x.writer.drain()
    await x.server.stopping.wait()


async def drip(x: Any, data: bytes) -> None:
    """Send a byte now and then."""
    with contextlib.suppress(ConnectionError):
        for index in range(len(data)):
            x.writer.write(data[index : index + 1])
            await x.writer.drain()
            await asyncio.sleep(0.1)


async def drip_body(x: Any) -> None:
    """Send the body a byte at a time."""
    body = msgpack.packb(x.scores())
    x.writer.write(x.head(200, len(body), MSGPACK))
    await drip(x, body)


async def drip_head(x: Any) -> None:
    """Send the head a byte at a time."""
    await drip(x, x.head(200, 10, MSGPACK))


async def not_http(x: Any) -> None:
    """Speak another protocol."""
    x.writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
    await x.writer.drain()
    x.hang_up()


async def huge_head(x: Any) -> None:
    """Send a head without end."""
    x.writer.write(b"HTTP/1.1 200 OK\r\n")
    with contextlib.suppress(ConnectionError):
        for number in range(20_000):
            x.writer.write(f"x-{number}: {'a' * 50}\r\n".encode())
            await x.writer.drain()


async def nothing_in_bulk(x: Any) -> None:
    """Announce 100 MB of zeros and send them."""
    x.writer.write(x.head(200, 100_000_000, MSGPACK))
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            x.writer.write(bytes(1_000_000))
            await x.writer.drain()


async def endless(x: Any) -> None:
    """Send a body that never ends."""
    x.writer.write(x.head(200, None, MSGPACK))
    with contextlib.suppress(ConnectionError):
        while not x.server.stopping.is_set():
            x.writer.write(bytes(100_000))
            await x.writer.drain()


async def zipped(x: Any) -> None:
    """Compress what nobody asked to be compressed."""
    body = gzip.compress(msgpack.packb(x.scores()))
    await x.send(200, body, MSGPACK, content_encoding="gzip")


async def cut_msgpack(x: Any) -> None:
    """Send msgpack that ends early, in a reply that is whole."""
    await x.send(200, msgpack.packb(x.scores())[:-3], MSGPACK)


async def json_called_msgpack(x: Any) -> None:
    """Claim the wrong content type."""
    await x.send(200, json.dumps(x.scores()).encode(), MSGPACK)


async def as_json(x: Any) -> None:
    """Answer in JSON though msgpack was asked for."""
    await x.send(200, json.dumps(x.scores()).encode(), "application/json; charset=utf-8")


async def one_missing(x: Any) -> None:
    """Leave a document out."""
    reply = x.scores()
    reply["scores"].pop()
    await x.send(200, msgpack.packb(reply), MSGPACK)


async def one_doubled(x: Any) -> None:
    """Score a document twice."""
    reply = x.scores()
    reply["scores"][0] = reply["scores"][1]
    await x.send(200, msgpack.packb(reply), MSGPACK)


async def one_unknown(x: Any) -> None:
    """Score a document that nobody sent."""
    reply = x.scores()
    reply["scores"][0]["item_id"] = "item-99"
    await x.send(200, msgpack.packb(reply), MSGPACK)


async def not_a_number(x: Any) -> None:
    """Send NaN in JSON."""
    reply = x.scores()
    reply["scores"][0]["score"] = float("nan")
    await x.send(200, json.dumps(reply).encode(), "application/json")


async def echo_credentials(x: Any) -> None:
    """Show the request in an error page, as debugging proxies do."""
    authorization = x.request.headers["authorization"]
    await x.send(500, f"<pre>{authorization}</pre>".encode(), "text/html")


async def echo_credentials_late(x: Any) -> None:
    """Show them where an excerpt would end within them."""
    body = "x" * 140 + x.request.headers["authorization"]
    await x.send(200, body.encode(), "text/html")


async def redirect_here(x: Any) -> None:
    """Redirect within the origin."""
    await x.send(307, b"", "text/plain", location="/elsewhere")


async def redirect_round(x: Any) -> None:
    """Redirect for ever."""
    await x.send(308, b"", "text/plain", location=x.request.path)


async def redirect_away(x: Any) -> None:
    """Redirect to another origin."""
    await x.send(307, b"", "text/plain", location="http://evil.invalid/v1/score/m")


async def redirect_to_get(x: Any) -> None:
    """Redirect in the way that turns a POST into a GET."""
    await x.send(302, b"", "text/plain", location="/elsewhere")


def refuse(status: int, code: str | None = None, **headers: str) -> Any:
    """Make a handler that refuses in the server's own shape."""

    async def handler(x: Any) -> None:
        await x.fail(status, code, **headers)

    return handler


def say(status: int, body: str, content_type: str = "application/json", **headers: str) -> Any:
    """Make a handler that gives this reply."""

    async def handler(x: Any) -> None:
        await x.send(status, body.encode(), content_type, **headers)

    return handler


GATEWAY_PAGE = say(502, "<html><h1>502 Bad Gateway</h1></html>", "text/html")


@dataclass(frozen=True)
class Fault:
    """One row: what goes wrong, what comes of it, after how many requests and how long at most."""

    handlers: list[Any]
    error: type[SIEError] | None = None
    match: str = ""
    num_requests: int | None = None
    within_seconds: float = 0.3
    status_code: int | None = None
    code: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def quick(timeout_seconds: float, **settings: Any) -> dict[str, Any]:
    """Shorten the deadline."""
    return {"timeout_seconds": timeout_seconds, **settings}


FAR = formatdate(time.time() + 3600, usegmt=True)
PAST = formatdate(time.time() - 3600, usegmt=True)

FAULTS: dict[str, Fault] = {
    # Nobody answers.
    "silence": Fault([never], DeadlineExceededError, "0.5 s", 1, 0.5, settings=quick(0.5)),
    "a late answer": Fault([late], within_seconds=0.3, num_requests=1),
    "a late answer after the deadline": Fault(
        [late], DeadlineExceededError, "not answered", 1, 0.2, settings=quick(0.2)
    ),
    "hang-up once": Fault([hang_up, answer], num_requests=2),
    "hang-up always": Fault([hang_up], SIEConnectionError, "asked 4 times", 4, 1.0),
    "reset once": Fault([reset, answer], num_requests=2),
    "reset always": Fault([reset], SIEConnectionError, "asked 4 times", 4, 1.0),
    "not HTTP": Fault([not_http], SIEConnectionError, "no reply", 4, 1.0),
    "a head without end": Fault([huge_head], SIEConnectionError, "no reply", 4, 2.0),
    # Half an answer.
    "closed in the head": Fault([half_head, answer], num_requests=2),
    "closed in the body once": Fault([half, answer], num_requests=2),
    "closed in the body always": Fault([half], SIEConnectionError, "no reply", 4, 1.0),
    "reset in the body once": Fault([half_then_reset, answer], num_requests=2),
    "closed in a chunk": Fault([half_chunked, answer], num_requests=2),
    "silence in the body": Fault(
        [half_then_silence], DeadlineExceededError, "", 1, 0.5, settings=quick(0.5)
    ),
    "a dripping body": Fault([drip_body], DeadlineExceededError, "", 1, 0.5, settings=quick(0.5)),
    "a dripping head": Fault([drip_head], DeadlineExceededError, "", 1, 0.5, settings=quick(0.5)),
    # A whole answer that is none.
    "100 MB of nothing": Fault([nothing_in_bulk], InvalidResponseError, "longer than", 1, 1.0),
    "a body without end": Fault([endless], InvalidResponseError, "longer than", 1, 1.0),
    "truncated msgpack": Fault([cut_msgpack], InvalidResponseError, "msgpack", 1, status_code=200),
    "garbage": Fault([say(200, "\0\1\2", MSGPACK)], InvalidResponseError, "cannot be used", 1),
    "an empty body": Fault([say(200, "", MSGPACK)], InvalidResponseError, "msgpack", 1),
    "HTML": Fault(
        [say(200, "<html>Log in</html>", "text/html")], InvalidResponseError, "<html>Log in", 1
    ),
    "no content type": Fault([say(200, "{}", "")], InvalidResponseError, "content type", 1),
    "a wrong content type": Fault([json_called_msgpack], InvalidResponseError, "msgpack", 1),
    "JSON instead of msgpack": Fault([as_json], num_requests=1),
    "a compressed body": Fault([zipped], InvalidResponseError, "compressed", 1),
    "another service's JSON": Fault([say(200, "{}")], InvalidResponseError, "'scores'", 1),
    "an answer without content": Fault(
        [say(204, "")], InvalidResponseError, "status 200", 1, status_code=204
    ),
    "a document missing": Fault([one_missing], InvalidResponseError, "no score for 1 of 3", 1),
    "a document doubled": Fault([one_doubled], InvalidResponseError, "twice", 1),
    "a document unknown": Fault([one_unknown], InvalidResponseError, "item-99", 1),
    "a score that is no number": Fault([not_a_number], InvalidResponseError, "finite", 1),
    # Refusals that pass.
    "429 with seconds": Fault([refuse(429, "RATE_LIMIT", retry_after="0"), answer]),
    "429 with a date": Fault([refuse(429, "RATE_LIMIT", retry_after=PAST), answer]),
    "429 without Retry-After": Fault([refuse(429), answer]),
    "503 QUEUE_FULL": Fault([refuse(503, "QUEUE_FULL", retry_after="0"), answer]),
    "503 QUEUE_UNAVAILABLE": Fault([refuse(503, "QUEUE_UNAVAILABLE"), answer]),
    "503 LORA_LOADING": Fault([refuse(503, "LORA_LOADING", retry_after="0"), answer]),
    "503 MODEL_NOT_LOADED": Fault([refuse(503, "MODEL_NOT_LOADED", retry_after="0"), answer]),
    "503 MODEL_LOADING": Fault(
        [refuse(503, "MODEL_LOADING", retry_after="5")] * 3 + [answer], num_requests=4,
        within_seconds=1.0,
    ),
    "503 RESOURCE_EXHAUSTED": Fault(
        [refuse(503, "RESOURCE_EXHAUSTED", retry_after="5"), answer], within_seconds=1.0
    ),
    "503 without a body": Fault([refuse(503), answer]),
    "502 from a gateway": Fault([GATEWAY_PAGE, answer]),
    "504 from a gateway": Fault([say(504, ""), answer]),
    "202 PROVISIONING, waited for": Fault(
        [refuse(202, "PROVISIONING"), answer], within_seconds=1.0,
        settings=quick(5, wait_for_capacity=True),
    ),
    "provisioning on its own budget": Fault(
        [refuse(503, "PROVISIONING", retry_after="1"), answer], within_seconds=2.0,
        settings=quick(0.5, wait_for_capacity=True, provision_timeout_seconds=5),
    ),
    "several in turn": Fault(
        [reset, refuse(429, retry_after="0"), refuse(503, "MODEL_LOADING"), GATEWAY_PAGE, answer],
        within_seconds=1.0, num_requests=5,
    ),
    # Refusals that stay.
    "429 for longer than there is": Fault(
        [refuse(429, "RATE_LIMIT", retry_after="100")], RateLimitedError, "429", 1,
        status_code=429, code="RATE_LIMIT",
    ),
    "429 until a far date": Fault([refuse(429, retry_after=FAR)], RateLimitedError, "429", 1),
    "503 QUEUE_FULL for longer than there is": Fault(
        [refuse(503, "QUEUE_FULL", retry_after="60")], QueueFullError, "", 1, code="QUEUE_FULL"
    ),
    "503 MODEL_LOADING for ever": Fault(
        [refuse(503, "MODEL_LOADING", retry_after="5")], DeadlineExceededError, "still loading",
        None, 0.6, code="MODEL_LOADING", settings=quick(0.6),
    ),
    "503 MODEL_NOT_LOADED for longer than there is": Fault(
        [refuse(503, "MODEL_NOT_LOADED", retry_after="60")], ModelLoadingError, "", 1
    ),
    "503 RESOURCE_EXHAUSTED for ever": Fault(
        [refuse(503, "RESOURCE_EXHAUSTED")], ResourceExhaustedError, "", None, 0.5,
        settings=quick(0.5),
    ),
    "502 from a gateway for ever": Fault(
        [GATEWAY_PAGE], ServerUnavailableError, "<h1>502 Bad Gateway", None, 0.6, 502,
        settings=quick(0.6),
    ),
    "504 with a long Retry-After": Fault(
        [say(504, "", retry_after="60")], ServerUnavailableError, "504", 1, status_code=504
    ),
    "202 PROVISIONING, not waited for": Fault(
        [refuse(202, "PROVISIONING")], ProvisioningError, "wait_for_capacity", 1, status_code=202
    ),
    "503 PROVISIONING, not waited for": Fault(
        [refuse(503, "PROVISIONING", retry_after="1")], ProvisioningError, "", 1
    ),
    "provisioning beyond its budget": Fault(
        [refuse(202, "PROVISIONING")], ProvisioningError, "", None, 0.5,
        settings=quick(60, wait_for_capacity=True, provision_timeout_seconds=0.5),
    ),
    "provisioning beyond the deadline": Fault(
        [refuse(202, "PROVISIONING")], ProvisioningError, "", None, 0.5,
        settings=quick(0.5, wait_for_capacity=True),
    ),
    # Refusals that asking again cannot mend.
    "400": Fault([refuse(400, "INVALID_INPUT")], InvalidRequestError, "as told", 1,
                 status_code=400, code="INVALID_INPUT"),
    "400 INPUT_TOO_LONG": Fault([refuse(400, "INPUT_TOO_LONG")], InputTooLongError, "", 1),
    "413": Fault([say(413, "")], InputTooLongError, "413", 1),
    "422 of another service": Fault(
        [say(422, '{"detail": [{"loc": ["body"], "msg": "Field required"}]}')],
        InvalidRequestError, "Field required", 1,
    ),
    "401": Fault([refuse(401)], AuthenticationError, "api_key", 1, status_code=401),
    "403": Fault([refuse(403)], AuthenticationError, "api_key", 1, status_code=403),
    "402": Fault([refuse(402, "INSUFFICIENT_CREDITS")], CreditsError, "", 1),
    "404 of a model": Fault([refuse(404, "MODEL_NOT_FOUND")], ModelNotFoundError, "", 1),
    "404 of a route": Fault([say(404, '{"detail": "Not Found"}')], ServerError, "Not Found", 1,
                            status_code=404),
    "500 INFERENCE_ERROR": Fault([refuse(500, "INFERENCE_ERROR")], InferenceError, "", 1),
    "500 of anything": Fault([say(500, "oops", "text/plain")], ServerError, "oops", 1),
    "500 that shows the request": Fault([echo_credentials], ServerError, r"\*\*\*", 1),
    "200 that shows the request": Fault([echo_credentials_late], InvalidResponseError, "Bearer", 1),
    "502 MODEL_LOAD_FAILED": Fault([refuse(502, "MODEL_LOAD_FAILED")], ModelLoadError, "", 1),
    "a gateway's error": Fault(
        [say(404, '{"error": {"code": "model_not_found", "message": "no such"}}')],
        ModelNotFoundError, "no such", 1, code="MODEL_NOT_FOUND",
    ),
    "a gateway's message": Fault(
        [say(400, '{"message": "what?"}')], InvalidRequestError, r"what\?", 1
    ),
    "a code in the header": Fault(
        [say(503, "{}", x_sie_error_code="QUEUE_FULL", retry_after="60")], QueueFullError, "", 1,
        code="QUEUE_FULL",
    ),
    # Redirects.
    "a redirect within the origin": Fault([redirect_here, answer], num_requests=2),
    "a redirect to another origin": Fault([redirect_away], ServerError, "evil.invalid", 1),
    "a redirect that loses the body": Fault([redirect_to_get], ServerError, "not followed", 1),
    "a redirect to itself": Fault([redirect_round], ServerError, "not followed", 4),
}  # fmt: skip


def ask(kind: str, url: str, **settings: Any) -> Any:
    """Score three documents with the client of that kind."""
    query = Item(text="q")
    items = [Item(text="document 1"), Item(text="0"), Item(text="2")]
    settings = {"timeout_seconds": 8.0, "api_key": API_KEY, **settings}
    if kind == "sync":
        with SIEClient(url, **settings) as client:
            return client.score("test/model", query, items)

    async def call() -> Any:
        async with SIEAsyncClient(url, **settings) as client:
            return await client.score("test/model", query, items)

    return asyncio.run(call())


def check_answer(answer: Any) -> None:
    """The one right answer: the texts' numbers, negative, best first."""
    found = [(entry["item_id"], entry["score"], entry["rank"]) for entry in answer["scores"]]
    assert found == [("item-1", 0.0, 0), ("item-0", -1.0, 1), ("item-2", -2.0, 2)]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_has_its_outcome_in_time(fault: Fault, kind: str, serve: Any) -> None:
    """A fault ends in an answer or in one clear exception, never in a hang or a wrong score."""
    server = serve(*fault.handlers)
    started = time.perf_counter()
    if fault.error is None:
        check_answer(ask(kind, server.url, **fault.settings))
    else:
        with pytest.raises(SIEError, match=fault.match or None) as caught:
            ask(kind, server.url, **fault.settings)
        assert type(caught.value) is fault.error
        assert API_KEY[:8] not in repr(caught.value)
        assert fault.status_code in (None, caught.value.status_code)
        assert fault.code in (None, caught.value.code)
    assert time.perf_counter() - started < fault.within_seconds + SLACK_SECONDS
    if fault.num_requests is not None:
        assert len(server.requests) == fault.num_requests


def test_the_table_is_long_enough() -> None:
    """No fewer than thirty faults are tried."""
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stopped_server_fails_at_once(kind: str) -> None:
    """Where nothing listens, the call fails in well under the connect timeout."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    started = time.perf_counter()
    with pytest.raises(SIEConnectionError, match="is the server running"):
        ask(kind, f"http://127.0.0.1:{port}", timeout_seconds=900)
    assert time.perf_counter() - started < 1.0 + SLACK_SECONDS


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port whose connections are never accepted: its queue is full, so packets are dropped."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_address_that_swallows_packets_fails_after_the_connect_timeout(
    kind: str, deaf_port: int
) -> None:
    """A blackhole costs the connect timeout once, whatever the deadline."""
    started = time.perf_counter()
    with pytest.raises(SIEConnectionError, match="did not accept a connection"):
        ask(kind, f"http://127.0.0.1:{deaf_port}", timeout_seconds=900, connect_timeout_seconds=0.5)
    assert 0.4 < time.perf_counter() - started < 0.5 + SLACK_SECONDS


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_deadline_bounds_connecting_too(kind: str, deaf_port: int) -> None:
    """A deadline below the connect timeout wins, and says that it was the deadline."""
    started = time.perf_counter()
    with pytest.raises(DeadlineExceededError, match=r"0\.3 s"):
        ask(kind, f"http://127.0.0.1:{deaf_port}", timeout_seconds=0.3)
    assert time.perf_counter() - started < 0.3 + SLACK_SECONDS


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_that_does_not_read_is_left_in_time(kind: str) -> None:
    """A request larger than the network's buffers, never read, ends with the deadline."""
    items = [{"text": "x" * 1_000_000}] * 30
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.perf_counter()
        with pytest.raises(DeadlineExceededError):
            send_large(kind, url, items)
        assert time.perf_counter() - started < 1.0 + SLACK_SECONDS


def send_large(kind: str, url: str, items: list[Any]) -> Any:
    """Send many bytes within a second."""
    if kind == "sync":
        with SIEClient(url, timeout_seconds=1.0) as client:
            return client.score("m", {"text": "q"}, items)

    async def call() -> Any:
        async with SIEAsyncClient(url, timeout_seconds=1.0) as client:
            return await client.score("m", {"text": "q"}, items)

    return asyncio.run(call())
