"""Percentiles of many calls, in a space that does not grow."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from sie_core.telemetry.latency import LatencyHistogram

SECONDS = st.floats(1e-6, 1e4)


@given(st.lists(SECONDS, min_size=1, max_size=200))
def test_percentiles_are_those_of_the_times_to_within_two_and_a_half_percent(
    times: list[float],
) -> None:
    """The nearest-rank percentile is met closely, mean and longest exactly."""
    histogram = LatencyHistogram()
    for seconds in times:
        histogram.add(seconds)
    latency = histogram.read()
    assert latency is not None
    ordered = sorted(times)
    for percent, found_ms in ((50, latency.p50_ms), (90, latency.p90_ms), (99, latency.p99_ms)):
        expected = ordered[-(-len(times) * percent // 100) - 1]
        assert abs(found_ms / 1e3 - expected) <= 0.025 * expected
    assert latency.max_ms == 1e3 * max(times)
    assert abs(latency.mean_ms - 1e3 * statistics.fmean(times)) <= 1e-9 * latency.mean_ms


def test_no_call_has_no_latency() -> None:
    """There is no percentile of nothing."""
    assert LatencyHistogram().read() is None


def test_a_time_of_nothing_is_a_short_one() -> None:
    """A clock that did not move breaks nothing."""
    histogram = LatencyHistogram()
    histogram.add(0.0)
    latency = histogram.read()
    assert latency is not None
    assert latency.p99_ms == latency.max_ms == 0.0


def test_a_million_times_take_the_space_of_a_few() -> None:
    """Buckets grow with the range of times alone: from a microsecond to three hours, under 500."""
    histogram = LatencyHistogram()
    seconds = 1e-6
    while seconds < 1e4:
        histogram.add(seconds)
        seconds *= 1.001
    assert len(histogram._buckets) < 500
