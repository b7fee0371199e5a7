"""`Workers`: how many processes rank at the same time, and what each of them has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sie_core.errors import InvalidRequestError, ResourceExhaustedError

CORES_PER_WORKER = 4
"""Without GPUs: more workers of fewer cores waste less than one that splits each small product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """What is asked for; None leaves it to what the cluster has.

    Attributes:
        num: Workers at most; they are made as long as there is room. None means as many as the
            nodes have room for when the work begins: name a number where a cluster grows.
        cores: CPU cores of each, which Ray then counts as taken; None means half of what a node has
            for each of its GPUs, which cuts texts into tokens; without GPUs `CORES_PER_WORKER`, or
            what the smallest node has.
        gpus: GPUs of each, a part of one too; None means 1 if any node has GPUs, else none.

    Raises:
        InvalidRequestError: A number is too small.
    """

    num: int | None = None
    cores: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.num is not None and self.num < 1:
            msg = f"the number of workers must be at least 1, but got {self.num}"
            raise InvalidRequestError(msg)
        if self.cores is not None and self.cores <= 0:
            msg = f"cores per worker must be above 0, but got {self.cores}"
            raise InvalidRequestError(msg)
        if self.gpus is not None and self.gpus < 0:
            msg = f"GPUs per worker must be at least 0, but got {self.gpus}"
            raise InvalidRequestError(msg)

    def fitted(self, nodes: Sequence[Mapping[str, float]], *, is_local: bool = True) -> Pool:
        """Say what is left open, for a cluster's nodes.

        Args:
            nodes: Of each, its resources by Ray's names: `CPU`, `GPU`.
            is_local: Whether the model runs in the workers, and not on a server that they ask.

        Raises:
            ResourceExhaustedError: No node has room for a worker.
        """
        gpus = self.gpus
        if gpus is None:
            gpus = 1.0 if is_local and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        cores = self.cores
        if cores is None:
            cores = _fitting_cores(nodes, gpus) if is_local else 1.0
        room = sum(
            int(min(node.get("CPU", 0) // cores, node.get("GPU", 0) // gpus if gpus else 1e9))
            for node in nodes
        )
        if self.num is None and not room:
            msg = (
                f"no node of the cluster has {cores:g} cores{f' and {gpus:g} GPUs' if gpus else ''}"
                " for a worker: ask for fewer, or name the number of workers if nodes are to come"
            )
            raise ResourceExhaustedError(msg)
        return Pool(num=self.num or room, num_now=room, cores=cores, gpus=gpus)


def _fitting_cores(nodes: Sequence[Mapping[str, float]], gpus: float) -> float:
    if not gpus:
        with_cores = [node["CPU"] for node in nodes if node.get("CPU", 0) >= 1]
        return min([CORES_PER_WORKER, *with_cores])
    shares = [
        node.get("CPU", 0) * gpus / node["GPU"] / 2 for node in nodes if node.get("GPU", 0) >= gpus
    ]
    return float(max(1, int(min(shares, default=1))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Workers as they are made.

    Attributes:
        num: At most.
        num_now: Of which there is room for so many now, without more nodes.
        cores: Of each.
        gpus: Of each.
    """

    num: int
    num_now: int
    cores: float
    gpus: float

    @property
    def num_threads(self) -> int | None:
        """Threads of an engine on the CPU; None beside a GPU, where it is the default."""
        return None if self.gpus else max(1, int(self.cores))

    @property
    def num_at_start(self) -> int:
        """Workers made at once."""
        return max(1, min(self.num, self.num_now))
