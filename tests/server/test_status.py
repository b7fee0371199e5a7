"""What `GET /v1/status` says, and the times that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from sie_core.server.recent import MAX_TIMES, WINDOW_SECONDS, RecentCalls
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

BODY = {
    "query": {"text": "paris"},
    "items": [{"text": "the capital of france"}, {"text": "a song"}],
}


class Clock:
    """Tells the time that a test says it is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(calls: RecentCalls, clock: Clock, seconds: float) -> None:
    """Let a call take so long."""
    began = calls.begin()
    clock.now += seconds
    calls.end(began, has_failed=False)


def test_calls_are_counted_with_their_models(
    serve: Callable[..., Server], make_tiny_bert: Callable[..., Path]
) -> None:
    """Those that are over, those that failed; sequences and tokens of models that are loaded."""
    source = str(make_tiny_bert())
    server = serve(
        models=(
            ModelSettings(name="tiny", source=source),
            ModelSettings(name="cold", source=f"{source}/none", preload=False),
        )
    )
    before = httpx.get(f"{server.url}/v1/status").raise_for_status().json()
    assert before["requests"] == {"total": 0, "failed": 0, "in_flight": 0}
    assert before["latency_ms"] == {"p50": None, "p95": None}
    assert before["models"]["cold"] == {"state": "unloaded"}
    for _ in range(3):
        httpx.post(f"{server.url}/v1/score/tiny", json=BODY).raise_for_status()
    assert httpx.post(f"{server.url}/v1/score/none", json=BODY).status_code == 404
    after = httpx.get(f"{server.url}/v1/status").json()
    assert after["requests"] == {"total": 4, "failed": 1, "in_flight": 0}
    assert 0 < after["latency_ms"]["p50"] <= after["latency_ms"]["p95"]
    tiny, earlier = after["models"]["tiny"], before["models"]["tiny"]
    assert tiny["state"] == "loaded"
    assert tiny["sequences"] - earlier["sequences"] == 6
    assert tiny["tokens"] > earlier["tokens"]
    assert (tiny["queued_tokens"], tiny["queued_requests"]) == (0, 0)
    assert tiny["bytes"] > 0
    assert after["uptime_s"] > before["uptime_s"]


def test_asking_every_second_uses_up_no_rate(
    serve: Callable[..., Server], make_tiny_bert: Callable[..., Path]
) -> None:
    """The page does: whoever has it open may still call as often as anyone."""
    models = (ModelSettings(name="tiny", source=str(make_tiny_bert())),)
    server = serve(models=models, rate_limits=("1/minute",))
    with httpx.Client(base_url=server.url) as client:
        assert [client.get("/v1/status").status_code for _ in range(5)] == [200] * 5
        statuses = [client.post("/v1/score/tiny", json=BODY).status_code for _ in range(2)]
    assert statuses == [200, 429]


def test_percentiles_are_times_that_occurred() -> None:
    """By nearest rank: of ten calls, the fifth and the tenth."""
    clock = Clock()
    calls = RecentCalls(clock)
    for seconds in (0.1, 0.9, 0.3, 0.5, 0.7, 0.2, 1.0, 0.4, 0.8, 0.6):
        answer(calls, clock, seconds)
    assert calls.percentiles(0.0, 0.5, 0.95) == pytest.approx([0.1, 0.5, 1.0])


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    """And without calls there are no percentiles."""
    clock = Clock()
    calls = RecentCalls(clock)
    assert calls.percentiles(0.5) is None
    answer(calls, clock, 5.0)
    clock.now += WINDOW_SECONDS - 1
    answer(calls, clock, 2.0)
    assert calls.percentiles(0.95) == pytest.approx([2.0])
    clock.now += WINDOW_SECONDS + 1
    assert calls.percentiles(0.5) is None
    assert calls.num_calls == 2


def test_failures_have_no_time() -> None:
    """A refusal is quick, and would make the server look so."""
    clock = Clock()
    calls = RecentCalls(clock)
    calls.end(calls.begin(), has_failed=True)
    assert (calls.num_calls, calls.num_failed, calls.percentiles(0.5)) == (1, 1, None)


def test_memory_is_bounded() -> None:
    """However many calls a minute holds."""
    clock = Clock()
    calls = RecentCalls(clock)
    answer(calls, clock, 9.0)
    for _ in range(MAX_TIMES):
        answer(calls, clock, 0.0)
    assert calls.percentiles(1.0) == pytest.approx([0.0])
    assert calls.num_calls == MAX_TIMES + 1
