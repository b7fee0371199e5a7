"""Who is let in: to a whole server over HTTP, by keys in a file."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core import Item, SIEClient
from sie_core.errors import AuthenticationError
from sie_core.server.keys import make_key
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

BODY = {"query": {"text": "paris"}, "items": [{"text": "the capital of france"}]}


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    """Keys by name, without their lines."""
    return {}


@pytest.fixture(scope="module")
def guarded(
    serve_module: Callable[..., Server],
    tiny_bert: Path,
    tmp_path_factory: pytest.TempPathFactory,
    keys: dict[str, str],
) -> Server:
    """A server with a key for an app, and one for who runs it."""
    folder = tmp_path_factory.mktemp("keys")
    lines = []
    for name in ("app", "root"):
        keys[name], line = make_key(name, is_admin=name == "root")
        lines.append(f"{line}\n")
    (folder / "keys").write_text("".join(lines))
    (folder / "keys").chmod(0o600)
    models = (ModelSettings(name="tiny", source=str(tiny_bert)),)
    return serve_module(models=models, api_key_file=str(folder / "keys"))


def bearer(key: str) -> dict[str, str]:
    """The header that every client sends."""
    return {"Authorization": f"Bearer {key}"}


def test_the_official_call_works_with_a_key_only(guarded: Server, keys: dict[str, str]) -> None:
    """Ours is one of the clients that send Bearer."""
    with SIEClient(guarded.url, api_key=keys["app"]) as client:
        assert client.score("tiny", Item(text="a"), [Item(text="b")])["scores"]
    with (
        SIEClient(guarded.url, api_key="sie_wrong") as client,
        pytest.raises(AuthenticationError, match="not one of this server's"),
    ):
        client.score("tiny", Item(text="a"), [Item(text="b")])


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="sie"'),
        ({"Authorization": "Basic c2llOnNpZQ=="}, 'Bearer realm="sie"'),
        ({"Authorization": "Bearer"}, 'Bearer realm="sie", error="invalid_token"'),
        ({"Authorization": "Bearer sie_x"}, 'Bearer realm="sie", error="invalid_token"'),
    ],
)
def test_who_has_no_key_is_told_401_and_how_to_give_one(
    guarded: Server, headers: dict[str, str], challenge: str
) -> None:
    """RFC 6750; the body is SIE's own shape."""
    reply = httpx.post(f"{guarded.url}/v1/score/tiny", json=BODY, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"] == challenge
    assert reply.headers["X-SIE-Error-Code"] == "UNAUTHORIZED"
    assert reply.json()["detail"]["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/embeddings"])
def test_each_dialect_is_refused_in_its_own_shape(guarded: Server, path: str) -> None:
    """As its clients read errors: the shape that a call of theirs that is wrong gets, too."""
    headers = bearer(make_key("stranger")[0])
    refused = httpx.post(f"{guarded.url}{path}", json={}, headers=headers)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    shape = {
        "/v1/rerank": lambda reply: reply["error"]["message"],
        "/v2/rerank": lambda reply: reply["message"],
        "/rerank": lambda reply: reply["error"],
        "/v1/embeddings": lambda reply: reply["error"]["message"],
    }
    assert "not one of this server's" in shape[path](refused.json())


def test_the_scheme_is_read_in_any_case(guarded: Server, keys: dict[str, str]) -> None:
    """As RFC 9110 has it."""
    headers = {"Authorization": f"bearer {keys['app']}"}
    reply = httpx.post(f"{guarded.url}/v1/score/tiny", json=BODY, headers=headers)
    assert reply.status_code == 200


def test_two_keys_at_once_are_none(guarded: Server, keys: dict[str, str]) -> None:
    """A proxy and this server must not read different ones."""
    headers = [("Authorization", "Bearer no"), ("Authorization", f"Bearer {keys['app']}")]
    reply = httpx.post(f"{guarded.url}/v1/score/tiny", json=BODY, headers=headers)
    assert reply.status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/", "/docs"])
def test_health_and_the_page_are_open(guarded: Server, path: str) -> None:
    """What asks for it has no key; nor has the browser that opens the page, which then asks."""
    assert httpx.get(f"{guarded.url}{path}").status_code == 200


@pytest.mark.parametrize(
    "path", ["/metrics", "/v1/models", "/v1/models/tiny", "/nowhere", "/healthz/", "//healthz"]
)
def test_everything_else_is_not(guarded: Server, path: str) -> None:
    """What is no route does not say so to strangers."""
    assert httpx.get(f"{guarded.url}{path}").status_code == 401


def test_metrics_can_be_opened(
    serve: Callable[..., Server], tiny_bert: Path, tmp_path: Path
) -> None:
    """For a Prometheus that finds its targets by itself."""
    (tmp_path / "keys").write_text(f"{make_key('app')[1]}\n")
    models = (ModelSettings(name="tiny", source=str(tiny_bert)),)
    server = serve(models=models, api_key_file=str(tmp_path / "keys"), open_metrics=True)
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_only_an_admin_reloads_models(guarded: Server, keys: dict[str, str]) -> None:
    """403 for a key that may call, but not change what is served."""
    url = f"{guarded.url}/v1/models/tiny/reload"
    assert httpx.post(url).status_code == 401
    refused = httpx.post(url, headers=bearer(keys["app"]))
    assert (refused.status_code, refused.json()["detail"]["code"]) == (403, "FORBIDDEN")
    assert httpx.post(url, headers=bearer(keys["root"])).json()["replaced"] == 1


def test_a_stranger_is_refused_before_their_body_is_read(guarded: Server) -> None:
    """The reply is there while the body is still to come."""
    address = httpx.URL(guarded.url)
    head = (
        f"POST /v1/score/tiny HTTP/1.1\r\nHost: {address.host}\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_the_log_names_the_key_and_never_shows_it(
    guarded: Server, keys: dict[str, str], caplog: pytest.LogCaptureFixture, access_lines: Any
) -> None:
    """Not on debug either, and neither a wrong one."""
    with caplog.at_level(logging.DEBUG):
        httpx.post(f"{guarded.url}/v1/score/tiny", json=BODY, headers=bearer(keys["app"]))
        httpx.post(f"{guarded.url}/v1/score/tiny", json=BODY, headers=bearer("sie_wrong"))
        lines = access_lines.wait(2, "/v1/score/tiny")
    assert [line.get("key") for line in lines] == ["app", None]
    everything = caplog.text + json.dumps(lines)
    assert keys["app"] not in everything
    assert "sie_wrong" not in everything
