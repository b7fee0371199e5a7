"""`Server`: the app under uvicorn, with a socket, signals, and an end that lets requests finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette

from sie_core.local import LocalClient
from sie_core.server.app import create_app
from sie_core.server.connection import bounded_connection
from sie_core.server.origin import is_loopback_host
from sie_core.server.settings import ServerSettings
from sie_core.server.tls import Certificate

_logger = logging.getLogger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep unused connections, so that it is they who close them."""

_UNREAD_BODY = 1.5
"""A body that nobody reads may take so many times as long as one that is read."""


class AppMaker(Protocol):
    """Makes the app of a `Server`; see `create_app`, which is one."""

    def __call__(
        self,
        settings: ServerSettings,
        client: LocalClient | None,
        *,
        on_failed_start: Callable[[Exception], None] | None,
        is_loopback: bool,
    ) -> Starlette:
        """Make it. Its state holds a `service` that can be told `is_draining`, and the `keys`."""
        ...


class _Uvicorn(uvicorn.Server):
    """Tells the app as soon as it is told to stop, and ends as a program that did what it was told.

    uvicorn itself raises the signal again at its end, which then looks like a crash.

    Args:
        config: uvicorn's.
        on_hang_up: Called at SIGHUP, the signal to read again what may have changed.
    """

    def __init__(self, config: uvicorn.Config, on_hang_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_hang_up = on_hang_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hang_up)

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
        uvicorn_options: More of uvicorn's own settings.
        make_app: Makes what answers.

    Attributes:
        app: The ASGI app.
        url: Where it listens.

    Raises:
        OSError: The address is not there, or in use.
        InvalidRequestError: A setting is wrong, or a file that it names.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        client: LocalClient | None = None,
        uvicorn_options: Mapping[str, Any] | None = None,
        make_app: AppMaker = create_app,
    ) -> None:
        shown = f"[{host}]" if ":" in host else host
        self._certificate = certificate = Certificate.given(
            settings.tls_cert, settings.tls_key, settings.tls_client_ca
        )
        self._error: Exception | None = None
        self.app: Starlette = make_app(
            settings, client, on_failed_start=self._give_up, is_loopback=is_loopback_host(shown)
        )
        self._socket = _listen(host, port)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{shown}:{self._socket.getsockname()[1]}"
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self.app,
                http=bounded_connection(
                    message_timeout_seconds=_UNREAD_BODY * settings.body_timeout_seconds,
                    head_timeout_seconds=settings.head_timeout_seconds,
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
            ),
            self.reload,
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

    def reload(self) -> None:
        """Read the key file and the certificate again, as SIGHUP does; on the server's thread."""
        _logger.info("reading keys and certificates again")
        for changing in (self.app.state.keys, self._certificate):
            if changing is not None:
                changing.reload()

    def _give_up(self, error: Exception) -> None:
        self._error = error
        self.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
