"""Ray: connecting to a cluster, and what its errors say in our words."""

from __future__ import annotations

import logging
import os
from typing import Any

from sie_core.distributed.workers import Pool, Workers
from sie_core.errors import MissingDependencyError, SIEConnectionError

try:
    import ray
except ImportError as exc:
    _MISSING = f'more than one machine needs Ray ({exc}): pip install "sie-core[distributed,local]"'
    raise MissingDependencyError(_MISSING, name=exc.name) from exc


def connect(address: str | None = None, *, shows_log: bool = False) -> bool:
    """Connect this process to a cluster, unless it is connected.

    Args:
        address: `host:6379`, or `local` for one of this machine that ends with this process; None
            means `RAY_ADDRESS`, else the cluster that runs on this machine, else `local`.
        shows_log: Whether what workers log is written by this process too.

    Returns:
        Whether a cluster of this machine was started, which never grows.

    Raises:
        SIEConnectionError: It is not there.
    """
    if ray.is_initialized():
        return False
    # Ray tells its makers how it is used, unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {
        "logging_level": logging.WARNING if shows_log else logging.ERROR,
        "configure_logging": False,
        "log_to_driver": shows_log,
    }
    if address is None:
        try:
            ray.init("auto", **options)
        except ConnectionError:  # none runs here
            address = "local"
        else:
            return False
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as exc:
        msg = f"the Ray cluster {address} is not there: {exc}"
        raise SIEConnectionError(msg) from exc
    return address == "local"


def pool_of(workers: Workers, *, is_local: bool, num_spare_cores: int = 0) -> Pool:
    """Fit workers into the nodes that are there; see `Workers.fitted`.

    Args:
        workers: What is asked for.
        is_local: Whether the model runs in the workers.
        num_spare_cores: Of each node, left to others as long as one is left for a worker.
    """
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        cores = node.get("CPU", 0)
        node["CPU"] = max(min(cores, 1), cores - num_spare_cores)
    return workers.fitted(nodes, is_local=is_local)


def dataset_of(rows: list[dict[str, Any]]) -> Any:
    """Make a dataset of few and small rows, each to be worked on by itself.

    Ray's own bars and plan are left out: what is one row to it is many to whoever looks on.
    """
    import ray.data  # brings pandas, which serving has no use for

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def map_with(pool: Pool, worker: type, *, num_at_start: int, **arguments: Any) -> dict[str, Any]:
    """Return how `Dataset.map_batches` makes a pool of workers.

    The pool may shrink to one: where a node is gone for good, the work that waits for its workers
    goes to those that are left, once they have no other.

    Args:
        pool: How many, and what each has.
        worker: Their class.
        num_at_start: Made at once; more when there is enough to do.
        arguments: Of its constructor.
    """
    import ray.data

    return {
        "compute": ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=pool.num,
            initial_size=num_at_start,
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
