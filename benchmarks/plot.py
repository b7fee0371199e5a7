"""Draw what the benchmarks wrote: `.build/peers/bin/python benchmarks/plot.py FILE.json …`.

Each file becomes `performance-NAME.svg` in docs/images (or `--to`). matplotlib is in
`requirements-peers.txt`, not among our own dependencies.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
OURS, THEIRS, THIRD = "#0a6e5c", "#b4b4b4", "#d08c2e"
_LONG_NAMES = {
    "sentence-transformers": "s-t",
    "batch_size=": "batch ",
    "num_streams=": "streams ",
    "batch_tokens=": "tokens ",
    "attention=": "",
    "float32": "fp32",
    "bfloat16": "bf16",
}

Tables = Mapping[str, Sequence[Mapping[str, Any]]]


def short(name: str) -> str:
    """Return a contender's name as a label has room for."""
    for long, brief in _LONG_NAMES.items():
        name = name.replace(long, brief)
    return name


def tables_with(tables: Tables, column: str) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return the tables that have a column."""
    return {title: rows for title, rows in tables.items() if rows and column in rows[0]}


def draw_vs_peers(pyplot: Any, tables: Tables) -> Any:
    """Draw each contender's median, a panel for each model and shape."""
    panels = tables_with(tables, "x default")
    height = max(len(rows) for rows in panels.values())
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 0.26 * height * len(panels) + 1), squeeze=False
    )
    for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        names = [short(row["contender"]) for row in rows][::-1]
        times = [row["median ms"] for row in rows][::-1]
        colours = [OURS if name.startswith("sie ") else THEIRS for name in names]
        bars = axis.barh(names, times, color=colours)
        labels = [f"{row['median ms']:,.0f} ms  {row['x default']:.1f}x" for row in rows][::-1]
        axis.bar_label(bars, labels, padding=3, fontsize=7)
        axis.set_xlim(0, max(times) * 1.25)
        axis.set_title(f"{title}: median ms, and ratio to s-t default", fontsize=9)
        axis.tick_params(labelsize=7)
    return figure


def draw_scaling(pyplot: Any, tables: Tables) -> Any:
    """Draw time over tokens, and latency of concurrent callers over their fair share."""
    (candidates,) = tables_with(tables, "ms per 1000 tokens").values()
    (callers,) = tables_with(tables, "p95 / fair").values()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    tokens = [row["tokens"] / 1000 for row in candidates]
    left.plot(tokens, [row["median ms"] for row in candidates], "o-", color=OURS)
    left.set_xlabel("thousand tokens in one call (10 to 1,000 candidates)")
    left.set_ylabel("ms")
    numbers = [str(row["callers"]) for row in callers]
    for column, colour in (("p50 / fair", OURS), ("p95 / fair", THIRD), ("throughput", THEIRS)):
        label = "throughput / one large call" if column == "throughput" else f"{column} share"
        right.plot(numbers, [row[column] for row in callers], "o-", color=colour, label=label)
    right.set_ylim(0, None)
    right.set_xlabel("callers of 20 candidates at once")
    right.legend(fontsize=7)
    return figure


def draw_floor(pyplot: Any, tables: Tables) -> Any:
    """Draw the part of each model's time that its linear layers need at the measured rate."""
    (rows,) = tables_with(tables, "fraction").values()
    figure, axis = pyplot.subplots(figsize=(7, 0.35 * len(rows) + 1.2))
    names = [f"{row['model']}, {row['mode']}" for row in rows][::-1]
    bars = axis.barh(
        names, [row["median ms"] for row in rows][::-1], color=THEIRS, label="measured"
    )
    axis.barh(names, [row["floor ms"] for row in rows][::-1], color=OURS, label="floor")
    labels = [f"{row['fraction']:.2f}" for row in rows][::-1]
    axis.bar_label(bars, labels, padding=3, fontsize=8)
    axis.set_xscale("log")
    axis.set_xlabel("ms for 100 candidates of mixed length, and the floor's fraction of it")
    axis.legend(fontsize=7)
    return figure


def draw_startup(pyplot: Any, tables: Tables) -> Any:
    """Draw seconds and memory until the first scores."""
    panels = tables_with(tables, "resident MiB")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 2.6), sharey=True)
    width = 0.8 / len(panels)
    for number, (title, rows) in enumerate(panels.items()):
        places = [place + number * width for place in range(len(rows))]
        colour = (OURS, THIRD)[number % 2]
        label = title.rpartition(", ")[2]
        left.barh(places, [row["seconds"] for row in rows], width, color=colour, label=label)
        if number == 0:
            right.barh(places, [row["resident MiB"] for row in rows], width, color=colour)
            left.set_yticks(places, [row["process"] for row in rows], fontsize=8)
    left.set_xlabel("seconds from process start to 20 scores")
    left.legend(fontsize=7)
    right.set_xlabel("resident MiB then")
    return figure


def draw_memory(pyplot: Any, tables: Tables) -> Any:
    """Draw memory over calls."""
    (rows,) = tables_with(tables, "against the first tenth").values()
    figure, axis = pyplot.subplots(figsize=(6, 2.8))
    numbers = [row["calls"] for row in rows]
    axis.plot(numbers, [row["resident MiB"] for row in rows], "o-", color=OURS)
    axis.set_ylim(0, None)
    axis.set_xlabel("calls of random sizes")
    axis.set_ylabel("resident MiB")
    return figure


DRAWINGS: dict[str, Callable[[Any, Tables], Any]] = {
    "vs_peers": draw_vs_peers,
    "scaling": draw_scaling,
    "floor": draw_floor,
    "startup": draw_startup,
    "memory": draw_memory,
}


def main() -> None:
    """Draw each file that there is a drawing for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--to", type=Path, default=IMAGES, metavar="FOLDER")
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    arguments = parser.parse_args()
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "sie"  # the same picture gives the same file
    from matplotlib import pyplot as plt

    arguments.to.mkdir(parents=True, exist_ok=True)
    for file in arguments.files:
        content = json.loads(file.read_text(encoding="utf-8"))
        draw = DRAWINGS.get(content["benchmark"])
        if draw is None:
            print(f"{file}: there is nothing to draw of {content['benchmark']}")
            continue
        figure = draw(plt, content["tables"])
        figure.tight_layout()
        path = arguments.to / f"performance-{file.stem}.{arguments.format}"
        metadata = {"Date": None} if arguments.format == "svg" else {}
        figure.savefig(path, metadata=metadata, dpi=150)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
