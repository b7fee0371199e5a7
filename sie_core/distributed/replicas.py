"""`Replicas`: all that answer calls, as one that is asked. What Ray raises becomes a failure here.

A call that was on a replica when it died is asked once more: scoring changes nothing. A second
death is told, lest a request that ends replicas goes through all of them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from sie_core.distributed.forwarding import ForwardedCall, ForwardedReply
from sie_core.errors import MissingDependencyError
from sie_core.server.failures import Failure, RefusedError

try:
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException
except ImportError as exc:
    _msg = (
        f"serving on a cluster needs the extra distributed ({exc}): "
        'pip install "sie-core[distributed,local,server,cli]"'
    )
    raise MissingDependencyError(_msg, name=exc.name) from exc

_logger = logging.getLogger(__name__)

_MAX_HANDLES: Final = 1024
_NUM_TRIES: Final = 2
_VIEW_SECONDS: Final = 10.0
"""How long a replica may take to say how it stands."""


class Replicas:
    """Ask replicas.

    Args:
        handle: Ray's, of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._handles: dict[str, Any] = {}

    async def ask(self, call: ForwardedCall, model: str | None) -> ForwardedReply:
        """Let one answer, of those that hold the model if any do.

        Raises:
            RefusedError: There is none, or it died, or all are too busy.
        """
        handle = self._handle_for(model)
        for num_left in reversed(range(_NUM_TRIES)):
            response = handle.answer.remote(call)
            try:
                reply: ForwardedReply = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except Exception as exc:
                if not (num_left and _is_loss(exc)):
                    raise RefusedError(failure_from(exc)) from exc
                _logger.warning("a replica was lost with a call: %s", type(exc).__name__)
            else:
                return reply
        raise AssertionError

    async def ask_all(self, call: ForwardedCall) -> dict[str, ForwardedReply]:
        """Let every one answer how it stands; those that die meanwhile are left out.

        Raises:
            RefusedError: There is none.
        """
        return dict(await self._broadcast("view", call, seconds=_VIEW_SECONDS))

    async def reload(self, model: str, call: ForwardedCall, seconds: float) -> list[ForwardedReply]:
        """Let every one that holds a model load its files anew, and return their replies.

        Raises:
            RefusedError: There is no replica.
        """
        found = await self._broadcast("reload", model, call, seconds=seconds)
        return [reply for was_there, reply in found if was_there]

    async def _broadcast(self, method: str, *arguments: Any, seconds: float) -> list[Any]:
        response = self._handle.broadcast(method, *arguments)
        try:
            results = await response.results_async(timeout_s=seconds, return_exceptions=True)
        except Exception as exc:
            raise RefusedError(failure_from(exc)) from exc
        answers = [it for it in results if not isinstance(it, BaseException)]
        if not answers:
            raise RefusedError(_gone())
        return answers

    def _handle_for(self, model: str | None) -> Any:
        """Return what asks those that hold a model; making one takes longer than finding it."""
        if model is None:
            return self._handle
        found = self._handles.get(model)
        if found is None:
            found = self._handle.options(multiplexed_model_id=model)
            if len(self._handles) < _MAX_HANDLES:
                self._handles[model] = found
        return found


def failure_from(error: Exception) -> Failure:
    """Tell what a caller is told of what Ray raised."""
    if isinstance(error, BackPressureError):
        message = "all replicas are busy, and enough requests wait; come back later"
        return Failure(status=503, code="QUEUE_FULL", message=message, retry_after_seconds=1.0)
    if isinstance(error, RayServeException | TimeoutError) or _is_loss(error):
        _logger.warning("no replica answered: %s: %s", type(error).__name__, error)
        return _gone()
    _logger.error(
        "a replica failed in a way that nobody foresaw",
        exc_info=error
        if isinstance(error, RayError)
        else (type(error), error, error.__traceback__),
    )
    message = "the server failed; its log says why, under the request's id"
    return Failure(status=500, code="INTERNAL_ERROR", message=message)


def _is_loss(error: Exception) -> bool:
    """Say whether a process or a machine went away; what a replica itself raised is no loss."""
    return isinstance(error, RayError) and not isinstance(error, RayTaskError | RayServeException)


def _gone() -> Failure:
    message = "no replica is there to answer; one is being started: come back"
    return Failure(status=503, code="QUEUE_UNAVAILABLE", message=message, retry_after_seconds=1.0)
