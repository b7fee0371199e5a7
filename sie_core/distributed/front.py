"""`Front`: what stands before the replicas: keys, rates, limits on bodies, the log, the metrics.

It is the part of `sie serve` that computes nothing. Requests are counted and refused once, here,
however many replicas there are; what passes goes to a replica that holds the request's model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sie_core.distributed.forwarding import (
    ForwardedCall,
    ForwardedReply,
    forwarded,
    note,
    returned,
)
from sie_core.distributed.routing import model_in
from sie_core.distributed.views import ClusterMetrics, merge_model, merge_models, merge_standings
from sie_core.errors import DeadlineExceededError
from sie_core.server import native, openapi, page
from sie_core.server.access_log import write_access
from sie_core.server.admission import Door, Visit
from sie_core.server.app import answer_plainly, route
from sie_core.server.authentication import METRICS_PATH, STATUS_PATH
from sie_core.server.bodies import json_reply, read_body
from sie_core.server.failures import CallerGoneError, Failure, RefusedError
from sie_core.server.guards import guards, read_key_file
from sie_core.server.keys import Keys
from sie_core.server.metrics import Metrics, standing, written
from sie_core.server.record import record_of
from sie_core.server.settings import ServerSettings
from sie_core.server.shelf import is_hub_name

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)

_MAX_RELOAD_BYTES: Final = 2**16
_START_SECONDS: Final = 5.0
"""When to come back to a cluster that is being started."""

_FIRST_THAT_SCORES: Final = frozenset({"/rerank"})
"""Paths on which a request need not name a model."""


class Answering(Protocol):
    """Whom a `Front` asks: `Replicas`."""

    async def ask(self, call: ForwardedCall, model: str | None) -> ForwardedReply:
        """Let one answer."""
        ...

    async def ask_all(self, call: ForwardedCall) -> dict[str, ForwardedReply]:
        """Let every one answer how it stands."""
        ...

    async def reload(self, model: str, call: ForwardedCall, seconds: float) -> list[ForwardedReply]:
        """Let every one that holds a model load its files anew."""
        ...


class _FailedError(Exception):
    """A replica answered with a failure, which is passed on as it is."""

    def __init__(self, reply: ForwardedReply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class Front:
    """Let requests in, and have replicas answer them.

    Args:
        settings: The limits, and the models' names.

    Attributes:
        door: Who is in.
        is_ready: Whether there are replicas.
        is_draining: Whether the server is being stopped.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.door = Door(max_requests=settings.max_requests, max_bytes=settings.max_requests_bytes)
        self.is_ready = False
        self.is_draining = False
        self.metrics = Metrics(None)
        self._names = frozenset(model.name for model in settings.models)
        self._replicas: Answering | None = None
        self._started = time.monotonic()
        self._default_model: str | None = None

    def open(self, replicas: Answering) -> None:
        """Let requests in from now on."""
        self._replicas = replicas
        self.is_ready = True

    async def call(self, request: Request) -> Response:
        """Answer a request with a body by a replica that holds its model."""
        try:
            with self.door.enter() as visit:
                return returned(await self._answer(request, visit))
        except _FailedError as exc:  # raised so that the visit counts as one that failed
            return returned(exc.reply)

    async def reload(self, request: Request) -> Response:
        """Answer a reload by all replicas that hold the model."""
        with self.door.enter() as visit:
            replicas = self._open_replicas()
            content = await read_body(
                request,
                visit,
                max_bytes=_MAX_RELOAD_BYTES,
                seconds=self.settings.body_timeout_seconds,
            )
            _refuse_source(content)
            name = self._known(request.path_params["model"])
            call = forwarded(request, content)
            replies = []
            if name is not None:
                seconds = self.settings.request_timeout_seconds
                replies = await replicas.reload(name, call, seconds)
            if not replies:  # nobody has it in memory
                replies = [await replicas.ask(call, name)]
        record = record_of(request.scope)
        for reply in replies:
            note(record, reply)
            if record.code is not None:
                return returned(reply)
        answers = [msgspec.json.decode(reply.body) for reply in replies]
        num_replaced = sum(answer["replaced"] for answer in answers)
        return json_reply({**merge_model(answers), "replaced": num_replaced})

    async def models(self, request: Request) -> Response:
        """Answer `GET /v1/models` for all replicas."""
        replies = await self._open_replicas().ask_all(forwarded(request))
        described = merge_models(replies.values())
        return json_reply({"models": described, "object": "list", "data": described})

    async def model(self, request: Request) -> Response:
        """Answer `GET /v1/models/{model}` for all replicas."""
        replies = [*(await self._open_replicas().ask_all(forwarded(request))).values()]
        record = record_of(request.scope)
        for reply in replies:
            note(record, reply)
            if record.code is not None:
                return returned(reply)
        return json_reply(merge_model([msgspec.json.decode(reply.body) for reply in replies]))

    async def status(self, request: Request) -> Response:
        """Answer `GET /v1/status`: requests as they were here, models as they are in replicas."""
        calls = self.door.calls
        percentiles = calls.percentiles(0.5, 0.95)
        p50, p95 = [None, None] if percentiles is None else [1000 * it for it in percentiles]
        replies = await self._open_replicas().ask_all(forwarded(request)) if self.is_ready else {}
        return json_reply(
            {
                "uptime_s": time.monotonic() - self._started,
                "models": merge_standings(replies.values()),
                "requests": {
                    "total": calls.num_calls,
                    "failed": calls.num_failed,
                    "in_flight": self.door.num_requests,
                },
                "latency_ms": {"p50": p50, "p95": p95},
            }
        )

    async def answer_metrics(self, request: Request) -> Response:
        """Answer `GET /metrics`: requests as they were here, and engines by replica."""
        replies: dict[str, ForwardedReply] = {}
        if self._replicas is not None:
            with contextlib.suppress(RefusedError):  # without replicas it says how this one stands
                look = ForwardedCall(method="GET", path=METRICS_PATH)
                replies = await self._replicas.ask_all(look)
        registry = CollectorRegistry()
        registry.register(ClusterMetrics([*self.metrics.collect(), *standing(self)], replies))
        return written(request, registry)

    async def _answer(self, request: Request, visit: Visit) -> ForwardedReply:
        replicas = self._open_replicas()
        settings = self.settings
        body = await read_body(
            request,
            visit,
            max_bytes=settings.max_body_bytes,
            seconds=settings.body_timeout_seconds,
        )
        model = await self._model(request, body)
        reply = await self._unless_gone(request, replicas.ask(forwarded(request, body), model))
        record = record_of(request.scope)
        note(record, reply)
        if record.code is not None:
            raise _FailedError(reply)
        return reply

    def _open_replicas(self) -> Answering:
        if self._replicas is None:
            message = "the replicas are being started, please retry"
            raise RefusedError(
                Failure(
                    status=503,
                    code="MODEL_LOADING",
                    message=message,
                    retry_after_seconds=_START_SECONDS,
                )
            )
        return self._replicas

    async def _model(self, request: Request, body: bytes) -> str | None:
        """Return the model that a request is about, as far as it is one that is served."""
        named = request.path_params.get("model")
        if named is None:
            named = model_in(body, request.headers.get("content-type", ""))
        if named is None and request.url.path in _FIRST_THAT_SCORES:
            return await self._first_that_scores()
        return None if named is None else self._known(named)

    def _known(self, name: str) -> str | None:
        """Return a name that replicas know; for others no replica is better than another."""
        is_known = name in self._names or (self.settings.allow_any_model and is_hub_name(name))
        return name if is_known else None

    async def _first_that_scores(self) -> str | None:
        """Ask, once, which model answers those who name none."""
        if self._default_model is None:
            look = ForwardedCall(method="GET", path="/v1/models")
            reply = await self._open_replicas().ask(look, None)
            for model in msgspec.json.decode(reply.body)["models"]:
                if "score" in model["outputs"]:
                    self._default_model = model["name"]
                    break
        return self._default_model

    async def _unless_gone(self, request: Request, asking: Awaitable[_T]) -> _T:
        """Await a reply, and stop where the caller hangs up, or has waited long enough."""
        answering = asyncio.ensure_future(asking)
        leaving = asyncio.ensure_future(request.receive())
        seconds = self.settings.request_timeout_seconds
        try:
            await asyncio.wait(
                {answering, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done():
                return answering.result()
            if leaving.done():
                raise CallerGoneError
            msg = f"no replica answered within {seconds:g} s"
            raise DeadlineExceededError(msg)
        finally:
            answering.cancel()
            leaving.cancel()


def create_front(
    front: Front,
    *,
    is_loopback: bool = False,
    lifespan: Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]] | None = None,
    keys: Keys | None = None,
) -> Starlette:
    """Make the ASGI app of a front: the routes of `create_app`, and what stands before them.

    Args:
        front: Answers.
        is_loopback: Whether it listens on this machine's own addresses only.
        lifespan: Around its life.
        keys: Those who may call, read before; None reads them from where the settings say.

    Raises:
        InvalidRequestError: A setting is wrong, or the key file is.
    """
    settings = front.settings
    keys = keys or read_key_file(settings)
    calls = ("/v1/score/{model:path}", "/v1/encode/{model:path}", "/v1/rerank", "/v2/rerank")
    app = Starlette(
        routes=[
            *(route(path, front.call, "POST") for path in (*calls, "/rerank", "/v1/embeddings")),
            route("/v1/models", front.models, "GET"),
            route("/v1/models/{model:path}/reload", front.reload, "POST"),
            route("/v1/models/{model:path}", front.model, "GET"),
            route("/", page.page, "GET"),
            route(STATUS_PATH, front.status, "GET"),
            route("/openapi.json", openapi.openapi, "GET"),
            route("/docs", openapi.docs, "GET"),
            route("/healthz", native.alive, "GET"),
            route("/livez", native.alive, "GET"),
            route("/readyz", native.ready, "GET"),
            route(METRICS_PATH, front.answer_metrics, "GET"),
        ],
        middleware=guards(
            settings,
            keys=keys,
            observers=(write_access, front.metrics.count),
            is_loopback=is_loopback,
        ),
        lifespan=lifespan,
        exception_handlers={HTTPException: answer_plainly},
    )
    app.router.redirect_slashes = False
    app.state.service = front
    app.state.keys = keys
    return app


def _refuse_source(content: bytes) -> None:
    """Refuse another source: replicas that are started later would not know of it.

    Raises:
        RefusedError: The body names one.
    """
    try:
        body = msgspec.json.decode(content, type=native.ReloadBody) if content.strip() else None
    except msgspec.MsgspecError:
        return  # who answers says what is wrong
    if body is not None and body.source is not None:
        message = (
            "replicas that are started later would not know of another source; deploy the "
            "application with it, or write new files to where the model is and reload that"
        )
        raise RefusedError(Failure(status=400, code="INVALID_INPUT", message=message))
