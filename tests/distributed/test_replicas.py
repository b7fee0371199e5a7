"""What Ray raises, as callers are told it; and calls that were on a replica that was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

REASON = "Ray is not installed: the extra distributed brings it"
exceptions = pytest.importorskip("ray.exceptions", reason=REASON)
serve_exceptions = pytest.importorskip("ray.serve.exceptions", reason=REASON)

from sie_core.distributed.forwarding import ForwardedCall, ForwardedReply  # noqa: E402
from sie_core.distributed.replicas import Replicas  # noqa: E402
from sie_core.server.failures import RefusedError  # noqa: E402
from sie_core.server.record import CallRecord  # noqa: E402

CALL = ForwardedCall(method="POST", path="/v1/score/one")
REPLY = ForwardedReply(status=200, headers=(), body=b"{}", record=CallRecord())

Raise = Callable[[], Exception]


class FakeHandle:
    """Stands for Ray's: each call raises the next error, and is answered when there is none."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.models: list[str] = []
        self.num_calls = 0
        self.num_cancelled = 0
        self.answer = self

    def options(self, *, multiplexed_model_id: str) -> FakeHandle:
        """Note the model."""
        self.models.append(multiplexed_model_id)
        return self

    def remote(self, call: ForwardedCall) -> Any:
        """Begin a call."""
        assert call is CALL
        self.num_calls += 1
        return FakeResponse(self, self._errors.pop(0) if self._errors else None)


class FakeResponse:
    """Stands for Ray's."""

    def __init__(self, handle: FakeHandle, error: Exception | None) -> None:
        self._handle = handle
        self._error = error

    def __await__(self) -> Any:
        if isinstance(self._error, TimeoutError):
            yield from asyncio.Event().wait().__await__()
        if self._error is not None:
            raise self._error
        return REPLY

    def cancel(self) -> None:
        """Note that nobody waits any more."""
        self._handle.num_cancelled += 1


def lost() -> Exception:
    """A replica that died."""
    return exceptions.RayActorError()


def lost_machine() -> Exception:
    """A machine that died, with the reply on it."""
    return exceptions.ObjectLostError("0" * 40, None, "")


@pytest.mark.parametrize("loss", [lost, lost_machine])
async def test_a_call_is_asked_again_when_its_replica_is_lost(loss: Raise) -> None:
    """Once, of those that hold the model."""
    handle = FakeHandle(loss())
    assert await Replicas(handle).ask(CALL, "one") is REPLY
    assert (handle.num_calls, handle.models) == (2, ["one"])


@pytest.mark.parametrize(
    ("make", "status", "code", "num_calls"),
    [
        (lambda: [lost(), lost()], 503, "QUEUE_UNAVAILABLE", 2),
        (lambda: [serve_exceptions.BackPressureError(9, 8)], 503, "QUEUE_FULL", 1),
        (lambda: [serve_exceptions.RayServeException("none")], 503, "QUEUE_UNAVAILABLE", 1),
        (
            lambda: [exceptions.RayTaskError("answer", "/srv/secret.py", KeyError("k"))],
            500,
            "INTERNAL_ERROR",
            1,
        ),
        (lambda: [ValueError("/srv/secret.py")], 500, "INTERNAL_ERROR", 1),
    ],
)
async def test_what_ray_raises_is_told_in_sies_words(
    make: Callable[[], list[Exception]], status: int, code: str, num_calls: int
) -> None:
    """With when to come back where that helps, and nothing of the machine."""
    handle = FakeHandle(*make())
    with pytest.raises(RefusedError) as told:
        await Replicas(handle).ask(CALL, None)
    failure = told.value.failure
    assert (failure.status, failure.code, handle.num_calls) == (status, code, num_calls)
    assert (failure.retry_after_seconds is not None) == (status == 503)
    assert "secret" not in failure.message


async def test_a_call_that_nobody_waits_for_is_cancelled_on_its_replica() -> None:
    """So that it makes room."""
    handle = FakeHandle(TimeoutError())
    asking = asyncio.ensure_future(Replicas(handle).ask(CALL, None))
    await asyncio.sleep(0)  # it has begun
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert handle.num_cancelled == 1
