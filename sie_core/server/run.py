"""`Server`: the app under uvicorn, with a socket, signals, and an end that lets requests finish."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from sie_core.local import LocalClient
from sie_core.server.app import create_app
from sie_core.server.settings import ServerSettings

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep unused connections, so that it is they who close them."""


class _Uvicorn(uvicorn.Server):
    """Tells the app as soon as it is told to stop, and ends as a program that did what it was told.

    uvicorn itself raises the signal again at its end, which then looks like a crash.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del frame
        self.config.app.state.service.is_draining = True  # type: ignore[union-attr]
        self.force_exit = self.should_exit and sig == signal.SIGINT  # a second Ctrl-C: at once
        self.should_exit = True


class Server:
    """Listen, from the making on, and serve in `run`.

    Args:
        settings: Which models, and the limits.
        host: Address to listen on.
        port: 0 means one that is free.
        client: The engine; it is closed at the end. None makes one of defaults.
        uvicorn_options: More of uvicorn's own settings, such as those for TLS.

    Attributes:
        app: The ASGI app.
        url: Where it listens.

    Raises:
        OSError: The address is not there, or in use.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        client: LocalClient | None = None,
        uvicorn_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._socket = _listen(host, port)
        self._error: Exception | None = None
        self.app: Starlette = create_app(settings, client, on_failed_start=self._give_up)
        given = dict(uvicorn_options or {})
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if given.get("ssl_certfile") else "http"
        self.url = f"{scheme}://{shown}:{self._socket.getsockname()[1]}"
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self.app,
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
        )

    def run(self) -> None:
        """Serve until a signal, or `stop`, says to end; then let requests in progress finish.

        Raises:
            SIEError: A model that is to be there from the start cannot be loaded.
        """
        with self._socket:
            self._uvicorn.run(sockets=[self._socket])
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let `run` end, as a signal does; from any thread."""
        self.app.state.service.is_draining = True
        self._uvicorn.should_exit = True

    def _give_up(self, error: Exception) -> None:
        self._error = error
        self.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
