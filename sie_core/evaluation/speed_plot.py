"""The plot of `sie bench`: latency against candidates, throughput against callers."""

from __future__ import annotations

from pathlib import Path

from sie_core.errors import MissingDependencyError
from sie_core.evaluation.speed import SpeedReport

try:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[evaluation]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc


def draw_speed(report: SpeedReport, path: Path) -> None:
    """Draw a report to a file; the format is that of its suffix."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{report.model} on {report.machine['processor']}", fontsize=10)
    left, right = figure.subplots(1, 2)
    counts = [row.num_candidates for row in report.latency]
    left.plot(counts, [row.p50_ms for row in report.latency], marker="o", label="p50")
    left.plot(counts, [row.p95_ms for row in report.latency], marker="o", label="p95")
    left.set(xlabel="candidates of a call", ylabel="latency, ms", xlim=(0, None), ylim=(0, None))
    left.legend()
    callers = [row.num_callers for row in report.throughput]
    right.plot(callers, [row.pairs_per_second for row in report.throughput], marker="o")
    right.set(xlabel="callers at once, 20 candidates each", ylabel="pairs per second")
    right.set(xlim=(0, None), ylim=(0, None))
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=150)
