"""Sockets that keep to a deadline, for the synchronous client.

httpcore bounds each single read and write. A server that sends one byte a second stays within any
such bound for ever, in its headers as well as in its body. Here every operation is bounded by what
is left of the whole request's time, and can be called off from another thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import httpx

from sie_core.remote.plan import Broken

_SLICE_SECONDS: Final = 0.2
"""Longest single wait on a socket: how soon a call that was called off notices."""

_WRITE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Scope:
    """Until when the current thread's request may take, and whether it was called off."""

    moment: float
    is_called_off: Callable[[], bool]

    def left(self, error: type[Exception]) -> float:
        """Return the seconds left; raise `error` if there are none."""
        left = self.moment - time.monotonic()
        if left <= 0 or self.is_called_off():
            msg = "the time for the whole request was up"
            raise error(msg)
        return left


_current = threading.local()


@contextlib.contextmanager
def within(scope: Scope) -> Iterator[None]:
    """Bound all that this thread does on `DeadlineBackend`'s sockets."""
    _current.scope = scope
    try:
        yield
    finally:
        _current.scope = None


def _scope(timeout: float | None) -> Scope:
    """Return this thread's scope; outside of one, what httpcore asked for."""
    scope: Scope | None = getattr(_current, "scope", None)
    if scope is not None:
        return scope
    seconds = float("inf") if timeout is None else timeout
    return Scope(time.monotonic() + seconds, lambda: False)


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose reads and writes end with the scope."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        scope = _scope(timeout)
        while True:
            left = scope.left(httpcore.ReadTimeout)
            with contextlib.suppress(httpcore.ReadTimeout):
                return self._stream.read(max_bytes, timeout=min(left, _SLICE_SECONDS))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        scope = _scope(timeout)
        view = memoryview(buffer)
        for start in range(0, len(view), _WRITE_BYTES):
            left = scope.left(httpcore.WriteTimeout)
            piece: Any = view[start : start + _WRITE_BYTES]  # sockets take it without a copy
            self._stream.write(piece, timeout=left)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _scope(timeout).left(httpcore.ConnectTimeout)
        seconds = left if timeout is None else min(left, timeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, seconds))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class DeadlineBackend(httpcore.NetworkBackend):
    """Opens connections: name resolution and all of a name's addresses share one timeout."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the name's addresses that answers."""
        left = _scope(timeout).left(httpcore.ConnectTimeout)
        end = time.monotonic() + (left if timeout is None else min(left, timeout))
        addresses = _resolve(host, port, end)
        for index, address in enumerate(addresses):
            share = max((end - time.monotonic()) / (len(addresses) - index), 0.001)
            try:
                stream = self._backend.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index == len(addresses) - 1:
                    raise
            else:
                return _DeadlineStream(stream)
        msg = f"{host} has no address"
        raise httpcore.ConnectError(msg)


def _resolve(host: str, port: int, end: float) -> list[str]:
    """Look a name up, no longer than until `end`: the system's resolver knows no timeout."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host.strip("[]")))]
    found: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except (OSError, UnicodeError) as exc:
            found.put(exc)

    threading.Thread(target=look_up, name="sie-resolve", daemon=True).start()
    try:
        answer = found.get(timeout=max(end - time.monotonic(), 0.001))
    except queue.Empty:
        msg = f"the name {host} was not resolved in time"
        raise httpcore.ConnectTimeout(msg) from None
    if isinstance(answer, list):
        return answer
    msg = f"the name {host} was not resolved: {answer}"
    raise httpcore.ConnectError(msg) from answer


@dataclass(frozen=True, slots=True)
class Route:
    """How a server is reached: the environment's proxy, and the certificates to trust."""

    proxy: httpx.Proxy | None
    ssl_context: ssl.SSLContext | None

    @classmethod
    def to(cls, base_url: str) -> Route:
        """Read the environment: HTTP_PROXY and its kin, SSL_CERT_FILE, SSL_CERT_DIR."""
        parts = urlsplit(base_url)
        proxies = urllib.request.getproxies()
        address = proxies.get(parts.scheme) or proxies.get("all")
        if urllib.request.proxy_bypass(parts.netloc):
            address = None
        if address and "://" not in address:
            address = f"http://{address}"
        proxy = httpx.Proxy(address) if address else None
        has_tls = parts.scheme == "https" or (proxy is not None and proxy.url.scheme == "https")
        # Reading the certificates takes tens of milliseconds: only where there is TLS.
        return cls(proxy, httpx.create_ssl_context() if has_tls else None)


FOREIGN_ERRORS: Final = (
    httpx.HTTPError,
    httpx.StreamError,
    httpx.InvalidURL,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    ssl.SSLError,
    OSError,
)
"""What may come out of a transport; `broken` is the one place that translates it."""

_TIMEOUTS: Final = (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)
_CONNECT_TIMEOUTS: Final = (httpx.ConnectTimeout, httpcore.ConnectTimeout)


def broken(exc: BaseException) -> Broken:
    """Translate an exception of httpx, httpcore or the operating system."""
    reason = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    if isinstance(exc, _CONNECT_TIMEOUTS):
        return Broken("unreachable", reason)
    if isinstance(exc, _TIMEOUTS):
        return Broken("timed_out", reason)
    return Broken("dropped", reason)
