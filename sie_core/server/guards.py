"""What stands before the routes, in order: the observers, the sites, the keys, the rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from sie_core.server.authentication import METRICS_PATH, OPEN_PATHS, Authenticated
from sie_core.server.keys import Keys
from sie_core.server.observation import Observed, Observer
from sie_core.server.origin import SameOrigin, check_origin
from sie_core.server.rate_limit import RateLimited, parse_rate_limit
from sie_core.server.settings import ServerSettings


def read_key_file(settings: ServerSettings) -> Keys | None:
    """Return the keys of those who may call; None means everyone.

    Raises:
        InvalidRequestError: The file cannot be read, or a line of it is wrong.
    """
    return None if settings.api_key_file is None else Keys(Path(settings.api_key_file))


def guards(
    settings: ServerSettings,
    *,
    keys: Keys | None,
    observers: Sequence[Observer],
    is_loopback: bool,
) -> list[Middleware]:
    """Return the middleware, the outermost first.

    Args:
        settings: The server's.
        keys: Those who may call.
        observers: Of every request.
        is_loopback: Whether the server listens on this machine's own addresses only.

    Raises:
        InvalidRequestError: A rate limit or an origin is wrong.
    """
    chosen = [Middleware(Observed, observers=observers)]
    origins = [check_origin(origin) for origin in settings.allowed_origins]
    if origins:
        chosen.append(
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
            )
        )
    if keys is None:
        chosen.append(Middleware(SameOrigin, is_loopback=is_loopback, allowed_origins=origins))
    else:
        open_paths = OPEN_PATHS | ({METRICS_PATH} if settings.open_metrics else set())
        chosen.append(Middleware(Authenticated, keys=keys, open_paths=open_paths))
    limits = [parse_rate_limit(limit) for limit in settings.rate_limits]
    if limits:
        chosen.append(Middleware(RateLimited, limits=limits))
    return chosen
