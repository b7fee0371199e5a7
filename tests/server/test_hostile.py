"""Requests that nobody means well with: the server answers, stays whole, and keeps to itself.

What is sent stands on raw sockets, byte for byte. After each the server still serves.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
import msgpack
import pytest

from sie_core.server.connection import MAX_HEAD_BYTES
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

SCORE = "/v1/score/tiny"
BODY = json.dumps({"query": {"text": "paris"}, "items": [{"text": "france"}]}).encode()
MAX_BODY_BYTES = 4 * 2**20
BODY_SECONDS = 0.5
HEAD_SECONDS = 0.6


@pytest.fixture(scope="module")
def server(serve_module: Callable[..., Server], tiny_bert: Path) -> Server:
    """A server whose patience is short."""
    return serve_module(
        models=(ModelSettings(name="tiny", source=str(tiny_bert)),),
        max_body_bytes=MAX_BODY_BYTES,
        head_timeout_seconds=HEAD_SECONDS,
        body_timeout_seconds=BODY_SECONDS,
        max_connections=50,
    )


@pytest.fixture(autouse=True)
def _still_serves(server: Server) -> Iterator[None]:
    """Whatever a test has sent, the next caller gets scores."""
    yield
    reply = httpx.post(f"{server.url}{SCORE}", content=BODY)
    assert reply.status_code == 200
    assert server.app.state.service.door.num_requests == 0
    assert server.app.state.service.door.num_bytes == 0


class Talk:
    """One connection, byte for byte."""

    def __init__(self, server: Server) -> None:
        address = urlsplit(server.url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, *parts: bytes | str) -> None:
        """Send."""
        self.socket.sendall(b"".join(it.encode() if isinstance(it, str) else it for it in parts))

    def hear(self) -> bytes:
        """Read until the server closes the connection."""
        heard = b""
        while True:
            try:
                chunk = self.socket.recv(65536)
            except ConnectionResetError:  # it closed while bytes of ours were under way
                return heard
            if not chunk:
                return heard
            heard += chunk


def head(*lines: str, path: str = SCORE, method: str = "POST") -> str:
    """The head of a request."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""))


def status(reply: bytes) -> int:
    """The status of a reply."""
    return int(reply.split(b" ", 2)[1])


def code(reply: bytes) -> str:
    """The error code in a reply's body; every error is JSON."""
    found: str = json.loads(reply.partition(b"\r\n\r\n")[2])["detail"]["code"]
    return found


def post(server: Server, body: bytes, kind: str = "application/json") -> httpx.Response:
    """Post a body to be scored, and check that the reply tells nothing of the server's insides."""
    reply = httpx.post(f"{server.url}{SCORE}", content=body, headers={"Content-Type": kind})
    for word in ("Traceback", "sie_core", ".py", "site-packages"):
        assert word not in reply.text
    return reply


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x" * 200])
def test_nothing_compressed_is_unpacked(server: Server, encoding: str) -> None:
    """A bomb of a few KB would be gigabytes."""
    bomb = gzip.compress(b"0" * 2**24)
    headers = {"Content-Encoding": encoding}
    reply = httpx.post(f"{server.url}{SCORE}", content=bomb, headers=headers)
    assert reply.status_code == 415
    assert reply.json()["detail"]["code"] == "INVALID_INPUT"


NESTED = {
    "json lists": (b"[" * 200_000, "application/json"),
    "json maps": (b'{"a":' * 200_000, "application/json"),
    "json in options": (
        BODY[:-1] + b', "options": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "application/json",
    ),
    "json in what is skipped": (
        BODY[:-1] + b', "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "application/json",
    ),
    "msgpack lists": (b"\x91" * 200_000, "application/msgpack"),
    "msgpack in options": (
        b"\x83\xa5query\x81\xa4text\xa1a\xa5items\x91\x81\xa4text\xa1a\xa7options\x81\xa1a"
        + b"\x91" * 200_000
        + b"\xc0",
        "application/msgpack",
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_nesting_has_an_end(server: Server, name: str) -> None:
    """It would otherwise be that of the stack."""
    reply = post(server, *NESTED[name])
    assert (reply.status_code, reply.json()["detail"]["code"]) == (400, "INVALID_INPUT")


CLAIMS = {
    "list": b"\x82\xa5query\x80\xa5items\xdd\xff\xff\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "text": b"\xdb\xff\xff\xff\xff",
    "bytes": b"\xc6\xff\xff\xff\xff",
    "extension": b"\xc9\xff\xff\xff\xff\x01",
    "list in options": b"\x83\xa5query\x80\xa5items\x90\xa7options\x81\xa1a\xdd\xff\xff\xff\xff",
    "nothing": b"",
    "reserved": b"\xc1",
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_msgpack_heads_are_not_believed(server: Server, name: str) -> None:
    """Four bytes can claim four gigabytes."""
    reply = post(server, CLAIMS[name], "application/msgpack")
    assert (reply.status_code, reply.json()["detail"]["code"]) == (400, "INVALID_INPUT")


def many(unit: bytes, before: bytes, after: bytes) -> bytes:
    """As many of something as a body holds."""
    return before + unit * ((MAX_BODY_BYTES - 200) // len(unit)) + after


MANY = {
    "items": (many(b"{},", b'{"query": {"text": "a"}, "items": [', b"{}]}"), "application/json"),
    "lists": (many(b"[],", BODY[:-1] + b', "options": {"a": [', b"[]]}}"), "application/json"),
    "skipped": (many(b"[],", BODY[:-1] + b', "more": [', b"[]]}"), "application/json"),
    "names": (
        BODY[:-1] + b', "options": {' + b",".join(b'"%x":1' % i for i in range(400_000)) + b"}}",
        "application/json",
    ),
    "escapes": (
        BODY[:-1] + b', "more": [' + b"[]," * 600_000 + b'"' + b'\\"' * 600_000,
        "application/json",
    ),
    "msgpack items": (
        b"\x82\xa5query\x80\xa5items\xdd"
        + (MAX_BODY_BYTES - 100).to_bytes(4, "big")
        + b"\x80" * (MAX_BODY_BYTES - 100),
        "application/msgpack",
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_a_body_of_very_many_values_is_refused_before_it_is_decoded(
    server: Server, name: str
) -> None:
    """Decoded they would be 25 times as large, and keep everyone waiting."""
    body, kind = MANY[name]
    assert len(body) <= MAX_BODY_BYTES
    reply = post(server, body, kind)
    assert reply.status_code == 400
    assert "holds more than 250,000 values" in reply.json()["detail"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b'{"query": {"text": "\xff"}, "items": []}',
        b'{"query": {"text": "\\ud800"}, "items": [{"text": "a"}]}',
        b'{"query": {"text": "a"}, "items": [{"text": "a"}], "options": {"max_length": NaN}}',
        b'{"query": {"text": "a"}, "items": [{"text": "a"}], "options": {"a": '
        + b"9" * 9999
        + b"}}",
        b'{"query": {"text": 1}, "items": [{"text": "a"}]}',
        b"null",
        b"\x00" * 1000,
    ],
)
def test_what_is_no_json_is_the_callers_mistake(server: Server, body: bytes) -> None:
    """400, never 500."""
    assert post(server, body).status_code == 400


def test_text_of_any_characters_is_scored(server: Server) -> None:
    """Control characters, other planes, right to left, zero bytes."""
    text = "".join(map(chr, [*range(32), 0x202E, 0xFEFF, 0xFFFF, 0x1F600, 0x10FFFF]))
    body = {"query": {"text": text}, "items": [{"text": text, "id": text}]}
    reply = post(server, msgpack.packb(body), "application/msgpack")
    assert reply.status_code == 200
    assert msgpack.unpackb(reply.content)["scores"][0]["item_id"] == text


def test_a_body_that_says_it_is_too_large_is_not_waited_for(server: Server) -> None:
    """Its length is enough."""
    with Talk(server) as talk:
        talk.say(head(f"Content-Length: {MAX_BODY_BYTES + 1}"))
        reply = talk.hear()
    assert (status(reply), code(reply)) == (413, "INPUT_TOO_LONG")


def test_one_that_does_not_say_so_is_read_no_further(server: Server) -> None:
    """In chunks, it has no length; the server reads to its limit and closes."""
    chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    with Talk(server) as talk:
        talk.say(head("Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 20 * MAX_BODY_BYTES:
                talk.say(chunk)
                sent += len(chunk)
        except OSError:  # closed: that is the point
            pass
        reply = talk.hear()
    assert sent < 10 * MAX_BODY_BYTES
    assert not reply or status(reply) == 413


def test_a_slow_body_is_given_up(server: Server) -> None:
    """408, after the time that the settings say."""
    with Talk(server) as talk:
        talk.say(head("Content-Length: 100"), "{")
        began = time.monotonic()
        reply = talk.hear()
    assert (status(reply), code(reply)) == (408, "REQUEST_TIMEOUT")
    assert time.monotonic() - began > BODY_SECONDS / 2


def test_a_body_that_nobody_reads_is_given_up_too(server: Server) -> None:
    """A health check with a body that never ends cannot hold its connection."""
    with Talk(server) as talk:
        talk.say(head("Content-Length: 100", path="/healthz", method="GET"), "{")
        reply = talk.hear()  # ends: the connection is closed
    assert status(reply) == 200


def test_a_slow_head_is_given_up(server: Server) -> None:
    """The oldest attack on servers with threads or memory: a header now and then."""
    with Talk(server) as talk:
        talk.say("POST /v1/score/tiny HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        reply = talk.hear()
    assert (status(reply), code(reply)) == (408, "REQUEST_TIMEOUT")


def test_a_connection_without_a_word_is_closed_without_one(server: Server) -> None:
    """Browsers open some ahead of time."""
    with Talk(server) as talk:
        assert talk.hear() == b""


def test_a_second_head_is_waited_for_no_longer_than_the_first(server: Server) -> None:
    """On a connection that was used well before."""
    with Talk(server) as talk:
        talk.say(head(f"Content-Length: {len(BODY)}"), BODY)
        assert status(talk.socket.recv(65536)) == 200
        talk.say("POST /v1/score/tiny HTTP/1.1\r\nX-Slow: ")
        assert status(talk.hear()) == 408


@pytest.mark.parametrize(
    "lines",
    [
        [f"X-Large: {'x' * MAX_HEAD_BYTES}"],
        [f"X-{i}: {'x' * 1000}" for i in range(70)],
    ],
)
def test_a_head_has_a_size(server: Server, lines: list[str]) -> None:
    """The parser itself has no limit."""
    with Talk(server) as talk:
        # Without the empty line at its end: with it, uvicorn would have a request already.
        talk.say(head(*lines)[:-2])
        reply = talk.hear()
    assert not reply or (status(reply), code(reply)) == (431, "INPUT_TOO_LONG")


@pytest.mark.parametrize(
    "garbage",
    [
        "nonsense\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # the begin of TLS
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        head("Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n",
        head("Content-Length: -1"),
        head("Content-Length: 5", "Content-Length: 6") + "hello",
        head("Content-Length: 99999999999999999999999"),
        head("Transfer-Encoding: chunked") + "zz\r\n",
        head("No colon here"),
        head("X-Zero: \0"),
    ],
)
def test_what_is_no_http_is_400_in_the_shape_of_every_error(server: Server, garbage: str) -> None:
    """Among it what proxies and servers read differently, to smuggle requests."""
    with Talk(server) as talk:
        talk.say(garbage.encode("latin-1"))
        reply = talk.hear()
    assert (status(reply), code(reply)) == (400, "INVALID_INPUT")


def test_garbage_behind_a_request_does_not_reach_the_app(server: Server) -> None:
    """The request may still be answered; the connection ends."""
    with Talk(server) as talk:
        talk.say(head(f"Content-Length: {len(BODY)}"), BODY, b"\x00\xffnonsense\r\n\r\n")
        statuses = {int(part[:3]) for part in talk.hear().split(b"HTTP/1.1 ")[1:]}
    assert statuses <= {200, 400}


def test_a_body_longer_than_it_says_is_the_next_request(server: Server) -> None:
    """And that is none."""
    with Talk(server) as talk:
        talk.say(head(f"Content-Length: {len(BODY)}"), BODY)
        assert status(talk.socket.recv(65536)) == 200
        talk.say("trailing rubbish\r\n\r\n")
        assert status(talk.hear()) == 400


def test_requests_sent_ahead_are_answered_in_order(server: Server) -> None:
    """Pipelining is HTTP, if rare."""
    other = BODY.replace(b"france", b"bananas are yellow")
    with Talk(server) as talk:
        for body, last in ((BODY, ""), (other, ""), (BODY, "Connection: close")):
            lines = [f"Content-Length: {len(body)}", "Accept: application/json", last]
            talk.say(head(*filter(None, lines)), body)
        heard = talk.hear()
    bodies = [part.partition(b"\r\n\r\n")[2] for part in heard.split(b"HTTP/1.1 200 OK")[1:]]
    scores = [json.loads(body)["scores"][0]["score"] for body in bodies]
    assert len(scores) == 3
    assert scores[0] == scores[2] != scores[1]


def test_a_caller_who_ends_their_side_gets_their_reply(server: Server) -> None:
    """A half-closed socket can be read from."""
    with Talk(server) as talk:
        talk.say(head(f"Content-Length: {len(BODY)}", "Connection: close"), BODY)
        talk.socket.shutdown(socket.SHUT_WR)
        reply = talk.hear()
    assert not reply or status(reply) == 200


def test_a_body_that_breaks_off_is_dropped(server: Server) -> None:
    """Nothing is computed for it, and nothing is kept."""
    for _ in range(20):
        with Talk(server) as talk:
            talk.say(head(f"Content-Length: {len(BODY)}"), BODY[:10])


def test_more_connections_than_a_number_are_closed(server: Server) -> None:
    """And those that are open go on."""
    talks = [Talk(server) for _ in range(50)]
    try:
        talks[0].say(head(f"Content-Length: {len(BODY)}"), BODY)
        assert status(talks[0].socket.recv(65536)) == 200
        with Talk(server) as one_more:
            reply = one_more.hear()
        assert (status(reply), code(reply)) == (503, "QUEUE_FULL")
    finally:
        for talk in talks:
            talk.__exit__()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/models//etc/passwd",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "/v1/models/" + "a" * 60_000,
        "/v1/models/" + "a/" * 20_000,
        "//evil.example/%2f..",
        "/%0d%0aX-Injected:%201",
    ],
)
def test_no_path_leads_out_or_into_the_head(server: Server, path: str) -> None:
    """404, and the reply's head holds what the server put there."""
    with Talk(server) as talk:
        talk.say(head("Connection: close", path=path, method="GET"))
        reply = talk.hear()
    assert status(reply) == 404
    assert b"X-Injected" not in reply.partition(b"\r\n\r\n")[0]
    assert b"root:" not in reply


def test_methods_that_are_none_are_refused(server: Server) -> None:
    """TRACE would echo headers."""
    for method in ("TRACE", "CONNECT", "PUT", "DELETE", "PATCH"):
        with Talk(server) as talk:
            talk.say(head("Connection: close", method=method))
            assert status(talk.hear()) in (400, 405)
