"""When to ask again, as a pure function: no clock, no randomness and no waiting of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final


class Kind(Enum):
    """What went wrong, as far as it matters for asking again."""

    FINAL = "final"
    CONNECTION = "connection"
    BUSY = "busy"
    LOADING = "loading"
    EXHAUSTED = "exhausted"
    PROVISIONING = "provisioning"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One attempt's failure, and how long the server asked to be left alone."""

    kind: Kind
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one kind of failure is retried.

    Attributes:
        max_retries: Retries in a row; None means until the time is up.
        first_seconds: Largest wait before the first retry.
        growth: Factor from one retry's largest wait to the next.
        cap_seconds: No wait is drawn above this.
        has_hint: Whether Retry-After is a lower bound; otherwise it is an upper one.
        is_poll: Whether something is becoming ready: waits are then drawn from the upper half
            of their range, and cut so that a last attempt is made before the time is up.
    """

    max_retries: int | None
    first_seconds: float
    growth: float = 2.0
    cap_seconds: float
    has_hint: bool = True
    is_poll: bool = False


RULES: Final[dict[Kind, Rule]] = {
    Kind.CONNECTION: Rule(max_retries=3, first_seconds=0.1, cap_seconds=1.0),
    Kind.BUSY: Rule(max_retries=None, first_seconds=0.25, cap_seconds=8.0),
    # The server names 5 s for every model, but most load faster: the waits start short.
    Kind.LOADING: Rule(
        max_retries=None,
        first_seconds=0.2,
        growth=1.5,
        cap_seconds=5.0,
        has_hint=False,
        is_poll=True,
    ),
    Kind.EXHAUSTED: Rule(max_retries=3, first_seconds=1.0, cap_seconds=8.0, has_hint=False),
    Kind.PROVISIONING: Rule(max_retries=None, first_seconds=1.0, cap_seconds=10.0, is_poll=True),
    Kind.GATEWAY: Rule(max_retries=4, first_seconds=0.25, cap_seconds=4.0),
}

_MIN_POLL_SECONDS: Final = 0.05
_MAX_EXPONENT: Final = 64


def delay_seconds(
    outcome: Outcome,
    *,
    attempt: int,
    elapsed_seconds: float,
    remaining_seconds: float,
    random: float,
    connect_window_seconds: float = math.inf,
    restart_seconds: float = 0.0,
) -> float | None:
    """Decide how long to wait before asking again.

    Args:
        outcome: What went wrong.
        attempt: How many times in a row this kind has come, from 1.
        elapsed_seconds: Since the request that met it first in this row was sent.
        remaining_seconds: Until the call's time is up.
        random: From [0, 1); spreads callers that failed together (full jitter).
        connect_window_seconds: A server that does not accept connections is given up after this.
        restart_seconds: Such a server is not given up before this, however often it was asked.

    Returns:
        Seconds to wait, less than `remaining_seconds`; None: do not ask again.
    """
    rule = RULES.get(outcome.kind)
    if rule is None or remaining_seconds <= 0:
        return None
    is_connection = outcome.kind is Kind.CONNECTION
    if not (is_connection and elapsed_seconds < restart_seconds):
        if rule.max_retries is not None and attempt > rule.max_retries:
            return None
        if is_connection and elapsed_seconds >= connect_window_seconds:
            return None
    step = rule.first_seconds * rule.growth ** min(attempt - 1, _MAX_EXPONENT)
    step = min(step, rule.cap_seconds)
    wait = step * (0.5 + random / 2) if rule.is_poll else step * random
    hint = outcome.retry_after_seconds
    if hint is not None:
        wait = hint + wait if rule.has_hint else min(max(hint, _MIN_POLL_SECONDS), wait)
    if wait < remaining_seconds:
        return wait
    can_poll = rule.is_poll and (hint is None or not rule.has_hint)
    return remaining_seconds / 2 if can_poll and remaining_seconds > _MIN_POLL_SECONDS else None


def retry_after_seconds(value: str | None, *, now: float) -> float | None:
    """Read a Retry-After header: seconds, or an HTTP date.

    Args:
        value: The header, None where there is none.
        now: Seconds since the epoch.

    Returns:
        Seconds from now, at least 0; None where the header says nothing usable.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value, now)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(date: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:  # an HTTP date is always GMT
            moment = moment.replace(tzinfo=UTC)
        return max(moment.timestamp() - now, 0.0)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
