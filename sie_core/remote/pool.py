"""Connection pools: httpcore's own, or a transport of httpx that the caller gave.

httpx is an interface over httpcore with much that has no part in a plan: redirects, authentication,
hooks, decoders. Passing through it takes longer than anything else done for a small call, so that
its models appear here only where a caller brings a transport made of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import httpcore
import httpx

from sie_core.remote.endpoint import USER_AGENT
from sie_core.remote.plan import Send
from sie_core.remote.transport import DeadlineBackend, Route
from sie_core.remote.wire import Reply

_MAX_CONNECTIONS: Final = 100

_Origin = tuple[bytes, bytes, int | None]


class Pool(Protocol):
    """What `SIEClient` sends through."""

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and read the reply's head."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class AsyncPool(Protocol):
    """What `SIEAsyncClient` sends through."""

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and read the reply's head."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def open_pool(addresses: Sequence[str], keepalive_seconds: float) -> Pool:
    """Make a pool whose sockets keep to a deadline; of several servers, one for each."""
    pools = {_origin(it): _open_pool(Route.to(it), keepalive_seconds) for it in addresses}
    return PoolOfPools(pools) if len(pools) > 1 else next(iter(pools.values()))


def open_async_pool(routes: Mapping[str, Route], keepalive_seconds: float) -> AsyncPool:
    """Make a pool for the running event loop; of several servers, one for each."""
    pools = {_origin(it): _open_async_pool(to, keepalive_seconds) for it, to in routes.items()}
    return AsyncPoolOfPools(pools) if len(pools) > 1 else next(iter(pools.values()))


def _origin(address: str) -> _Origin:
    return _origin_of(_address(address)[0])


def _origin_of(url: httpcore.URL) -> _Origin:
    return url.scheme, url.host, url.port


class PoolOfPools:
    """Connections to several servers, each reached in its own way: proxies, certificates."""

    def __init__(self, pools: Mapping[_Origin, Pool]) -> None:
        self._pools = pools

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """See `Pool`."""
        return self._pools[_origin_of(request.url)].handle_request(request)

    def close(self) -> None:
        """See `Pool`."""
        for pool in self._pools.values():
            pool.close()


class AsyncPoolOfPools:
    """The same for an event loop."""

    def __init__(self, pools: Mapping[_Origin, AsyncPool]) -> None:
        self._pools = pools

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """See `AsyncPool`."""
        return await self._pools[_origin_of(request.url)].handle_async_request(request)

    async def aclose(self) -> None:
        """See `AsyncPool`."""
        for pool in self._pools.values():
            await pool.aclose()


def _open_pool(route: Route, keepalive_seconds: float) -> Pool:
    options = {**_options(route, keepalive_seconds), "network_backend": DeadlineBackend()}
    proxy = route.proxy
    if proxy is None:
        return httpcore.ConnectionPool(**options)
    if proxy.url.scheme.startswith("socks5"):
        return httpcore.SOCKSProxy(**options)
    return httpcore.HTTPProxy(**options, proxy_headers=proxy.headers.raw)


def _open_async_pool(route: Route, keepalive_seconds: float) -> AsyncPool:
    options = _options(route, keepalive_seconds)
    proxy = route.proxy
    if proxy is None:
        return httpcore.AsyncConnectionPool(**options)
    if proxy.url.scheme.startswith("socks5"):
        return httpcore.AsyncSOCKSProxy(**options)
    return httpcore.AsyncHTTPProxy(**options, proxy_headers=proxy.headers.raw)


def _options(route: Route, keepalive_seconds: float) -> dict[str, Any]:
    """Return what all kinds of pools take alike; unused connections are kept for so long."""
    options: dict[str, Any] = {
        "max_connections": _MAX_CONNECTIONS,
        "keepalive_expiry": keepalive_seconds,
    }
    if route.ssl_context is not None:
        options["ssl_context"] = route.ssl_context
    if route.proxy is not None:
        options["proxy_url"] = str(route.proxy.url)
        options["proxy_auth"] = route.proxy.raw_auth
    return options


def to_request(
    step: Send, credentials: Mapping[str, str], *, connect_seconds: float, seconds: float
) -> httpcore.Request:
    """Put a step's request together.

    Args:
        step: What is sent, and where.
        credentials: Headers that are no part of a plan.
        connect_seconds: How long a server that does not answer at all is waited for.
        seconds: What is left until the reply must be whole.

    Raises:
        httpx.InvalidURL: A redirect led to what is no address.
    """
    request = step.request
    url, host = _address(step.url)
    headers = {
        "Host": host,
        "User-Agent": USER_AGENT,
        "Accept-Encoding": "identity",
        "Connection": "keep-alive",
        **request.headers,
        **credentials,
    }
    body = None if request.body is None else request.body()
    if body is not None:
        headers["Content-Length"] = str(len(body))
    return httpcore.Request(
        request.method,
        url,
        headers=[(name.encode(), value.encode()) for name, value in headers.items()],
        content=body,
        extensions={
            "timeout": {
                "connect": connect_seconds,
                "read": seconds,
                "write": seconds,
                "pool": seconds,
            }
        },
    )


@lru_cache(maxsize=64)  # reading an address takes longer than the rest of a request
def _address(url: str) -> tuple[httpcore.URL, str]:
    """Read an address, and name its host as the header does."""
    parsed = httpx.URL(url)
    address = httpcore.URL(
        scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
    )
    return address, parsed.netloc.decode("ascii")


def to_headers(response: httpcore.Response) -> dict[str, str]:
    """Return a reply's headers, names in lower case, those that came twice joined by commas."""
    return dict(httpx.Headers(response.headers).items())


def is_plain(headers: Mapping[str, str]) -> bool:
    """Tell whether a body is as it looks: compression was not asked for, and may hide a bomb."""
    return headers.get("content-encoding", "").strip().lower() in ("", "identity")


def to_reply(
    response: httpcore.Response, headers: dict[str, str], body: bytearray, max_bytes: int
) -> Reply:
    """Leave httpcore behind."""
    return Reply(
        status_code=response.status,
        headers=headers,
        body=bytes(body if len(body) <= max_bytes else body[:max_bytes]),
        is_cut=len(body) > max_bytes,
    )


class Cookies:
    """What servers ask to have back, such as a load balancer that keeps to one machine."""

    def __init__(self) -> None:
        self._cookies = httpx.Cookies()
        self._are_none = True

    def header(self, url: str) -> dict[str, str]:
        """Return the header for a request to `url`; none where there are no cookies for it."""
        if self._are_none:
            return {}
        request = httpx.Request("GET", url)
        self._cookies.set_cookie_header(request)
        return {"Cookie": request.headers["cookie"]} if "cookie" in request.headers else {}

    def keep(self, url: str, response: httpcore.Response) -> None:
        """Keep those of a reply from `url`."""
        if all(name.lower() != b"set-cookie" for name, _ in response.headers):
            return
        request = httpx.Request("GET", url)
        self._cookies.extract_cookies(
            httpx.Response(200, headers=response.headers, request=request)
        )
        self._are_none = False


class GivenPool:
    """A transport of httpx, such as `httpx.MockTransport`, taken as a pool."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """See `Pool`."""
        response = self._transport.handle_request(_to_httpx(request))
        return _to_httpcore(response, _Body(response))

    def close(self) -> None:
        """See `Pool`."""
        self._transport.close()


class GivenAsyncPool:
    """The same for an asynchronous transport."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """See `AsyncPool`."""
        response = await self._transport.handle_async_request(_to_httpx(request))
        return _to_httpcore(response, _AsyncBody(response))

    async def aclose(self) -> None:
        """See `AsyncPool`."""
        await self._transport.aclose()


class _Body:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_bytes()

    def close(self) -> None:
        self._response.close()


class _AsyncBody:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_bytes()

    async def aclose(self) -> None:
        await self._response.aclose()


def _to_httpx(request: httpcore.Request) -> httpx.Request:
    url = request.url
    stream: Any = request.stream  # made of bytes, it is read either way
    return httpx.Request(
        request.method.decode(),
        httpx.URL(
            scheme=url.scheme.decode(), host=url.host.decode(), port=url.port, raw_path=url.target
        ),
        headers=request.headers,
        content=b"".join(stream) or None,
        extensions=request.extensions,
    )


def _to_httpcore(response: httpx.Response, body: _Body | _AsyncBody) -> httpcore.Response:
    return httpcore.Response(
        response.status_code,
        headers=response.headers.raw,
        content=body,
        extensions=response.extensions,
    )
