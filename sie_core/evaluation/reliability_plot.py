"""The plot of `sie calibrate`: what was promised against what came true, before and after."""

from __future__ import annotations

from pathlib import Path

from sie_core.errors import MissingDependencyError
from sie_core.evaluation.calibrate import CalibrationReport

try:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[evaluation]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

_LARGEST_POINT = 400.0
"""Of the bin with the most pairs, in square points."""


def draw_reliability(report: CalibrationReport, path: Path) -> None:
    """Draw a report to a file; the format is that of its suffix.

    Each point is a bin of held-out pairs, its area their number; on the diagonal what was
    promised came true.
    """
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    most = max(one.num_pairs for one in (*report.before.bins, *report.after.bins))
    for name, measured in (("model's own", report.before), ("calibrated", report.after)):
        promised = [one.mean_probability for one in measured.bins]
        came_true = [one.fraction_relevant for one in measured.bins]
        areas = [_LARGEST_POINT * one.num_pairs / most for one in measured.bins]
        [line] = axes.plot(promised, came_true, label=f"{name}: error {measured.ece:.3f}")
        axes.scatter(promised, came_true, areas, color=line.get_color(), alpha=0.5)
    axes.set(
        xlabel="promised probability", ylabel="relevant of the pairs", xlim=(0, 1), ylim=(0, 1)
    )
    axes.set_title(f"{report.calibration.model}\n{report.num_held_out} held-out pairs", fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=150)
