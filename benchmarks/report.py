"""What a benchmark leaves behind: a table on the terminal, and the same as JSON for the plots."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LAYOUTS = ((100, ",.0f"), (1, ".2f"), (1e-4, ".4f"))
"""How many digits a number shows, by the least that it is."""

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


class Report:
    """Collects the tables of one benchmark.

    Args:
        name: The benchmark's.
        settings: What it was run with, beyond the command line.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self._content: dict[str, Any] = {
            "benchmark": name,
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
            "machine": describe_machine(),
            "versions": {"python": platform.python_version()} | installed_versions(_PACKAGES),
            "settings": settings,
            "tables": {},
        }
        machine = self._content["machine"]
        print(f"{name}: {machine['processor']}, {machine['cores']} cores, {machine['isa']}")

    def add(
        self, title: str, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] | None = None
    ) -> None:
        """Print rows as a table under a title, and keep them."""
        self._content["tables"][title] = [dict(row) for row in rows]
        shown = list(columns or rows[0])
        print(f"\n{title}")
        print(format_table(shown, rows), flush=True)

    def note(self, **facts: Any) -> None:
        """Keep facts that are no table."""
        self._content["settings"].update(facts)

    def save(self, path: Path | None) -> None:
        """Write everything to `path`, if there is one."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
            print(f"\nwritten to {path}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all benchmarks have."""
    parser.add_argument("--quick", action="store_true", help="fewer rounds and configurations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")


def format_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as lines of aligned text."""
    cells = [list(columns)] + [[format_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = []
    for line in cells:
        first = line[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def format_cell(value: Any) -> str:
    """Return a value as a table shows it: four significant digits, nothing for None."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    for least, layout in _LAYOUTS:
        if abs(value) >= least:
            return format(value, layout)
    return f"{value:.4f}" if value == 0 else f"{value:.1e}"


def describe_machine() -> dict[str, Any]:
    """Say what this runs on; the instruction set counts what is hidden as not there."""
    lines: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            lines.setdefault(key.strip(), value.strip())
    flags = set(lines.get("flags", "").split())
    return {
        "processor": lines.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": " ".join(flag for flag in _FLAGS if flag in flags) or "unknown",
        "hidden": {
            name: os.environ[name]
            for name in ("ONEDNN_MAX_CPU_ISA", "SIE_MAX_CPU_ISA")
            if name in os.environ
        },
        "system": platform.platform(),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
