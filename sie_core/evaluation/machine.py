"""The machine and the versions behind a measurement, to stand beside its figures."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "bm25s", "ir_measures", "pytrec_eval-terrier", "matplotlib")
"""What the figures of an evaluation may depend on, beside the engine."""


def describe_machine() -> dict[str, str]:
    """Say on what machine, and with which versions of the engine, something was measured."""
    import sie_core

    facts = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sie": sie_core.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if (torch := sys.modules.get("torch")) is not None:
        facts["torch"] = str(torch.__version__)
        if torch.cuda.is_available():
            facts["gpu"] = str(torch.cuda.get_device_name())
    return facts


def installed_versions() -> dict[str, str]:
    """Return the versions of those of `PACKAGES` that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # plots are drawn for a report only
            continue
    return versions


def _processor() -> str:
    def lines() -> Iterator[str]:
        try:
            yield from Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            return

    named = (line.partition(":")[2].strip() for line in lines() if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
