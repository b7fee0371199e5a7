"""`SameOrigin`: ASGI middleware that keeps web pages of other sites from using a server of no keys.

A page that someone on this machine has open could otherwise have their browser call a server on
127.0.0.1: by a form or `fetch` (refused by its `Origin`), or, where its own name is made to lead to
127.0.0.1, as one of its own (refused by `Host`). With keys neither needs a check: no browser
sends a key by itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sie_core.errors import InvalidRequestError
from sie_core.server.failures import Failure, refuse


class SameOrigin:
    """Refuse calls that a browser makes for another site.

    Args:
        app: What answers.
        is_loopback: Whether the server listens on this machine's own addresses only: then callers
            must name such an address, too.
        allowed_origins: Sites whose pages may call, such as `https://search.example.org`; the
            server may also be called by their names.
    """

    def __init__(
        self, app: ASGIApp, *, is_loopback: bool, allowed_origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._is_loopback = is_loopback
        self._origins = frozenset(map(check_origin, allowed_origins))
        self._hosts = frozenset(urlsplit(origin).netloc for origin in self._origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 403."""
        failure = self._check(Headers(scope=scope)) if scope["type"] == "http" else None
        if failure is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope["path"], failure)(scope, receive, send)

    def _check(self, headers: Headers) -> Failure | None:
        host = headers.get("host", "").lower()
        origin = headers.get("origin")
        if self._is_loopback and host and not is_loopback_host(host) and host not in self._hosts:
            return _refusal(
                f"this server listens on this machine only, and was called as {host:.100}; if that "
                "is right, start it with --allow-origin and that name's origin, or with keys"
            )
        if origin is None or origin.lower() in self._origins:
            return None
        if origin != "null" and urlsplit(origin.lower()).netloc == host:
            return None
        return _refusal(
            f"pages of {origin:.100} may not use this server; if they are to, start it with "
            "--allow-origin and that origin, or with keys"
        )


def check_origin(origin: str) -> str:
    """Return an origin as browsers write it.

    Raises:
        InvalidRequestError: It is not one.
    """
    parts = urlsplit(origin.lower().rstrip("/"))
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path or parts.query:
        msg = f"an origin is https://NAME or https://NAME:PORT, but got {origin!r}"
        raise InvalidRequestError(msg)
    return f"{parts.scheme}://{parts.netloc}"


def is_loopback_host(host: str) -> bool:
    """Say whether a name, with a port or without, is this machine's own for itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that are no address
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refusal(message: str) -> Failure:
    headers = {"Connection": "close"}
    return Failure(status=403, code="FORBIDDEN", message=message, headers=headers)
