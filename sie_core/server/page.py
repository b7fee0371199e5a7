"""The page at `/`: one file with its style and script inside, and the headers that hold it to that.

The policy lets the page run exactly the style and the script that stand in the file (by their
hashes), and talk to nobody but the server it came from. It has no build step and no other file.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

PAGE = "page.html"

_INLINE = re.compile(r"<(script|style)(?:\s[^>]*)?>(.*?)</\1>", re.DOTALL)


async def page(request: Request) -> Response:
    """Answer `GET /`: the page, or 304 where the browser has this very one."""
    content, headers = _page()
    if headers["etag"] in known_tags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    content = resources.files("sie_core.server").joinpath(PAGE).read_bytes()
    return content, page_headers(content)


def page_headers(content: bytes) -> dict[str, str]:
    """Return the headers that go with the page; browsers ask again, and get it only if it changed.

    Args:
        content: The page, in UTF-8.
    """
    return {
        "content-security-policy": content_security_policy(content.decode()),
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
    }


def content_security_policy(page: str) -> str:
    """Allow what stands in the page, by hash, and requests to its own server; nothing else.

    Text can become markup nowhere: trusted types are required, and there are none.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def known_tags(if_none_match: str) -> set[str]:
    """Return the entity tags that a browser has, out of its `If-None-Match`.

    A proxy that compressed the page may have made the tag a weak one (`W/`).
    """
    return {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
