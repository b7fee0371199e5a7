"""Ray: connecting to a cluster, and what its errors say in our words."""

from __future__ import annotations

import os
from typing import Any

from sie_core.distributed.workers import Pool, Workers
from sie_core.errors import MissingDependencyError, SIEConnectionError

try:
    import ray
    import ray.data
except ImportError as exc:
    _MISSING = f'more than one machine needs Ray ({exc}): pip install "sie-core[distributed,local]"'
    raise MissingDependencyError(_MISSING) from exc


def connect(address: str | None = None) -> None:
    """Connect this process to a cluster, unless it is connected.

    Args:
        address: `host:6379`, `ray://host:10001` or `auto`; None means `RAY_ADDRESS`, else the
            cluster that runs on this machine, else one of this machine alone, for this process.

    Raises:
        SIEConnectionError: It is not there.
    """
    if ray.is_initialized():
        return
    # Ray tells its makers how it is used, unless told not to; what is ranked here is nobody's else.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as exc:
        msg = f"the Ray cluster {address or os.environ.get('RAY_ADDRESS', '')} is not there: {exc}"
        raise SIEConnectionError(msg) from exc


def pool_of(workers: Workers, *, is_local: bool) -> Pool:
    """Fit workers into the nodes that are there; see `Workers.fitted`."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return workers.fitted(nodes, is_local=is_local)


def map_with(pool: Pool, worker: type, **arguments: Any) -> dict[str, Any]:
    """Return how `Dataset.map_batches` makes a pool of workers.

    The pool may shrink to one: where a node is gone for good, the work that waits for its workers
    goes to those that are left, once they have no other.

    Args:
        pool: How many, and what each has.
        worker: Their class.
        arguments: Of its constructor.
    """
    return {
        "compute": ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=pool.num,
            initial_size=pool.num_at_start,
            max_tasks_in_flight_per_actor=2,  # one at work, one that waits
        ),
        "fn_constructor_kwargs": arguments | {"num_threads": pool.num_threads},
        "num_cpus": pool.cores,
        "num_gpus": pool.gpus,
        "fn": worker,
    }


def use_threads(num_threads: int | None) -> None:
    """Let engines of this process use so many threads, unless they say otherwise."""
    if num_threads is not None:
        os.environ.setdefault("SIE_NUM_THREADS", str(num_threads))
