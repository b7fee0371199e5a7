"""`Service`: what every dialect asks for: one call scored or encoded, by the server's rules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from sie_core.errors import QueueFullError, SIEError, UnsupportedModelError
from sie_core.local import LocalAsyncClient, LocalClient
from sie_core.local.requests import ENCODE_OPTIONS, SCORE_OPTIONS
from sie_core.server.admission import Door
from sie_core.server.failures import CallerGoneError, Failure, RefusedError
from sie_core.server.record import record_of
from sie_core.server.settings import ServerSettings
from sie_core.server.shelf import Shelf, Shelved
from sie_core.server.tracing import ScoringSpan, encoding_span
from sie_core.types import EncodeResult, Item, ScoreResult

_T = TypeVar("_T")


class Service:
    """Answer calls with the engine of this process.

    Args:
        settings: The server's rules.
        client: The engine; it stays the caller's to close.

    Attributes:
        settings: The server's rules.
        shelf: The models.
        door: Who is in.
        is_ready: Whether the models that are there from the start are there.
        is_draining: Whether the server is being stopped.
        started: When it began, in monotonic seconds.
    """

    def __init__(self, settings: ServerSettings, client: LocalClient) -> None:
        self.settings = settings
        self.client = client
        self.shelf = Shelf(settings, client)
        self.door = Door(max_requests=settings.max_requests, max_bytes=settings.max_requests_bytes)
        self.is_ready = False
        self.is_draining = False
        self.started = time.monotonic()
        self._engine = LocalAsyncClient(client)

    def start(self, on_failure: Callable[[Exception], None] | None = None) -> asyncio.Task[None]:
        """Begin to load the models that are there from the start; `is_ready` tells when they are.

        Args:
            on_failure: Called where one of them cannot be loaded.
        """

        async def preload() -> None:
            try:
                await self.shelf.preload()
            except Exception as exc:
                if on_failure is None:
                    raise
                on_failure(exc)
            else:
                self.is_ready = True

        return asyncio.create_task(preload())

    async def close(self) -> None:
        """Let go of the models."""
        await self._engine.close()

    async def score(
        self,
        request: Request,
        *,
        model: str,
        query: Item,
        items: Sequence[Item],
        instruction: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> ScoreResult:
        """Score items against a query, as the caller of `request` asks.

        Options that the engine does not know are left out, as SIE's protocol has it.

        Raises:
            SIEError: See `LocalClient.score`.
            RefusedError: The model is not there (yet), or there is too much work.
            CallerGoneError: The caller hung up; the work was dropped.
        """
        shelved = self._find(request, model, items)
        chosen, instruction = self._options(shelved, options, instruction, SCORE_OPTIONS)
        await self.shelf.ready(shelved)
        with ScoringSpan(shelved.name, query, items) as span:
            result = await self._unless_gone(
                request,
                shelved,
                self._engine.score(
                    shelved.settings.origin,
                    query,
                    items,
                    instruction=instruction,
                    options=chosen,
                    timeout_seconds=self.settings.request_timeout_seconds,
                ),
            )
            span.scored(result)
        result["model"] = shelved.name
        result.pop("source", None)  # of use to a cache in this process only
        _note(request, result)
        return result

    async def encode(
        self,
        request: Request,
        *,
        model: str,
        items: Sequence[Item],
        output_types: Sequence[str] | None = None,
        output_dtype: str | None = None,
        instruction: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[EncodeResult]:
        """Encode items, as the caller of `request` asks.

        Raises:
            SIEError: See `LocalClient.encode`.
            RefusedError: The model is not there (yet), or there is too much work.
            CallerGoneError: The caller hung up; the work was dropped.
        """
        shelved = self._find(request, model, items)
        chosen, instruction = self._options(shelved, options, instruction, ENCODE_OPTIONS)
        await self.shelf.ready(shelved)
        with encoding_span(shelved.name, items, output_types, chosen):
            results: list[EncodeResult] = await self._unless_gone(
                request,
                shelved,
                self._engine.encode(
                    shelved.settings.origin,
                    items,
                    output_types=output_types,
                    output_dtype=output_dtype,
                    instruction=instruction,
                    options=chosen,
                    timeout_seconds=self.settings.request_timeout_seconds,
                ),
            )
        _note(request, results[0] if results else {})
        return results

    def _find(self, request: Request, model: str, items: Sequence[Item]) -> Shelved:
        record = record_of(request.scope)
        record.num_items = len(items)
        shelved = self.shelf.find(model)
        record.model = shelved.name
        return shelved

    def _options(
        self,
        shelved: Shelved,
        options: Mapping[str, Any] | None,
        instruction: str | None,
        known: Sequence[str],
    ) -> tuple[dict[str, Any], str | None]:
        """Put a profile's options under the caller's, and keep those that the engine knows."""
        given = dict(options or {})
        profile = self.shelf.profile(shelved, given.get("profile") or "default")
        merged = {**profile.options, **given}
        chosen = {name: merged[name] for name in known if merged.get(name) is not None}
        if "lora" in chosen:
            chosen["lora"] = self.shelf.adapter(shelved, chosen["lora"])
        return chosen, profile.instruction if instruction is None else instruction

    async def _unless_gone(self, request: Request, shelved: Shelved, work: Awaitable[_T]) -> _T:
        """Await the engine, and stop where the caller hangs up before it is done."""
        computing = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({computing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not computing.done():
                raise CallerGoneError
            return computing.result()
        except QueueFullError as exc:
            raise RefusedError(self._queue_full(shelved, exc)) from exc
        except UnsupportedModelError as exc:  # for what was asked of it: it is loaded
            message = shelved.public(str(exc))
            raise RefusedError(Failure(status=400, code="INVALID_INPUT", message=message)) from exc
        except SIEError as exc:
            exc.args = (shelved.public(str(exc)),)
            raise
        finally:
            computing.cancel()
            leaving.cancel()

    def _queue_full(self, shelved: Shelved, error: QueueFullError) -> Failure:
        """Tell a caller when half of what waits will be done, by the model's own speed."""
        seconds = 1.0
        model = self.shelf.loaded(shelved)
        if model is not None:
            stats = model.scheduler.stats()
            if stats.num_tokens:
                busy_seconds_per_token = stats.busy_seconds / stats.num_tokens
                seconds = stats.num_queued_tokens * busy_seconds_per_token / stats.num_workers / 2
        return Failure(
            status=503, code="QUEUE_FULL", message=str(error), retry_after_seconds=seconds
        )


def service_of(request: Request) -> Service:
    """Return the service of the app that a request came to."""
    service: Service = request.app.state.service
    return service


def _note(request: Request, result: Mapping[str, Any]) -> None:
    """Keep what a call consumed, and where its time went, for the log and the metrics."""
    record = record_of(request.scope)
    record.usage, record.timing = result.get("usage", {}), result.get("timing", {})
