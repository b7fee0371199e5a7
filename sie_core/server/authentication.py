"""`Authenticated`: ASGI middleware that lets nobody past who has no key, but to what is open."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sie_core.server.failures import Failure, refuse
from sie_core.server.keys import Keys
from sie_core.server.record import record_of

OPEN_PATHS = frozenset({"/", "/docs", "/healthz", "/livez", "/readyz", "/openapi.json"})
"""Say nothing that differs between servers: whether this one is up, its page, its description."""

METRICS_PATH = "/metrics"
STATUS_PATH = "/v1/status"

_SCHEME = "bearer"
_CHALLENGE = 'Bearer realm="sie"'


class Authenticated:
    """Check `Authorization: Bearer KEY` before the body is read.

    Args:
        app: What answers those who may call.
        keys: Those who may.
        open_paths: Need no key.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, *, open_paths: frozenset[str] = OPEN_PATHS
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("authorization")
        failure = self._admit(scope, given)
        if failure is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope["path"], failure)(scope, receive, send)

    def _admit(self, scope: Scope, given: list[str]) -> Failure | None:
        """Note who calls; or say why they may not."""
        scheme, _, key = given[0].strip().partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != _SCHEME:
            return _refusal("this server needs a key; send it as Authorization: Bearer KEY", "")
        known = self._keys.find(key.strip())
        if known is None:
            message = "the key is not one of this server's; ask who runs it for one"
            return _refusal(message, ', error="invalid_token"')
        record = record_of(scope)
        record.caller, record.is_admin = known.name, known.is_admin
        return None


def _refusal(message: str, reason: str) -> Failure:
    # The body was not read: what is left of it must not be taken for another request.
    headers = {"WWW-Authenticate": _CHALLENGE + reason, "Connection": "close"}
    return Failure(status=401, code="UNAUTHORIZED", message=message, headers=headers)
