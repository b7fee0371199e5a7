"""Run the app under uvicorn: a socket, signals, and an end that lets requests finish."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from sie_core.server.app import create_app
from sie_core.server.settings import ServerSettings

_logger = logging.getLogger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep unused connections, so that it is they who close them."""


class _Server(uvicorn.Server):
    """Says that it is draining as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

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
        uvicorn_options: More of uvicorn's own settings, such as those for TLS.
        on_listening: Called with the address as soon as connections are taken.

    Raises:
        OSError: The address is not there, or in use.
        SIEError: A model that is to be there from the start cannot be loaded.
    """
    errors: list[Exception] = []

    def give_up(error: Exception) -> None:
        errors.append(error)
        server.should_exit = True

    app = create_app(settings, client, on_failed_start=give_up)
    given = dict(uvicorn_options or {})
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="asyncio" if sys.platform == "win32" else "uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        **given,
    )
    server = _Server(config, app)
    with listen(host, port) as listening:
        if on_listening is not None:
            shown = f"[{host}]" if ":" in host else host
            scheme = "https" if "ssl_certfile" in given else "http"
            on_listening(f"{scheme}://{shown}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])
    if errors:
        raise errors[0]
