"""One request from first attempt to answer, as a generator that neither sends nor sleeps.

A plan yields `Send` and `Pause`; whoever drives it does what they say and sends back what came:
a `Reply`, or `Broken` where none did. It ends with the answer (`StopIteration.value`) or raises.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

from sie_core.deadline import Deadline
from sie_core.errors import (
    InvalidResponseError,
    ServerError,
    SIEConnectionError,
    SIEError,
)
from sie_core.remote.codec import excerpt
from sie_core.remote.failures import Failure, read_failure
from sie_core.remote.retry import Kind, Outcome, delay_seconds
from sie_core.remote.servers import Servers, Visit
from sie_core.remote.wire import Reply, Request

_T = TypeVar("_T")

_MAX_REDIRECTS: Final = 3
_METHOD_KEEPING_REDIRECTS: Final = (307, 308)
_REDIRECTS: Final = (301, 302, 303, *_METHOD_KEEPING_REDIRECTS)
_OK: Final = 200
_ACCEPTED: Final = 202
_FIRST_REDIRECT: Final = 300
_ELSEWHERE: Final = (Kind.CONNECTION, Kind.BUSY, Kind.LOADING, Kind.EXHAUSTED, Kind.GATEWAY)
"""Failures that another server need not share."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request to `url`; its reply must be whole by `moment` on the monotonic clock."""

    request: Request
    url: str
    moment: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """No reply, and how so.

    `unreachable`: no connection within the connect timeout. `dropped`: refused, reset, or closed
    before the reply was whole. `timed_out`: connected, but the time was up.
    """

    how: Literal["unreachable", "dropped", "timed_out"]
    reason: str


Plan = Generator[Send | Pause, Reply | Broken | None, _T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one call may do and for how long, the same for all its parts.

    Attributes:
        servers: Where requests go.
        deadline: When the call must be over.
        connect_timeout_seconds: How long a server that accepts no connection is tried.
        restart_seconds: How long it is tried at least, however often.
        waits_for_capacity: Whether to wait for a machine that is being started.
        provision_seconds: Budget of that wait, added to the deadline; None: within the deadline.
        is_retried: Whether a failure may be followed by another attempt.
        redact: Takes secrets out of a text.
        clock: Monotonic seconds.
        wall_clock: Seconds since the epoch.
        draw: A random number from [0, 1).
    """

    servers: Servers
    deadline: Deadline
    connect_timeout_seconds: float
    restart_seconds: float = 0.0
    waits_for_capacity: bool = False
    provision_seconds: float | None = None
    is_retried: bool = True
    redact: Callable[[str], str] = str
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    draw: Callable[[], float] = random.random


@dataclass(slots=True)
class _Journey:
    """What has happened to one request so far."""

    terms: Terms
    request: Request
    moment: float
    provision_left: float | None
    address: str = ""
    url: str = ""
    refused: set[str] = field(default_factory=set)
    num_attempts: int = 0
    num_redirects: int = 0
    kind: Kind | None = None
    kind_attempts: int = 0
    kind_since: float = 0.0
    started: float = 0.0
    last_error: SIEError | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def visiting(self) -> Iterator[Visit]:
        """Go to the server that is next; the visit is over where nobody says how it went."""
        servers = self.terms.servers
        visit = servers.take(self.refused) or servers.take()
        if visit is None:
            msg = "there is no server to ask"
            raise TypeError(msg)
        self.address, self.num_redirects = visit.address, 0
        self.url = visit.address + self.request.path
        try:
            yield visit
        finally:
            visit.close()

    def goes_elsewhere(self, outcome: Reply | Broken, failure: Failure) -> bool:
        """Tell whether another server is asked at once, without a pause; it is so within a round.

        A server that is loading the model, or is full, is not sick, but others may be ready.
        """
        is_unreachable = isinstance(outcome, Broken) and outcome.how == "unreachable"
        if not self.terms.is_retried or not (is_unreachable or failure.outcome.kind in _ELSEWHERE):
            return False
        self.refused.add(self.address)
        if self.terms.servers.has_other(self.refused):
            self.last_error = failure.error
            return True
        self.refused.clear()
        return False

    def start(self) -> None:
        """Begin an attempt, unless the time is up."""
        self.started = self.terms.clock()
        if self.started >= self.moment:
            self.run_out("asking " + self.url, self.last_error)
        self.num_attempts += 1

    def note(self, failure: Failure) -> None:
        """Count how often this kind of failure has come in a row."""
        kind = failure.outcome.kind
        if kind is not self.kind:
            self.kind, self.kind_attempts, self.kind_since = kind, 0, self.started
        self.kind_attempts += 1
        self.last_error = failure.error

    def wait(self, failure: Failure) -> float:
        """Return how long to wait before the next attempt; raise if there is none."""
        self.note(failure)
        now = self.terms.clock()
        is_provisioning = self.kind is Kind.PROVISIONING
        if is_provisioning:
            self.charge_provisioning(now - self.started)
        has_own_budget = is_provisioning and self.provision_left is not None
        remaining = (self.provision_left or 0.0) if has_own_budget else self.moment - now
        wait = delay_seconds(
            failure.outcome,
            attempt=self.kind_attempts,
            elapsed_seconds=now - self.kind_since,
            remaining_seconds=remaining,
            random=self.terms.draw(),
            connect_window_seconds=self.terms.connect_timeout_seconds,
            restart_seconds=self.terms.restart_seconds,
        )
        is_refused = is_provisioning and not self.terms.waits_for_capacity
        if wait is None or is_refused or not self.terms.is_retried:
            self.give_up(failure, now)
        if is_provisioning:
            self.charge_provisioning(wait)
        return wait

    def charge_provisioning(self, seconds: float) -> None:
        """Take time out of the budget for provisioning instead of the call's own."""
        if self.provision_left is not None and self.terms.waits_for_capacity:
            seconds = min(seconds, self.provision_left)
            self.provision_left -= seconds
            self.moment += seconds

    def give_up(self, failure: Failure, now: float) -> NoReturn:
        """Raise: the server's own error, or the deadline's where waiting on would have helped."""
        error = failure.error
        tries = "once" if self.num_attempts == 1 else f"{self.num_attempts} times"
        if self.kind is Kind.LOADING and self.terms.is_retried:
            self.run_out(f"{self.url} was still loading the model (asked {tries})", error)
        if self.kind is Kind.CONNECTION and now >= self.moment:
            self.run_out("connecting to " + self.url, error)
        if self.num_attempts > 1:
            error.args = (f"{error} (asked {tries})",)
        raise error

    def run_out(self, doing: str, last: SIEError | None) -> NoReturn:
        """Raise the deadline's error, with the code of the last refusal."""
        error = self.terms.deadline.exceeded(doing)
        if last is not None:
            error.status_code, error.code = last.status_code, last.code
        raise error from last


def attempts(request: Request, read: Callable[[Reply], _T], terms: Terms) -> Plan[_T]:
    """Plan one request: send it, and again as often as the retry policy and the deadline allow.

    Args:
        request: What is sent.
        read: Turns a 200 into the answer; raises InvalidResponseError for one not to be trusted.
        terms: What is allowed.

    Raises:
        SIEError: There will be no answer. Nothing is sent or awaited after the deadline.
    """
    journey = _Journey(terms, request, terms.deadline.moment, terms.provision_seconds)
    while True:
        with journey.visiting() as visit:
            outcome = yield from _ask(journey)
            failure = _failure(outcome, journey)
            if failure is not None and _is_sick(outcome, failure):
                visit.failed(failure.error)
            else:
                visit.answered()
        if failure is None and isinstance(outcome, Reply):
            return _answer(outcome, read, request, journey)
        if failure is not None and not journey.goes_elsewhere(outcome, failure):
            yield Pause(journey.wait(failure))


def _ask(journey: _Journey) -> Plan[Reply | Broken]:
    """Send a request to the server being visited, and again where that redirects it."""
    while True:
        journey.start()
        outcome = yield Send(journey.request, journey.url, journey.moment)
        if outcome is None:
            msg = "a plan was resumed without the outcome of its request"
            raise TypeError(msg)
        if isinstance(outcome, Broken) or not _follows(outcome, journey):
            return outcome


def _is_sick(outcome: Reply | Broken, failure: Failure) -> bool:
    """Tell whether a failure speaks against the server, not against the request or the moment."""
    return isinstance(outcome, Broken) or failure.outcome.kind is Kind.GATEWAY


def _failure(outcome: Reply | Broken, journey: _Journey) -> Failure | None:
    """Say what an outcome is, if it is no answer."""
    if isinstance(outcome, Broken):
        return _broken(outcome, journey)
    if outcome.status_code < _FIRST_REDIRECT and outcome.status_code != _ACCEPTED:
        return None
    terms = journey.terms
    return read_failure(_redacted(outcome, terms), journey.url, now=terms.wall_clock())


def _answer(reply: Reply, read: Callable[[Reply], _T], request: Request, journey: _Journey) -> _T:
    """Read a reply, naming in any error what was wrong with it and what it looks like."""
    try:
        _check_whole(reply, request)
        return read(reply)
    except InvalidResponseError as exc:
        redact = journey.terms.redact
        beginning = excerpt(_redacted(reply, journey.terms).body)
        msg = (
            f"{journey.url} answered {reply.status_code} with a reply that cannot be used: {exc}; "
            f"content type {reply.content_type!r:.80}, beginning: {beginning!r}"
        )
        error = InvalidResponseError(redact(msg))
        error.status_code = reply.status_code
        error.code = reply.headers.get("x-sie-error-code")
        raise error from exc


def _redacted(reply: Reply, terms: Terms) -> Reply:
    """Take secrets out of a body before it is cut to an excerpt, which could halve them."""
    body = terms.redact(reply.body.decode("latin-1")).encode("latin-1")
    return replace(reply, body=body)


def _check_whole(reply: Reply, request: Request) -> None:
    if reply.status_code != _OK:
        msg = "an answer comes with the status 200"
        raise InvalidResponseError(msg)
    if reply.is_cut:
        msg = f"it is longer than the {request.max_reply_bytes} bytes expected at most"
        raise InvalidResponseError(msg)


def _broken(broken: Broken, journey: _Journey) -> Failure:
    """Make a failure of a missing reply."""
    terms = journey.terms
    if broken.how == "timed_out":
        waited = f"{journey.url} had taken the request, but not answered ({broken.reason})"
        error = terms.deadline.exceeded(f"waiting: {waited}")
        return Failure(error, Outcome(kind=Kind.FINAL))
    if broken.how == "unreachable":
        msg = f"{journey.url} did not accept a connection: {broken.reason}; is the address right?"
        if terms.clock() >= journey.moment:
            return Failure(terms.deadline.exceeded(msg), Outcome(kind=Kind.FINAL))
        return Failure(SIEConnectionError(msg), Outcome(kind=Kind.FINAL))
    msg = f"no reply from {journey.url}: {broken.reason}; is the server running?"
    return Failure(SIEConnectionError(msg), Outcome(kind=Kind.CONNECTION))


def _follows(reply: Reply, journey: _Journey) -> bool:
    """Follow a redirect within the same origin: credentials and documents go nowhere else."""
    if reply.status_code not in _REDIRECTS:
        return False
    target = urljoin(journey.url, reply.headers.get("location", ""))
    keeps_method = reply.status_code in _METHOD_KEEPING_REDIRECTS or journey.request.method == "GET"
    is_same = _origin(target) == _origin(journey.url)
    if is_same and keeps_method and journey.num_redirects < _MAX_REDIRECTS:
        journey.num_redirects += 1
        journey.url = target
        return True
    msg = (
        f"{journey.url} answered {reply.status_code}, a redirect to "
        f"{journey.terms.redact(target):.200}, which is not followed: set base_url to the address "
        "that answers"
    )
    error = ServerError(msg)
    error.status_code = reply.status_code
    raise error


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port)
