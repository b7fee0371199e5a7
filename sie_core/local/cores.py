"""How many cores this process may use: its affinity, and what its control group allows."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def count_cores(root: Path = _ROOT) -> int:
    """Return the cores that this process may keep busy, at least 1.

    Two hardware threads of one core count once: they share the units that a forward pass is made
    of. A quota of the control group (as containers have) bounds the number; a part of a core counts
    as one.

    Args:
        root: Where /proc and /sys are found.
    """
    cpus = _affinity()
    quota = read_cpu_quota(root)
    cores = count_physical(cpus, root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _affinity() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def count_physical(cpus: Collection[int], root: Path = _ROOT) -> int:
    """Count the cores behind hardware threads; each is its own where Linux does not say."""
    folder = root / "sys/devices/system/cpu"
    siblings = (_read(folder / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus)
    return len({of or cpu for cpu, of in zip(cpus, siblings, strict=True)})


def read_cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the cores' worth of time that control groups allow; None for no bound.

    Reads version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`). The groups above bound this
    one too, so the smallest quota counts.
    """
    quotas = [
        quota
        for mount, group in _cpu_groups(root)
        for folder in _with_parents(mount, group)
        if (quota := _quota_of(folder)) is not None
    ]
    return min(quotas, default=None)


def _cpu_groups(root: Path) -> Iterator[tuple[Path, str]]:
    """Give the mount point and path of each control group that could bound the processor time."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:  # version 2; `unified` where version 1 is mounted beside it
            yield mounts, group
            yield mounts / "unified", group
        elif "cpu" in controllers.split(","):
            yield mounts / controllers, group
            yield mounts / "cpu", group


def _with_parents(mount: Path, group: str) -> Iterator[Path]:
    """Give the folder of a group and of those above it.

    In a container the path may be the host's, which does not exist there: the mount point itself
    then is the container's group, and comes last here.
    """
    inner = PurePosixPath(group.lstrip("/"))
    for part in (inner, *inner.parents):
        yield mount / part


def _quota_of(folder: Path) -> float | None:
    limit, _, period = _read(folder / "cpu.max").partition(" ")
    if not limit:
        limit, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    try:
        quota = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # `max`, or no such file
        return None
    return quota if quota > 0 else None  # -1: no bound


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
