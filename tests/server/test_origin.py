"""Pages of other sites, in the browser of someone on the server's machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from sie_core.errors import InvalidRequestError
from sie_core.server.origin import check_origin, is_loopback_host
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

BODY = '{"query": {"text": "paris"}, "items": [{"text": "france"}]}'


def call(server: Server, **headers: str) -> httpx.Response:
    """Call as a form of a page can: without a preflight, as text."""
    sent = {"Content-Type": "text/plain"} | {
        name.replace("_", "-"): text for name, text in headers.items()
    }
    return httpx.post(f"{server.url}/v1/score/test/tiny-bert-ce", content=BODY, headers=sent)


def test_programs_and_the_servers_own_page_may_call(served: Server) -> None:
    """Programs send no origin; the page sends the server's."""
    assert call(served).status_code == 200
    assert call(served, Origin=served.url).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1:1", "null", "http://localhost", "garbage"]
)
def test_pages_of_others_may_not(served: Server, origin: str) -> None:
    """A form can post JSON as text/plain, which browsers send without asking first."""
    reply = call(served, Origin=origin)
    assert (reply.status_code, reply.json()["detail"]["code"]) == (403, "FORBIDDEN")


def test_a_name_made_to_lead_here_is_refused(served: Server) -> None:
    """DNS rebinding: to the browser it is the page's own site."""
    reply = call(served, Host="evil.example", Origin="http://evil.example")
    assert reply.status_code == 403
    assert call(served, Host="evil.example").status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:8080"])
def test_this_machines_own_names_are_not(served: Server, host: str) -> None:
    """With whatever port: a tunnel may have another."""
    assert call(served, Host=host).status_code == 200


def test_a_site_can_be_allowed(serve: Callable[..., Server], tiny_bert: Path) -> None:
    """It is then told that it may read the replies, too."""
    models = (ModelSettings(name="test/tiny-bert-ce", source=str(tiny_bert)),)
    server = serve(models=models, allowed_origins=("https://Search.example/",))
    reply = call(server, Origin="https://search.example")
    assert reply.status_code == 200
    assert reply.headers["Access-Control-Allow-Origin"] == "https://search.example"
    assert call(server, Host="search.example", Origin="https://search.example").status_code == 200
    refused = call(server, Origin="https://evil.example")
    assert refused.status_code == 403
    assert "Access-Control-Allow-Origin" not in refused.headers


@pytest.mark.parametrize("text", ["search.example", "ftp://a", "https://", "https://a/b", "*"])
def test_an_origin_is_a_scheme_and_a_name(text: str) -> None:
    """As browsers send it."""
    with pytest.raises(InvalidRequestError, match="an origin is https://NAME"):
        check_origin(text)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3:80", True),
        ("[::1]", True),
        ("localhost:8080", True),
        ("a.localhost", True),
        ("192.0.2.1", False),
        ("10.0.0.1", False),
        ("[::]:80", False),
        ("[::1", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_which_hosts_are_this_machines_own(host: str, is_loopback: bool) -> None:
    """By name or number."""
    assert is_loopback_host(host) is is_loopback
