"""Run the app under uvicorn: a socket, signals, and an end that lets requests finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from sie_core.server.app import create_app
from sie_core.server.connection import bounded_connection
from sie_core.server.origin import is_loopback_host
from sie_core.server.settings import ServerSettings
from sie_core.server.tls import Certificate

_logger = logging.getLogger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep unused connections, so that it is they who close them."""


_MESSAGE_GRACE_SECONDS = 30.0
"""A body that nobody reads may take so much longer than one that is read."""


class _Server(uvicorn.Server):
    """Says that it is draining as soon as it is told to stop; reads keys again when told to."""

    def __init__(
        self, config: uvicorn.Config, app: Starlette, certificate: Certificate | None
    ) -> None:
        super().__init__(config)
        self._app = app
        self._certificate = certificate

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        for changing in (self._app.state.keys, self._certificate):
            if changing is not None:
                changing.reload()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.service.is_draining = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket; port 0 means one that is free.

    Raises:
        OSError: The address is not there, or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def serve(
    settings: ServerSettings,
    *,
    host: str,
    port: int,
    client: Any = None,
    uvicorn_options: Mapping[str, Any] | None = None,
    on_listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until a signal says to stop; then let requests in progress finish.

    Args:
        settings: Which models, and the limits.
        host: Address to listen on.
        port: 0 means one that is free.
        client: The `LocalClient` whose models are served.
        uvicorn_options: More of uvicorn's own settings.
        on_listening: Called with the address as soon as connections are taken.

    Raises:
        OSError: The address is not there, or in use.
        SIEError: A model that is to be there from the start cannot be loaded, or a setting is
            wrong.
    """
    certificate = Certificate.given(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    errors: list[Exception] = []

    def give_up(error: Exception) -> None:
        errors.append(error)
        server.should_exit = True

    app = create_app(
        settings, client, on_failed_start=give_up, is_loopback=is_loopback_host(_shown(host))
    )
    config = uvicorn.Config(
        app,
        http=bounded_connection(
            message_timeout_seconds=settings.body_timeout_seconds + _MESSAGE_GRACE_SECONDS,
            max_connections=settings.max_connections,
        ),
        loop="asyncio" if sys.platform == "win32" else "uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
        **dict(uvicorn_options or {}),
    )
    server = _Server(config, app, certificate)
    with listen(host, port) as listening:
        if on_listening is not None:
            scheme = "http" if certificate is None else "https"
            on_listening(f"{scheme}://{_shown(host)}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])
    if errors:
        raise errors[0]


def _shown(host: str) -> str:
    """Write an address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
