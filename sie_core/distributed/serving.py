"""`sie serve` on a Ray cluster: `application`, for manifests, and `Cluster`, for the command.

Both deploy the same `Replica`s. The command lets requests in by itself, with all that it has for
connections; Ray's own HTTP proxies do where Ray deploys, and hand them to an `Entrance`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import ray
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from sie_core import errors
from sie_core.distributed.cluster import connect
from sie_core.distributed.cluster_settings import Deployment, read_deployment
from sie_core.distributed.forwarding import gather_response
from sie_core.distributed.front import Front, create_front
from sie_core.distributed.replica import Replica
from sie_core.distributed.replicas import Replicas
from sie_core.errors import (
    InvalidRequestError,
    ModelLoadError,
    SIEError,
)
from sie_core.local import LocalClient
from sie_core.server.access_log import configure_logging
from sie_core.server.settings import ServerSettings

_logger = logging.getLogger(__name__)

_NUM_STARTS: Final = 3
"""How often Ray tries to start a replica, where nobody sits before it."""

_POLL_SECONDS: Final = 0.2

_CAUSE = re.compile(r"^(?:.*\b)?sie_core\.errors\.(\w+): (.*)$", re.MULTILINE)
"""The line of Ray's stack trace that says what was wrong in a replica."""

_QUIET: Final = {"enable_access_log": False, "log_level": "WARNING"}
"""Ray's own log of what passes: there is one already."""


class Entrance:
    """A `Front` behind Ray's HTTP proxies.

    Args:
        deployment: What is served, and how.
        handle: Ray's, of the replicas.
    """

    def __init__(self, deployment: Deployment, handle: Any) -> None:
        engine = deployment.engine
        configure_logging(engine.log_format, level=engine.log_level)
        front = Front(deployment.server)
        front.open(Replicas(handle))
        self._app = create_front(front)

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        return await gather_response(self._app, request.scope, request.receive)


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """Build the application of a manifest: `import_path: sie_core.distributed.serving:application`.

    Args:
        arguments: `server`, `cluster` and `engine`, as `Deployment` has them.

    Raises:
        InvalidRequestError: They are wrong.
    """
    deployment = read_deployment(arguments)
    entrance = serve.deployment(
        name="entrance",
        num_replicas=deployment.cluster.num_entrances,
        max_ongoing_requests=2
        * deployment.server.max_requests,  # it refuses by itself what is too much
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=deployment.server.drain_seconds,
        logging_config=_QUIET,
    )(Entrance)
    return entrance.bind(deployment, replicas(deployment))


def replicas(deployment: Deployment, *, num_starts: int = _NUM_STARTS) -> serve.Application:
    """Build the replicas alone, which Python asks and HTTP does not.

    Args:
        deployment: What is served, and how.
        num_starts: How often Ray tries to start one.
    """
    cluster = deployment.cluster
    return serve.deployment(
        name="replica",
        autoscaling_config=cluster.autoscaling,
        max_ongoing_requests=cluster.max_ongoing_requests,
        max_queued_requests=deployment.server.max_requests,
        ray_actor_options=cluster.actor_options,
        graceful_shutdown_timeout_s=deployment.server.drain_seconds,
        max_constructor_retry_count=num_starts,
        logging_config=_QUIET,
    )(Replica).bind(deployment)


class Cluster:
    """Deploy replicas for a server that runs here, from its start to its end.

    Args:
        deployment: What is served, and how.
        address: Of the Ray cluster, or `local` for one that lives as long as this; None means the
            one that this process uses already, else `RAY_ADDRESS`, else one that runs on this
            machine, else `local`.

    Raises:
        InvalidRequestError: The machine is too small for the replicas, or the address is one of
            Ray Client's.
        SIEConnectionError: The cluster is not there.
    """

    def __init__(self, deployment: Deployment, *, address: str | None = None) -> None:
        self._deployment = deployment
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        if self._address is not None and self._address.startswith("ray://"):
            msg = (
                f"what serves must be on a machine of the Ray cluster, but got {self._address!r}, "
                "which is for programs elsewhere; start it on one, with HOST:6379 or without an "
                "address"
            )
            raise InvalidRequestError(msg)
        self._is_deployed = False
        self._is_connected_before = ray.is_initialized()

    def __enter__(self) -> Self:
        is_own = connect(self._address, shows_log=True)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            if is_own:
                self._check_size()
            serve.start(proxy_location="Disabled")
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            if self._is_deployed:
                serve.delete(self._deployment.cluster.app_name)
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        if not self._is_connected_before:
            ray.shutdown()

    def make_app(
        self,
        settings: ServerSettings,
        client: LocalClient | None,
        *,
        on_failed_start: Callable[[Exception], None] | None,
        is_loopback: bool,
    ) -> Starlette:
        """Make the app that stands before the replicas; see `sie_core.server.run.AppMaker`."""
        del client  # the models are in the replicas
        front = Front(settings)

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            deploying = asyncio.create_task(self._open(front, on_failed_start))
            try:
                yield
            finally:
                deploying.cancel()

        return create_front(front, is_loopback=is_loopback, lifespan=lifespan)

    async def _open(
        self, front: Front, on_failed_start: Callable[[Exception], None] | None
    ) -> None:
        """Deploy the replicas, and let requests in when the first are there."""
        try:
            await asyncio.to_thread(self._deploy)
            name = self._deployment.cluster.app_name
            while not await asyncio.to_thread(self._is_running, name):  # noqa: ASYNC110  Ray tells nobody
                await asyncio.sleep(_POLL_SECONDS)
            front.open(Replicas(await asyncio.to_thread(serve.get_app_handle, name)))
            _logger.info("the replicas are ready")
        except Exception as exc:
            if on_failed_start is None:
                raise
            on_failed_start(exc)

    def _deploy(self) -> None:
        name = self._deployment.cluster.app_name
        if name in serve.status().applications:
            msg = (
                f"the Ray cluster has an application named {name!r} already; end that, or give "
                "this one another name by --ray-app"
            )
            raise InvalidRequestError(msg)
        self._is_deployed = True
        target = serve.RunTarget(
            replicas(self._deployment, num_starts=1), name=name, route_prefix=None
        )
        serve.run_many([target], wait_for_applications_running=False)

    def _is_running(self, name: str) -> bool:
        """Say whether the replicas are there.

        Raises:
            SIEError: They cannot be.
        """
        standing = serve.status().applications[name]
        if standing.status == "DEPLOY_FAILED":
            raise _cause(standing)
        return bool(standing.status == "RUNNING")

    def _check_size(self) -> None:
        """Refuse what would wait for ever on this machine, which cannot grow.

        Raises:
            InvalidRequestError: The replicas do not fit.
        """
        cluster, available = self._deployment.cluster, ray.cluster_resources()
        for what, name, each in (
            ("cores", "CPU", cluster.cores_per_replica),
            ("GPUs", "GPU", cluster.gpus_per_replica),
        ):
            found = available.get(name, 0.0)
            if cluster.min_replicas * each > found:
                msg = (
                    f"{cluster.min_replicas} replicas of {each:g} {what} do not fit into the "
                    f"{found:g} {what} of this machine; ask for fewer, or name a larger cluster by "
                    "--ray-address"
                )
                raise InvalidRequestError(msg)


def _cause(standing: Any) -> SIEError:
    """Return why an application could not be deployed, as the replica said it."""
    messages = [standing.message, *(it.message for it in standing.deployments.values())]
    for message in messages:
        found = _CAUSE.findall(message)
        kind = getattr(errors, found[-1][0], None) if found else None
        if isinstance(kind, type) and issubclass(kind, SIEError):
            return kind(found[-1][1])
    msg = f"the replicas could not be started: {' '.join(messages)[-2000:]}"
    return ModelLoadError(msg)
