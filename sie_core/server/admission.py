"""`Door`: how many requests, and how many bytes of theirs, are in the server at a time."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from sie_core.server.failures import Failure, RefusedError
from sie_core.server.recent import RecentCalls


class Door:
    """Let requests in up to a number and a size; all on one event loop.

    Args:
        max_requests: Requests at a time.
        max_bytes: Bytes of their bodies together.

    Attributes:
        num_requests: Requests that are in.
        num_bytes: Bytes of their bodies.
        calls: How those went that are out again.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.num_requests = 0
        self.num_bytes = 0
        self.calls = RecentCalls()

    def enter(self) -> Visit:
        """Let one more in.

        Raises:
            RefusedError: There are too many.
        """
        if self.num_requests >= self._max_requests:
            self._refuse(f"{self.num_requests} requests are in progress")
        self.num_requests += 1
        return Visit(self)

    def grow(self, num_bytes: int) -> None:
        """Take up room for more of a body.

        Raises:
            RefusedError: There is none.
        """
        if self.num_bytes + num_bytes > self._max_bytes:
            self._refuse(f"requests of {self.num_bytes} bytes are in progress")
        self.num_bytes += num_bytes

    def leave(self, num_bytes: int) -> None:
        """Let one out, and give its room back."""
        self.num_requests -= 1
        self.num_bytes -= num_bytes

    def _refuse(self, why: str) -> None:
        message = f"the server is full: {why}; come back later, or send fewer at a time"
        raise RefusedError(
            Failure(status=503, code="QUEUE_FULL", message=message, retry_after_seconds=1.0)
        )


class Visit:
    """One request in the server, from `with` to its end."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._began = door.calls.begin()
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """See `Door.grow`."""
        self._door.grow(num_bytes)
        self.num_bytes += num_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._door.leave(self.num_bytes)
        self._door.calls.end(self._began, has_failed=kind is not None)
