"""The page's route: its headers, and a file that holds all it needs."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources

import httpx
import pytest

from sie_core.server.page import PAGE, content_security_policy, known_tags
from sie_core.server.run import Server

CONTENT = resources.files("sie_core.server").joinpath(PAGE).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The tags of a page, and what stands inside style and script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep what is in the last tag, if that is code."""
        if self.tags and self.tags[-1][0] in {"style", "script"} and data.strip():
            self.inside.append((self.tags[-1][0], data))


@pytest.fixture(scope="module")
def tags() -> Tags:
    """What an HTML parser finds in the page."""
    parser = Tags()
    parser.feed(CONTENT)
    return parser


def test_the_page_is_served_whole(served: Server) -> None:
    """As UTF-8, with headers that let it do what it does and nothing else."""
    reply = httpx.get(served.url)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.content == CONTENT.encode()
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-frame-options"] == "DENY"
    assert reply.headers["referrer-policy"] == "same-origin"
    policy = dict(
        part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in str(policy)
    head = httpx.head(served.url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-security-policy"] == reply.headers["content-security-policy"]


def test_the_policy_names_the_code_that_a_parser_finds(served: Server, tags: Tags) -> None:
    """By the hashes of its exact bytes, and no other code."""
    expected = {"style": set(), "script": set()}
    for kind, code in tags.inside:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        expected[kind].add(f"'sha256-{digest}'")
    policy = httpx.get(served.url).headers["content-security-policy"]
    for kind, hashes in expected.items():
        listed = re.search(rf"{kind}-src ([^;]*)", policy)
        assert listed is not None
        assert hashes
        assert set(listed[1].split()) == hashes


def test_the_policy_follows_the_page() -> None:
    """Other code, another hash."""
    one, other = (content_security_policy(f"<script>{n}</script><style></style>") for n in (1, 2))
    assert one != other


def test_the_page_is_sent_again_only_if_it_changed(served: Server) -> None:
    """Browsers ask each time, and get 304 while it is the same, also through a proxy."""
    first = httpx.get(served.url)
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for given in (tag, f"W/{tag}", f'"old", {tag}'):
        again = httpx.get(served.url, headers={"If-None-Match": given})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert httpx.get(served.url, headers={"If-None-Match": '"old"'}).status_code == 200
    assert known_tags("") == {""}


def test_nothing_of_the_page_is_elsewhere(tags: Tags) -> None:
    """No address of another host, no code in attributes, no style in attributes."""
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w./]*", CONTENT))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    for tag, attributes in tags.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or value in {"", "docs"}, tag


def test_text_becomes_markup_nowhere() -> None:
    """The script has none of the calls that parse markup or code."""
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert name not in CONTENT


def test_every_field_has_a_label(tags: Tags) -> None:
    """By `for`, by `aria-label`, or because the label is around it; ids are unique."""
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for tag, attributes in tags.tags if tag == "label"}
    for tag, attributes in tags.tags:
        if tag in {"select", "textarea"} or (
            tag == "input" and attributes.get("type") != "radio" and "hidden" not in attributes
        ):
            assert attributes["id"] in labelled, attributes
        for name in ("aria-describedby", "aria-labelledby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
