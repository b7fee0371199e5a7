"""The plots of a measurement, each drawn once by matplotlib: a PNG, and an SVG for the report.

In the SVG colours are CSS variables, so that the page decides between light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_core.errors import MissingDependencyError

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[evaluation]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

_INK, _MUTED, _GRID = "#1f2430", "#667080", "#d8dce3"
_LOST, _WON = "#b5362c", "#2d7d53"
_SERIES = ("#2764ae", "#c0601d", "#7d4ea8", "#1d8a8a", "#a02c68", "#77701c")

COLOURS = {
    _INK: "ink",
    _MUTED: "muted",
    _GRID: "grid",
    _LOST: "lost",
    _WON: "won",
    **{colour: f"series-{number}" for number, colour in enumerate(_SERIES, start=1)},
}
"""The light palette, and each colour's CSS variable."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sie",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "grid.color": _GRID,
    "axes.grid": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_SIZE = (7.2, 3.8)
_PNG_DPI = 144


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot.

    Attributes:
        name: Its file's name, without an extension.
        title: What it shows, in a few words.
        description: What it shows to those who cannot see it.
        figure: The drawing.
    """

    name: str
    title: str
    description: str
    figure: Any

    def inline_svg(self) -> str:
        """Return the drawing as an element for an HTML page that defines `COLOURS`."""
        stream = io.StringIO()
        with rc_context(_STYLE):
            self.figure.savefig(stream, format="svg", metadata={"Date": None})
        svg = stream.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        # Several drawings stand on one page: their ids must differ.
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg)
        svg = svg.replace("url(#", f"url(#{self.name}-")
        svg = svg.replace('xlink:href="#', f'xlink:href="#{self.name}-')
        svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
        for colour, variable in COLOURS.items():
            svg = svg.replace(colour, f"var(--{variable})")
        label = f'<svg role="img" aria-label="{self.description}" '
        return svg.replace("<svg ", label, 1).strip()

    def save_png(self, folder: Path) -> Path:
        """Write `name.png` on a white ground into `folder`."""
        path = folder / f"{self.name}.png"
        with rc_context(_STYLE):
            self.figure.savefig(path, format="png", dpi=_PNG_DPI, facecolor="white")
        return path


def draw(outcome: Mapping[str, Any]) -> list[Plot]:
    """Draw what an outcome has figures for."""
    models = outcome["models"]
    with rc_context(_STYLE):
        plots = [_quality_by_depth(outcome)]
        if all(point["num_calls"] for model in models for point in model["depths"]):
            plots.append(_latency_by_depth(models))
            if len(models) > 1:
                plots.append(_quality_by_latency(outcome))
        plots += [
            _gains(model, "gains" if len(models) == 1 else f"gains-{number}")
            for number, model in enumerate(models, start=1)
        ]
    return plots


def _quality_by_depth(outcome: Mapping[str, Any]) -> Plot:
    figure, axes = _axes("candidates reranked", "nDCG@10")
    first = outcome["first_stage"]
    depths = [int(depth) for depth in first["recall"]]
    axes.plot(depths, list(first["recall"].values()), ":", color=_MUTED, label="recall (ceiling)")
    axes.axhline(first["metrics"]["nDCG@10"], ls="--", color=_INK, lw=1.2, label="not reranked")
    for model, colour in _coloured(outcome["models"]):
        values = [point["metrics"]["nDCG@10"] for point in model["depths"]]
        axes.plot(depths, values, "o-", color=colour, label=_short(model["label"]))
    axes.set_xticks(depths)
    figure.legend(fontsize=8, loc="outside upper left", ncols=3)
    return Plot(
        name="quality-by-depth",
        title="Quality against depth",
        description="nDCG@10 by the number of candidates reranked, beside the first stage's own",
        figure=figure,
    )


def _latency_by_depth(models: Sequence[Mapping[str, Any]]) -> Plot:
    figure, axes = _axes("candidates reranked", "ms per query")
    for model, colour in _coloured(models):
        depths = [point["depth"] for point in model["depths"]]
        for key, style in (("p50_ms", "o-"), ("p95_ms", "o--")):
            values = [point[key] for point in model["depths"]]
            label = f"{_short(model['label'])}, {key[:3]}"
            axes.plot(depths, values, style, color=colour, markersize=4, label=label)
    axes.set_xticks(depths)
    axes.set_ylim(bottom=0)
    figure.legend(fontsize=8, loc="outside upper left", ncols=3)
    return Plot(
        name="latency-by-depth",
        title="Latency against depth",
        description="Milliseconds per query by the number of candidates reranked",
        figure=figure,
    )


def _quality_by_latency(outcome: Mapping[str, Any]) -> Plot:
    figure, axes = _axes("ms per query (p50)", "nDCG@10")
    first = outcome["first_stage"]["metrics"]["nDCG@10"]
    axes.axhline(first, ls="--", color=_INK, lw=1.2, label="not reranked")
    for model, colour in _coloured(outcome["models"]):
        times = [point["p50_ms"] for point in model["depths"]]
        values = [point["metrics"]["nDCG@10"] for point in model["depths"]]
        axes.plot(times, values, "o-", color=colour, label=_short(model["label"]))
        for point, place in zip(model["depths"], zip(times, values, strict=True), strict=True):
            depth = str(point["depth"])
            axes.annotate(depth, place, (4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlim(left=0)
    figure.legend(fontsize=8, loc="outside upper left", ncols=3)
    return Plot(
        name="quality-by-latency",
        title="Quality against latency",
        description="nDCG@10 by milliseconds per query, a point for each number of candidates",
        figure=figure,
    )


def _gains(model: Mapping[str, Any], name: str) -> Plot:
    figure, axes = _axes("queries, from the largest loss to the largest gain", "change in nDCG@10")
    gains = list(model["gains"].values())
    places = range(1, len(gains) + 1)
    # Bars as wide as their distance: a line each would leave gaps between hundreds of them.
    axes.bar(places, gains, width=1.0, color=[_LOST if gain < 0 else _WON for gain in gains])
    axes.axhline(0, color=_MUTED, lw=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlim(0, len(gains) + 1)
    axes.annotate(f"{model['num_lost']} lost", (0.02, 0.06), xycoords="axes fraction", color=_LOST)
    axes.annotate(
        f"{model['num_won']} won", (0.98, 0.9), xycoords="axes fraction", color=_WON, ha="right"
    )
    return Plot(
        name=name,
        title=f"Change per query: {_short(model['label'])}",
        description=(
            f"Change in nDCG@10 of each query: {model['num_lost']} lost, "
            f"{model['num_unchanged']} unchanged, {model['num_won']} won"
        ),
        figure=figure,
    )


def _axes(x_label: str, y_label: str) -> tuple[Any, Any]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _coloured(models: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    return [(model, _SERIES[i % len(_SERIES)]) for i, model in enumerate(models)]


def _short(label: str) -> str:
    """Return a model's name without its owner or folder, and with its server."""
    name, at, address = label.partition("@http")
    # matplotlib takes what stands between dollar signs for mathematics.
    return (name.rstrip("/").rpartition("/")[2] + (f"@http{address}" if at else "")).replace(
        "$", r"\$"
    )
