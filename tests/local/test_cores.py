"""How many cores may be used: affinity, hardware threads, and control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sie_core.local import cores
from sie_core.local.cores import count_cores, count_physical, read_cpu_quota


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below `root`, as the kernel would show them."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        pytest.param({}, None, id="no control groups"),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"},
            1.5,
            id="version 2, inside a container",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"},
            None,
            id="version 2, no bound",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/app.service",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000",
                "sys/fs/cgroup/system.slice/app.service/cpu.max": "800000 100000",
            },
            3.0,
            id="version 2, a group above allows less",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:memory:/a\n3:cpu,cpuacct:/docker/abc\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
            id="version 1, the host's path inside a container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "1:cpu:/pod",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            },
            None,
            id="version 1, no bound",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "2:cpu:/\n0::/pod",
                "sys/fs/cgroup/unified/pod/cpu.max": "400000 100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4.0,
            id="both versions",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"},
            None,
            id="unreadable",
        ),
    ],
)
def test_the_quota_is_read_from_control_groups(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    """The smallest bound of this group and those above it."""
    assert read_cpu_quota(write(tmp_path, files)) == quota


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    """Four processors on two cores are two; on half of them, one."""
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    files = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": of
        for cpu, of in siblings.items()
    }
    root = write(tmp_path, files)
    assert count_physical(range(4), root) == 2
    assert count_physical([0, 2], root) == 1
    assert count_physical(range(4), tmp_path / "nothing-there") == 4


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("250000 100000", 3), ("99900000 100000", 8)]
)
def test_a_quota_bounds_the_cores_and_parts_count_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    """Half a core is one, two and a half are three, and a large quota makes no cores."""
    monkeypatch.setattr(cores, "_affinity", lambda: range(8))
    root = write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota})
    assert count_cores(root) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")
def test_this_process_affinity_counts() -> None:
    """A process bound to one processor has one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
