from __future__ import annotations

import pytest

from sie_core.distributed.workers import CORES_PER_WORKER, Workers
from sie_core.errors import InvalidRequestError, ResourceExhaustedError

CPU_NODE = {"CPU": 16.0, "memory": 1e9}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


def test_one_worker_for_each_gpu() -> None:
    """With half of its share of the cores, for tokens. Nodes without GPUs get none then."""
    pool = Workers().fitted([GPU_NODE, GPU_NODE, CPU_NODE])
    assert (pool.num, pool.cores, pool.gpus) == (8, 2, 1)
    assert pool.num_threads is None


def test_one_worker_for_each_group_of_cores() -> None:
    """Where there are no GPUs, cores are shared out in groups, each engine using its own."""
    pool = Workers().fitted([CPU_NODE, {"CPU": 6.0}])
    assert (pool.num, pool.cores, pool.gpus) == (5, CORES_PER_WORKER, 0)
    assert pool.num_threads == CORES_PER_WORKER


def test_small_nodes_make_small_groups() -> None:
    """A node of one core has one too."""
    assert Workers().fitted([{"CPU": 1.0}, {"CPU": 1.0}]).num == 2


def test_nodes_that_hold_no_work_do_not_count() -> None:
    """A head node is often given 0 cores, to keep work off it."""
    pool = Workers().fitted([{"CPU": 0.0}, CPU_NODE])
    assert (pool.num, pool.cores) == (4, CORES_PER_WORKER)


def test_a_shared_gpu() -> None:
    """Two engines may share one."""
    pool = Workers(gpus=0.5).fitted([GPU_NODE])
    assert (pool.num, pool.cores) == (8, 1)


def test_more_workers_than_there_is_room_for_now() -> None:
    """A cluster may grow: those that fit begin."""
    pool = Workers(num=64).fitted([GPU_NODE])
    assert (pool.num, pool.num_at_start) == (64, 4)
    assert Workers(num=2).fitted([GPU_NODE]).num_at_start == 2
    assert Workers(num=2, gpus=1).fitted([CPU_NODE]).num_at_start == 1


def test_a_server_does_the_work() -> None:
    """Workers that only ask take no GPU, and a core each."""
    pool = Workers().fitted([GPU_NODE], is_local=False)
    assert (pool.num, pool.cores, pool.gpus) == (16, 1, 0)


def test_no_room_is_an_error() -> None:
    """It would wait for ever."""
    with pytest.raises(ResourceExhaustedError, match="has 32 cores and 1 GPUs for a worker"):
        Workers(cores=32, gpus=1).fitted([GPU_NODE])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num": 0}, "at least 1, but got 0"),
        ({"cores": 0}, "above 0, but got 0"),
        ({"gpus": -1}, "at least 0, but got -1"),
    ],
)
def test_wrong_numbers_are_errors(settings: dict[str, int], message: str) -> None:
    """At once, not when a cluster is there."""
    with pytest.raises(InvalidRequestError, match=message):
        Workers(**settings)
