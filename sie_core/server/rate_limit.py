"""`RateLimited`: ASGI middleware that bounds what one caller may ask for in a time.

Requests are counted as they come, in a sliding window. What a request holds or costs is known only
once it was read and computed: items and tokens are counted then, in a window that begins with the
first of them, and while that window is used up the next request is refused.
See docs/decisions/0070-keys-and-limits.md.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)
from starlette.types import ASGIApp, Receive, Scope, Send

from sie_core.errors import InvalidRequestError
from sie_core.server.authentication import METRICS_PATH, OPEN_PATHS, STATUS_PATH
from sie_core.server.failures import Failure, refuse
from sie_core.server.observation import client_address
from sie_core.server.record import CallRecord, record_of

Counted = Literal["requests", "items", "tokens"]

_COUNTED: dict[str, Counted] = {"requests": "requests", "items": "items", "tokens": "tokens"}
_LIMIT = re.compile(r"(\d+)\s*(requests|items|tokens)?\s*(?:/|per)\s*([^,;|]+)", re.IGNORECASE)
_IPV6 = 6
_SUBNET_BITS = 64
"""What one caller is given of IPv6 addresses, at least: they are counted as one."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A number of requests, items or tokens, and the time that it is for."""

    counted: Counted
    window: limits.RateLimitItem

    def __str__(self) -> str:
        every = self.window.multiples
        unit = self.window.GRANULARITY.name
        return (
            f"{self.window.amount} {self.counted} per {unit if every == 1 else f'{every} {unit}s'}"
        )


def parse_rate_limit(text: str) -> RateLimit:
    """Read `600/minute`, `100000 tokens/hour` or `5000 items per 10 seconds`.

    Raises:
        InvalidRequestError: It is none of the kind.
    """
    found = _LIMIT.fullmatch(text.strip())
    try:
        if found is None or not int(found[1]):
            raise ValueError(text)  # noqa: TRY301 - one message for all that is wrong
        window = limits.parse(f"{found[1]}/{found[3]}")
    except ValueError as exc:
        msg = (
            "a rate limit is such as 600/minute, 100000 tokens/hour or 5000 items/10 seconds, but "
            f"got {text!r}"
        )
        raise InvalidRequestError(msg) from exc
    return RateLimit(_COUNTED[(found[2] or "requests").lower()], window)


class RateLimited:
    """Hold every caller to the limits: by key, or by address where there are no keys.

    Args:
        app: What answers.
        limits: All of them hold.
        open_paths: Are neither counted nor refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Sequence[RateLimit],
        *,
        open_paths: frozenset[str] = OPEN_PATHS | {METRICS_PATH, STATUS_PATH},
    ) -> None:
        self._app = app
        self._limits = tuple(limits)
        self._open_paths = open_paths
        storage = MemoryStorage()
        self._arriving = SlidingWindowCounterRateLimiter(storage)
        self._afterwards = FixedWindowRateLimiter(storage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and count, or answer 429."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        caller = _caller(scope)
        failure = await self._refusal(caller)
        if failure is not None:
            await refuse(scope["path"], failure)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            await self._charge(caller, record_of(scope))

    async def _refusal(self, caller: str) -> Failure | None:
        """Count a request, unless a limit is reached already."""
        for limit in self._limits:
            strategy = self._strategy(limit)
            if not await strategy.test(limit.window, limit.counted, caller):
                stats = await strategy.get_window_stats(limit.window, limit.counted, caller)
                return _too_many(limit, max(0.0, stats.reset_time - time.time()))
        for limit in self._limits:
            if limit.counted == "requests":
                await self._arriving.hit(limit.window, limit.counted, caller)
        return None

    async def _charge(self, caller: str, record: CallRecord) -> None:
        """Count what a request turned out to cost."""
        costs = {"items": record.num_items, "tokens": int(record.usage.get("input_tokens", 0))}
        for limit in self._limits:
            cost = costs.get(limit.counted, 0)
            if cost:
                await self._afterwards.hit(limit.window, limit.counted, caller, cost=cost)

    def _strategy(self, limit: RateLimit) -> RateLimiter:
        return self._arriving if limit.counted == "requests" else self._afterwards


def _caller(scope: Scope) -> str:
    """Name who is counted."""
    name = record_of(scope).caller
    if name is not None:
        return f"key {name}"
    address = client_address(scope)
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return f"address {address}"
    if parsed.version == _IPV6:
        parsed = ipaddress.ip_network((parsed, _SUBNET_BITS), strict=False).network_address
    return f"address {parsed}"


def _too_many(limit: RateLimit, seconds: float) -> Failure:
    # The body was not read: what is left of it must not be taken for another request.
    return Failure(
        status=429,
        code="RATE_LIMIT",
        message=f"more than {limit}; come back in {max(1, round(seconds))} s",
        retry_after_seconds=seconds,
        headers={"Connection": "close"},
    )
