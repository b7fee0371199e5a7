"""`Replica`: the app of `sie serve` in one process of a cluster, and the models that it holds.

Ray sends a request to where its model is, by what `serve.multiplexed` reports of each replica; the
same decides which model goes when there are too many.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import msgspec

from sie_core.distributed.cluster_settings import Deployment
from sie_core.distributed.forwarding import ForwardedCall, ForwardedReply, run_app
from sie_core.errors import MissingDependencyError, SIEError
from sie_core.local import LocalClient
from sie_core.server.access_log import configure_logging
from sie_core.server.app import create_app
from sie_core.server.failures import RefusedError, failure_of, refuse
from sie_core.server.otlp import exporting
from sie_core.server.settings import ServerSettings

try:
    from ray import serve
except ImportError as exc:
    _msg = (
        f"serving on a cluster needs the extra distributed ({exc}): "
        'pip install "sie-core[distributed,local,server,cli]"'
    )
    raise MissingDependencyError(_msg, name=exc.name) from exc

_logger = logging.getLogger(__name__)

_GLANCE_SECONDS = 0.01
"""Enough to see that a model is there."""


class Held:
    """A model that a replica holds, and how many requests use it.

    Ray deletes it when another model needs its place, and waits for that. A request enters before
    it asks for scores: a model that is to go leaves memory only when nobody is in any more.

    Args:
        release: Frees the model's memory; called once.
    """

    def __init__(self, release: Callable[[], object]) -> None:
        self._release = release
        self._changed = threading.Condition()
        self._num_users = 0
        self._is_leaving = False

    def enter(self) -> bool:
        """Begin to use it; False where it is about to go."""
        with self._changed:
            self._num_users += not self._is_leaving
            return not self._is_leaving

    def leave(self) -> None:
        """End to use it."""
        with self._changed:
            self._num_users -= 1
            self._changed.notify_all()

    def __del__(self) -> None:
        """Free it. Ray calls this in a thread when the model must go, and Python once more."""
        with self._changed:
            if self._is_leaving:
                return
            self._is_leaving = True
            self._changed.wait_for(lambda: not self._num_users)
        self._release()


class Replica:
    """Answer calls that were let in elsewhere.

    Args:
        deployment: What is served, and how.

    Raises:
        SIEError: A model that is to be there from the start cannot be loaded.
    """

    async def __init__(self, deployment: Deployment) -> None:  # type: ignore[misc]  # Ray awaits it
        engine, cluster = deployment.engine, deployment.cluster
        configure_logging(engine.log_format, level=engine.log_level)
        self._ending = ExitStack()
        self._ending.enter_context(exporting(engine.otlp_endpoint))
        settings = _behind(deployment.server)
        self._patience_seconds = max(_GLANCE_SECONDS, deployment.server.wait_for_load_seconds)
        self._client = LocalClient(
            device=engine.device,
            mode=engine.mode,
            dtype=engine.dtype,
            num_threads=engine.num_threads or max(1, math.ceil(cluster.cores_per_replica)),
            max_queued_tokens=settings.max_queued_tokens,
            cache_dir=engine.cache_dir,
        )
        self._ending.callback(self._client.close)
        self._app = create_app(settings, self._client, is_guarded=False)
        self._service = self._app.state.service
        self._shelf = self._service.shelf
        self._origins: dict[str, str] = {}
        self._loads: set[asyncio.Future[Any]] = set()

        async def hold(name: str) -> Held:
            return await self._hold(name)

        room = cluster.max_loaded_models or -1
        self._held = serve.multiplexed(max_num_models_per_replica=room)(hold)
        preloaded = [model.name for model in settings.models if model.preload]
        for name in preloaded[: cluster.max_loaded_models]:
            try:
                await self._held(name)
            except RefusedError as exc:
                raise self._shelf.find(name).failure or exc from None
        self._service.is_ready = True

    async def answer(self, call: ForwardedCall) -> ForwardedReply:
        """Answer a call; its model, as Ray was told, is held meanwhile."""
        name = serve.get_multiplexed_model_id()
        if not name:
            return await run_app(self._app, call)
        try:
            async with self._holding(name):
                return await run_app(self._app, call)
        except (RefusedError, SIEError) as exc:
            failure = failure_of(exc)
            reply = await run_app(refuse(call.path, failure), call)
            reply.record.code, reply.record.model = failure.code, name
            return reply

    async def view(self, call: ForwardedCall) -> tuple[str, ForwardedReply]:
        """Answer what all replicas are asked, under this one's name."""
        context = serve.get_replica_context()
        return context.replica_id.unique_id, await run_app(self._app, call)

    async def reload(self, name: str, call: ForwardedCall) -> tuple[bool, ForwardedReply]:
        """Answer a reload, and say whether the model was here; one that is not is read later."""
        shelved = self._shelf.find(name)
        if self._shelf.loaded(shelved) is None:
            look = ForwardedCall(method="GET", path=f"/v1/models/{name}")
            return False, await run_app(self._app, look)
        return True, await run_app(self._app, call)

    def __del__(self) -> None:
        """Let go of the models, when Ray ends the replica."""
        self._ending.close()

    @asynccontextmanager
    async def _holding(self, name: str) -> AsyncIterator[None]:
        """Keep a model loaded inside, once it is.

        Raises:
            RefusedError: It is not loaded yet, or could not be.
        """
        while True:
            loading = asyncio.ensure_future(self._held(name))
            self._loads.add(loading)
            loading.add_done_callback(self._finish)
            await asyncio.wait({loading}, timeout=self._patience_seconds)
            if not loading.done():
                raise RefusedError(self._shelf.not_yet(self._shelf.find(name)))
            held: Held = loading.result()
            if held.enter():
                break
        try:
            yield
        finally:
            held.leave()

    async def _hold(self, name: str) -> Held:
        """Load a model, for Ray, which has made room for it."""
        shelved = self._shelf.find(name)
        await self._shelf.load(shelved)
        self._origins[name] = shelved.settings.origin
        return Held(lambda: self._release(name))

    def _release(self, name: str) -> None:
        """Unload a model, unless it is held by another name, too."""
        origin = self._origins.pop(name)
        if origin not in self._origins.values():
            self._client.release(origin)
            _logger.info("%s was unloaded, to make room", name)

    def _finish(self, loading: asyncio.Future[Any]) -> None:
        """Forget a load that is over; that it failed was told to who waited, if anybody did."""
        self._loads.discard(loading)
        if not loading.cancelled():
            loading.exception()


def _behind(settings: ServerSettings) -> ServerSettings:
    """Return the settings of what stands behind a `Front`: it checks no callers, and never waits.

    How long a call waits for its model is the replica's to say.
    """
    return msgspec.structs.replace(
        settings,
        wait_for_load_seconds=0.0,
        api_key_file=None,
        rate_limits=(),
        tls_cert=None,
        tls_key=None,
        tls_client_ca=None,
    )
