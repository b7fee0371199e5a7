"""When to ask again: properties of a pure function."""

from __future__ import annotations

import math
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sie_core.remote.retry import RULES, Kind, Outcome, delay_seconds, retry_after_seconds

RETRIED = st.sampled_from(list(RULES))
RANDOM = st.floats(0, 1, exclude_max=True)
SECONDS = st.floats(0, 1000)


def delay(
    kind: Kind,
    *,
    attempt: int = 1,
    elapsed: float = 0.0,
    remaining: float = 1e9,
    random: float = 0.5,
    hint: float | None = None,
    window: float = math.inf,
    restart: float = 0.0,
) -> float | None:
    """Ask for a delay with defaults."""
    return delay_seconds(
        Outcome(kind=kind, retry_after_seconds=hint),
        attempt=attempt,
        elapsed_seconds=elapsed,
        remaining_seconds=remaining,
        random=random,
        connect_window_seconds=window,
        restart_seconds=restart,
    )


@given(RETRIED, st.integers(1, 10_000), SECONDS, RANDOM, st.none() | SECONDS)
def test_no_wait_reaches_the_deadline(
    kind: Kind, attempt: int, remaining: float, random: float, hint: float | None
) -> None:
    """A wait is finite, not negative, and over before the time is up."""
    wait = delay(kind, attempt=attempt, remaining=remaining, random=random, hint=hint)
    assert wait is None or 0 <= wait < remaining


@given(st.integers(1, 100), RANDOM, st.none() | SECONDS)
def test_a_final_failure_is_never_retried(attempt: int, random: float, hint: float | None) -> None:
    """What asking again cannot mend is not asked again, whatever Retry-After says."""
    assert delay(Kind.FINAL, attempt=attempt, random=random, hint=hint) is None


@given(RETRIED, st.integers(1, 1000), RANDOM)
def test_waits_stay_below_their_cap(kind: Kind, attempt: int, random: float) -> None:
    """Without a hint no wait is longer than the rule's cap."""
    wait = delay(kind, attempt=attempt, random=random)
    assert wait is None or wait <= RULES[kind].cap_seconds


@pytest.mark.parametrize("kind", [Kind.CONNECTION, Kind.BUSY, Kind.EXHAUSTED, Kind.GATEWAY])
def test_jitter_is_full(kind: Kind) -> None:
    """Callers that failed together come back anywhere between now and the rule's wait."""
    assert delay(kind, random=0.0) == 0
    assert delay(kind, random=0.999) == pytest.approx(RULES[kind].first_seconds, rel=0.01)


@given(st.sampled_from([Kind.BUSY, Kind.GATEWAY, Kind.PROVISIONING]), SECONDS, RANDOM)
def test_retry_after_is_kept(kind: Kind, hint: float, random: float) -> None:
    """Where the server says when to come back, nobody comes back earlier."""
    wait = delay(kind, hint=hint, random=random)
    assert wait is not None
    assert hint <= wait <= hint + RULES[kind].cap_seconds


def test_a_loading_model_is_polled_sooner_than_the_server_says() -> None:
    """The server says 5 s though loading takes 1: the waits start short and grow up to that."""
    waits = [delay(Kind.LOADING, attempt=n, hint=5.0, random=0.5) or 0.0 for n in range(1, 20)]
    assert waits == sorted(waits)
    assert waits[0] < 0.3
    assert sum(waits[:4]) < 1.5
    assert 3 < waits[-1] <= 5


def test_a_loading_model_is_not_hammered() -> None:
    """A Retry-After of 0 does not make a busy loop."""
    assert (delay(Kind.LOADING, hint=0.0, random=0.0) or 0.0) >= 0.05


def test_a_last_poll_is_made_before_the_time_is_up() -> None:
    """Where the next step would lie behind the deadline, the rest is halved instead."""
    assert delay(Kind.LOADING, attempt=20, remaining=2.0) == 1.0
    assert delay(Kind.LOADING, attempt=20, remaining=0.04) is None


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    """A server that wants more time than there is gets its error raised at once."""
    assert delay(Kind.BUSY, hint=5.0, remaining=4.0) is None
    assert delay(Kind.GATEWAY, hint=5.0, remaining=4.0) is None
    assert delay(Kind.PROVISIONING, hint=50.0, remaining=40.0) is None


@pytest.mark.parametrize(
    ("kind", "num_retries"), [(Kind.CONNECTION, 3), (Kind.EXHAUSTED, 3), (Kind.GATEWAY, 4)]
)
def test_some_failures_are_retried_a_few_times_only(kind: Kind, num_retries: int) -> None:
    """A dead server or a full GPU does not get asked until the time is up."""
    assert delay(kind, attempt=num_retries) is not None
    assert delay(kind, attempt=num_retries + 1) is None


def test_a_dead_server_is_given_up_within_the_connect_timeout() -> None:
    """Connections are not tried again once that much time went into them."""
    assert delay(Kind.CONNECTION, elapsed=0.9, window=1.0) is not None
    assert delay(Kind.CONNECTION, elapsed=1.0, window=1.0) is None


def test_a_server_that_restarts_is_asked_until_it_has_had_its_time() -> None:
    """Neither the number of tries nor the connect window ends that earlier, for this kind alone."""
    terms: dict[str, Any] = {"attempt": 50, "window": 1.0, "restart": 30.0}
    assert delay(Kind.CONNECTION, elapsed=29.0, **terms) is not None
    assert delay(Kind.CONNECTION, elapsed=30.0, **terms) is None
    assert delay(Kind.GATEWAY, elapsed=1.0, **terms) is None
    assert delay(Kind.BUSY, elapsed=1.0, window=1.0) is not None


def test_memory_gets_more_time_with_each_try() -> None:
    """Out of memory: a few tries with growing delay, whatever Retry-After says."""
    waits = [delay(Kind.EXHAUSTED, attempt=n, hint=5.0, random=0.9) or 0.0 for n in (1, 2, 3)]
    assert waits == [0.9, 1.8, 3.6]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (formatdate(1_000_010, usegmt=True), 10.0),
        (formatdate(1_000_010, localtime=False), 10.0),
        (formatdate(999_000, usegmt=True), 0.0),
        ("Fri, 31 Feb 2026 00:00:00 GMT", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    """Both forms are read; what makes no sense counts as absent."""
    assert retry_after_seconds(value, now=1_000_000.0) == seconds


@given(st.text(max_size=60), st.floats(0, 4e9))
def test_any_retry_after_is_survived(value: str, now: float) -> None:
    """No header can raise, or ask for a wait that is negative or not finite."""
    seconds = retry_after_seconds(value, now=now)
    assert seconds is None or 0 <= seconds < math.inf
