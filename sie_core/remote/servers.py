"""`Servers`: several addresses of the same thing, and which of them a request goes to.

A request goes to the server with the fewest requests of this client under way; among equals, to
the one that was asked least recently. A server that fails several times in a row is ejected: it
gets no requests for a while, and then a single one, which brings it back or sends it away again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence

from sie_core.breaker import Breaker, CircuitState
from sie_core.errors import SIEError
from sie_core.settings import BreakerSettings


class Servers:
    """Which server is asked next. Safe to share between threads; a copy knows nothing yet.

    Args:
        addresses: At least one, without slashes at their ends.
        settings: When a server is ejected, and for how long.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        settings: BreakerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.addresses = tuple(addresses)
        self._settings = settings or BreakerSettings()
        self._lock = threading.Lock()
        self._servers = [
            _Server(address, Breaker(self._settings, clock), turn)
            for turn, address in enumerate(self.addresses)
        ]
        self._turn = len(self._servers)

    @property
    def states(self) -> dict[str, CircuitState]:
        """By address: `closed`: asked; `open`: ejected; `half-open`: one request may probe it."""
        return {server.address: server.breaker.state for server in self._servers}

    def take(self, avoided: Collection[str] = ()) -> Visit | None:
        """Choose a server for a request, and count the request until it is told how that went.

        Args:
            avoided: Addresses that have just refused this request.

        Returns:
            The visit; None where every server is to be avoided, or is ejected while others are
            avoided. Where nothing is avoided and all are ejected, the one that was asked least
            recently is asked all the same: there is nothing to lose.
        """
        with self._lock:
            left = [server for server in self._servers if server.address not in avoided]
            left.sort(key=_Server.load)
            is_single = len(self._servers) == 1
            for server in left:
                if is_single or server.breaker.admits():
                    return self._visit(server, is_admitted=not is_single)
            if avoided or not left:
                return None
            return self._visit(min(left, key=lambda server: server.turn), is_admitted=False)

    def has_other(self, avoided: Collection[str]) -> bool:
        """Tell whether there is a server to ask that is neither ejected nor to be avoided."""
        return any(
            server.breaker.state != "open"
            for server in self._servers
            if server.address not in avoided
        )

    def _visit(self, server: _Server, *, is_admitted: bool) -> Visit:
        server.num_requests += 1
        self._turn += 1
        server.turn = self._turn
        return Visit(server, self._leave, is_admitted=is_admitted)

    def _leave(self, server: _Server) -> None:
        with self._lock:
            server.num_requests -= 1

    def __reduce__(self) -> tuple[type[Servers], tuple[tuple[str, ...], BreakerSettings]]:
        return Servers, (self.addresses, self._settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Servers) and self.addresses == other.addresses

    def __hash__(self) -> int:
        return hash(self.addresses)

    def __repr__(self) -> str:
        return f"Servers({list(self.addresses)})"


class _Server:
    """One address, how it fares, and what is under way there."""

    def __init__(self, address: str, breaker: Breaker, turn: int) -> None:
        self.address = address
        self.breaker = breaker
        self.num_requests = 0
        self.turn = turn

    def load(self) -> tuple[int, int]:
        """Return what it is chosen by: the smallest is asked."""
        return self.num_requests, self.turn


class Visit:
    """One request to one server, and how it went; the first that is said of it counts."""

    def __init__(
        self, server: _Server, leave: Callable[[_Server], None], *, is_admitted: bool
    ) -> None:
        self._server = server
        self._leave = leave
        self._is_admitted = is_admitted
        self._is_over = False

    @property
    def address(self) -> str:
        """Where the request goes."""
        return self._server.address

    def answered(self) -> None:
        """Report that the server is alive, whatever it said."""
        if self._end():
            self._server.breaker.succeeded()

    def failed(self, error: SIEError) -> None:
        """Report that it is not: no reply, or a gateway's word that nobody is there."""
        if self._end():
            self._server.breaker.failed(error)

    def close(self) -> None:
        """Report that nobody waited for how it went, if nothing else was reported."""
        if self._end() and self._is_admitted:
            self._server.breaker.abandoned()

    def _end(self) -> bool:
        is_first, self._is_over = not self._is_over, True
        if is_first:
            self._leave(self._server)
        return is_first
