"""Nothing grows with use; and what does grow is found."""

from __future__ import annotations

import asyncio
import inspect
import math
import random
import threading
import time
from pathlib import Path

import pytest

from sie_core import Reranker
from tests.benchmarks.conftest import HAS_PROC, Soak

_NOT_SOAKED = {
    *("model", "client", "async_client", "mode", "device", "dtype", "num_threads"),  # one engine
    *("api_key", "gpu", "wait_for_capacity", "timeout_seconds", "hedge_after_ms"),  # a server's
    *("options", "max_length", "lora", "revision", "token", "cache_dir"),  # the model's
    *("calibration", "fuse_retrieval_score"),  # arithmetic on the scores that come back
}
"""What a call is given that is none of the features for production."""


def test_every_feature_is_soaked() -> None:
    """A new parameter of `Reranker` is called in the soak, or is named above."""
    from soak import FEATURES

    soaked = {name for it in FEATURES for name in (*it.settings, *it.arguments(random.Random(0)))}
    assert soaked.isdisjoint(_NOT_SOAKED)
    assert soaked | _NOT_SOAKED == set(inspect.signature(Reranker).parameters)


def noisy(
    slope: float, *, num: int = 120, seed: int = 1, alike: float = 0.8
) -> list[tuple[float, float]]:
    """Make samples of a memory that grows by `slope` a minute, under waves and noise."""
    rng = random.Random(seed)
    wave = 0.0
    points = []
    for i in range(-100, num):
        wave = alike * wave + rng.gauss(0, 0.5)  # as neighbouring samples are alike
        if i < 0:
            continue
        minutes = 30 * i / num
        points.append((minutes, 400 + slope * minutes + wave))
    return points


def test_growth_is_found_and_noise_is_none() -> None:
    """Half a MiB a minute stands out; level memory's interval has zero in it."""
    from soak import slope_of

    grown = slope_of(noisy(0.5))
    assert 0.3 < grown.low < grown.per_minute < grown.high < 0.7
    level = slope_of(noisy(0))
    assert level.low < 0
    assert abs(level.per_minute) < 0.1


@pytest.mark.parametrize(("alike", "most"), [(0.0, 10), (0.8, 20), (0.95, 30)])
def test_level_memory_is_rarely_taken_for_growth(alike: float, most: int) -> None:
    """Of 200 soaks without growth few are wrongly said to grow, waves of minutes' length or not."""
    from soak import slope_of

    wrong = sum(slope_of(noisy(0, seed=seed, alike=alike)).low > 0 for seed in range(200))
    assert wrong <= most


def test_samples_that_tell_nothing_are_no_proof() -> None:
    """One slow wave is as good as one or two samples, and those lie on every line."""
    from soak import slope_of

    wave = [(i / 4, 400 + math.sin(i / 6)) for i in range(40)]
    assert slope_of(wave).low == -math.inf
    assert slope_of([(minutes, 400.0) for minutes, _ in wave]).high == 0


def test_nothing_is_called_in_a_pause(tiny_bert: Path) -> None:
    """What is counted then is nobody's work under way; afterwards the calls go on."""
    from soak import FEATURES, Calls

    calls = Calls(str(tiny_bert), FEATURES[:2], mode="auto", pause_seconds=0.001)
    callers = [threading.Thread(target=calls.in_thread, args=(seed,)) for seed in range(2)]
    callers.append(threading.Thread(target=lambda: asyncio.run(calls.in_loop(2))))
    for caller in callers:
        caller.start()
    try:
        counts = []
        for _ in range(3):
            while calls.num_calls.total() < (counts[-1] if counts else 0) + 5:
                assert not calls.errors
                time.sleep(0.01)
            with calls.paused():
                counts.append(calls.num_calls.total())
                time.sleep(0.1)
                assert calls.num_calls.total() == counts[-1]
    finally:
        calls.is_over.set()
        for caller in callers:
            caller.join()
        calls.close()


def test_threads_that_stay_are_found() -> None:
    """One that comes and goes is none."""
    from soak import Sample, verdict

    def samples(num_at_end: int, num_once: int) -> list[Sample]:
        counts = [10] * 20 + [num_once] + [10] * 30 + [num_at_end] * 30
        return [
            Sample(
                minutes=i / 80,
                resident_mib=400 + i % 3 / 10,
                private_mib=200.0,
                allocated_mib=90.0,
                num_threads=count,
                num_files=9,
                num_blocks=800_000,
            )
            for i, count in enumerate(counts)
        ]

    assert verdict(samples(10, 14), [], minutes=1, tolerance=1)[1] == []
    [complaint] = verdict(samples(11, 10), [], minutes=1, tolerance=1)[1]
    assert complaint == "num_threads was 10 at most, and 11 at least in the end"
    assert verdict(samples(10, 10), ["plain: failed"], minutes=1, tolerance=1)[1] == [
        "plain: failed"
    ]


def test_a_jump_is_not_passed_over() -> None:
    """Samples before and after are so much alike that the interval is wide: that proves nothing."""
    from soak import Sample, verdict

    def samples(jump: float) -> list[Sample]:
        return [
            Sample(
                minutes=i / 4,
                resident_mib=400 + i % 3 / 10 + (jump if i > 90 else 0),
                private_mib=200.0,
                allocated_mib=90.0,
                num_threads=10,
                num_files=9,
                num_blocks=800_000,
            )
            for i in range(120)
        ]

    assert verdict(samples(0), [], minutes=30, tolerance=0)[1] == []
    [complaint] = verdict(samples(100), [], minutes=30, tolerance=0)[1]
    assert "the samples cannot tell" in complaint


@pytest.mark.skipif(not HAS_PROC, reason="/proc is not there")
def test_nothing_grows_with_use(soak: Soak) -> None:
    """Calls of every kind in threads and an event loop, in a process of their own."""
    status = soak.process.wait(timeout=300)
    printed = soak.printed.read_text()
    assert status == 0, printed
    assert "all together, awaited" in printed
