"""`create_app`: the routes, what stands before them, and the models' life with the server's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sie_core.local import LocalClient
from sie_core.server import cohere, native, openai, openapi, page, status, tei
from sie_core.server.access_log import write_access
from sie_core.server.authentication import METRICS_PATH, STATUS_PATH
from sie_core.server.failures import respond
from sie_core.server.guards import guards, read_key_file
from sie_core.server.metrics import Metrics
from sie_core.server.record import record_of
from sie_core.server.service import Service
from sie_core.server.settings import ServerSettings
from sie_core.server.tracing import TraceRequests

_logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    settings: ServerSettings,
    client: LocalClient | None = None,
    *,
    on_failed_start: Callable[[Exception], None] | None = None,
    is_loopback: bool = False,
    is_guarded: bool = True,
) -> Starlette:
    """Make the ASGI app.

    Args:
        settings: Which models, and the limits.
        client: The engine; it is closed with the app. None makes one of defaults.
        on_failed_start: Called where a model that is to be there from the start cannot be loaded.
        is_loopback: Whether it will listen on this machine's own addresses only.
        is_guarded: Whether it finds out who calls, holds them to their rates, and observes what
            passes; False where another process before it does.

    Raises:
        InvalidRequestError: A setting is wrong, or the key file is.
    """
    keys = read_key_file(settings) if is_guarded else None
    engine = client or LocalClient(max_queued_tokens=settings.max_queued_tokens)
    service = Service(settings, engine)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        preloading = service.start(on_failed_start)
        try:
            yield
        finally:
            preloading.cancel()
            await service.close()

    metrics = Metrics(service)
    middleware = [Middleware(TraceRequests)]
    if is_guarded:
        observers = (write_access, metrics.count)
        middleware += guards(settings, keys=keys, observers=observers, is_loopback=is_loopback)
    app = Starlette(
        routes=[*_routes(), route(METRICS_PATH, metrics.answer, "GET")],
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: answer_plainly},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.keys = keys
    return app


def _routes() -> list[Route]:
    return [
        route("/v1/score/{model:path}", native.score, "POST"),
        route("/v1/encode/{model:path}", native.encode, "POST"),
        route("/v1/models", native.models, "GET"),
        route("/v1/models/{model:path}/reload", native.reload, "POST"),
        route("/v1/models/{model:path}", native.model, "GET"),
        route("/", page.page, "GET"),
        route(STATUS_PATH, status.status, "GET"),
        route("/v1/rerank", cohere.rerank, "POST"),
        route("/v2/rerank", cohere.rerank_v2, "POST"),
        route("/rerank", tei.rerank, "POST"),
        route("/v1/embeddings", openai.embeddings, "POST"),
        route("/openapi.json", openapi.openapi, "GET"),
        route("/docs", openapi.docs, "GET"),
        route("/healthz", native.alive, "GET"),
        route("/livez", native.alive, "GET"),
        route("/readyz", native.ready, "GET"),
    ]


def route(path: str, handler: Handler, method: str) -> Route:
    """Make a route whose failures are written as its clients read them."""
    pattern = path.replace(":path", "")

    async def answer(request: Request) -> Response:
        record_of(request.scope).route = pattern
        try:
            return await handler(request)
        except Exception as exc:  # noqa: BLE001  whatever it is, the caller gets a reply
            return respond(request, exc)

    return Route(path, answer, methods=[method])


async def answer_plainly(_: Request, error: Exception) -> Response:
    """Answer what no route is there for, as sie-server does."""
    assert isinstance(error, HTTPException)  # noqa: S101  it is registered for those alone
    return Response(
        msgspec.json.encode({"detail": error.detail}),
        error.status_code,
        error.headers,
        media_type="application/json",
    )
