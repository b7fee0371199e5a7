"""The requests recorded from a real server's callers, sent to ours byte for byte."""

from __future__ import annotations

import base64
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import pytest

from sie_core.server.run import Server

RECORDED = Path(__file__).parent.parent / "remote" / "recorded"

OURS_DIFFER = {
    "cold_model_loading_503_json": "how a model stood then: test_shelf.py",
    "cold_model_loading_503_msgpack": "how a model stood then: test_shelf.py",
    "fault_load_fail_first": "a fault injected there: test_shelf.py",
    "fault_oom_503_resource_exhausted": "a fault injected there: test_failures.py",
    "fault_oom_rerank": "500 there, 503 as on other routes here: test_failures.py",
    "fault_queue_full_503": "a fault injected there: test_service.py",
    "fault_slow_load_first": "a fault injected there: test_shelf.py",
    "fault_slow_load_ok": "a fault injected there: test_shelf.py",
    "rerank_load_failed": "a fault injected there: test_failures.py",
    "get_metrics": "there a gateway has them; ours has them itself",
    "get_root": "there a redirect to documentation; ours is a page",
    "score_body_over_34MiB": "the request was not kept: test_hostile.py",
}
"""Recordings that are not replayed, and why."""

OPENAI_FIELDS = {"id", "object", "created", "owned_by"}
"""What OpenAI's clients read of a model."""

MORE_FIELDS = {"score_space", "timing", "truncated", "loras", "usage", *OPENAI_FIELDS}
"""What our replies say besides."""


OF_ONE_SERVER = {"x-sie-runtime-instance", "x-postprocessing-time"}
"""Headers of the real server's that say which process it was, and of a step that ours has not."""


@dataclass(frozen=True)
class Reply:
    """What came back on a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def read(cls, raw: bytes) -> Reply:
        """Take a reply apart."""
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        return cls(int(first.split()[1]), headers, body)

    def content(self) -> Any:
        """Decode the body by its content type."""
        kind = self.headers.get("content-type", "")
        if "msgpack" in kind:
            return msgpack.unpackb(self.body)
        return json.loads(self.body) if "json" in kind else self.body.decode()


def exchange_over(url: str, request: bytes) -> Reply:
    """Send a request as it is, and read until the server closes the connection."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    return Reply.read(b"".join(chunks))


def recordings() -> list[Any]:
    """Every recording that can be replayed."""
    return [
        pytest.param(json.loads(file.read_text()), id=file.stem)
        for file in sorted(RECORDED.glob("*.json"))
        if file.stem not in OURS_DIFFER
    ]


def raw_request(recording: dict[str, Any]) -> bytes:
    """Return the request's bytes; of those that were too long to keep, what they decode to."""
    kept = recording["request_raw_b64"]
    if kept is not None:
        return base64.b64decode(kept)
    body = json.dumps(recording["request_body_decoded"]).encode()
    headers = recording["request_headers"] | {
        "Host": "localhost",
        "Connection": "close",
        "Content-Length": str(len(body)),
    }
    lines = [f"{recording['method']} {recording['path']} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def shape(value: Any) -> Any:
    """Return a value's structure: the names of its fields, and the kinds of their values."""
    if isinstance(value, dict):
        if b"data" in value or ("data" in value and "nd" in value):
            return ("array", value.get(b"type"), len(value.get(b"shape", ())))
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, bool) or value is None:
        return type(value)
    return float if isinstance(value, int | float) else type(value)


def assert_holds(ours: Any, theirs: Any, where: str = "reply") -> None:
    """Hold that ours has what theirs has, with values of the same kinds."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        more = set(map(str, ours)) - set(map(str, theirs)) - MORE_FIELDS
        assert not more or where.startswith("reply.profiles"), f"{where} has {more} besides"
        for key, part in theirs.items():
            if where.endswith(("timing", "profiles.default", "profiles.instructed")):
                continue
            if part is type(None) and key not in ours:
                continue  # a field that says nothing
            if where == "reply" and key in ("revision", "capabilities", "routing", "usage"):
                continue  # what only a gateway has use for; usage is optional
            assert key in ours, f"{where} lacks {key}"
            assert_holds(ours[key], part, f"{where}.{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list), where
        if theirs:
            assert_holds(ours[0], theirs[0], f"{where}[0]")
    elif theirs is not type(None):
        assert ours == theirs, f"{where} is {ours}, not {theirs}"


@pytest.mark.parametrize("recording", recordings())
def test_a_recorded_request_gets_the_recorded_kind_of_reply(
    served: Server, recording: dict[str, Any]
) -> None:
    """Status, content type, shape of the body and code of the error are the real server's."""
    reply = exchange_over(served.url, raw_request(recording))
    recorded = Reply.read(base64.b64decode(recording["response_raw_b64"]))
    assert reply.status == recorded.status
    assert reply.headers.get("content-type") == recorded.headers.get("content-type")
    ours, theirs = reply.content(), recorded.content()
    own = {name for name in recorded.headers if name.startswith("x-")} - OF_ONE_SERVER
    assert own <= set(reply.headers)
    assert reply.headers.get("retry-after") == recorded.headers.get("retry-after")
    assert reply.headers.get("allow", "").partition(",")[0] == recorded.headers.get("allow", "")
    if reply.status == 200:
        assert_holds(shape(ours), shape(theirs))
    elif isinstance(theirs.get("detail"), dict):
        assert ours["detail"]["code"] == theirs["detail"]["code"]
        assert isinstance(ours["detail"]["message"], str)
        assert reply.headers["x-sie-error-code"] == theirs["detail"]["code"]
    elif "error" in theirs:
        assert shape(ours) == shape(theirs)
        assert ours["error"]["code"] == theirs["error"]["code"]
        assert ours["error"]["type"] == theirs["error"]["type"]
        assert ours["error"]["param"] == theirs["error"]["param"]
    else:
        assert ours == theirs


def test_the_ids_ranks_and_echoes_are_the_recorded_ones(served: Server) -> None:
    """Ids given or made up, duplicates, and the query's id come back as the real server's do."""
    for file in sorted(RECORDED.glob("score_*.json")):
        recording = json.loads(file.read_text())
        recorded = Reply.read(base64.b64decode(recording["response_raw_b64"]))
        if recorded.status != 200 or file.stem in OURS_DIFFER:
            continue
        ours = exchange_over(served.url, raw_request(recording)).content()
        theirs = recorded.content()
        assert sorted(entry["item_id"] for entry in ours["scores"]) == sorted(
            entry["item_id"] for entry in theirs["scores"]
        )
        assert [entry["rank"] for entry in ours["scores"]] == list(range(len(theirs["scores"])))
        assert ours["query_id"] == theirs["query_id"]
        assert ours["model"] == theirs["model"]


def test_every_recording_is_accounted_for() -> None:
    """What is not replayed is named, and exists."""
    assert set(OURS_DIFFER) <= {file.stem for file in RECORDED.glob("*.json")}
    assert len(recordings()) == 78 - len(OURS_DIFFER)
