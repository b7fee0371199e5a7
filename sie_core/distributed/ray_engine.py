"""`RayEngine`: blocks of files, ranked by many workers on a Ray cluster."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sie_core.distributed.block import Block
from sie_core.distributed.cluster import connect, dataset_of, map_with, pool_of, use_threads
from sie_core.distributed.columns import Columns
from sie_core.distributed.job import run_block
from sie_core.distributed.list_ranker import ListRanker
from sie_core.distributed.receipt import Receipt
from sie_core.distributed.workers import Workers
from sie_core.errors import SIEError
from sie_core.reranker import Reranker


class RayEngine:
    """Rank blocks on a cluster. Ray gives them to workers, and again where one died.

    Files and the folder for the ranked rows must be seen by all nodes under the same path, as on a
    network file system; sie must be installed there too.

    Args:
        workers: How many, and what each has.
        address: Of the cluster; see `sie_core.distributed.cluster.connect`.
    """

    def __init__(self, workers: Workers | None = None, *, address: str | None = None) -> None:
        self._workers = workers or Workers()
        self._address = address

    def run(
        self, blocks: list[Block], out: Path, reranker: Reranker, columns: Columns
    ) -> Iterator[Receipt]:
        """See `Engine.run`."""
        connect(self._address)
        pool = pool_of(self._workers, is_local=reranker.base_url is None)
        tasks = dataset_of([{"block": json.dumps(block.to_dict())} for block in blocks])
        done = tasks.map_batches(
            batch_size=1,
            **map_with(
                pool,
                _BlockWorker,
                num_at_start=pool.num_at_start,
                reranker=reranker,
                columns=columns,
                out=out,
            ),
        )
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])  # noqa: S301  from a worker of ours
            yield Receipt(**json.loads(row["receipt"]))


class _BlockWorker:
    """One of the processes; the model stays loaded from block to block.

    What fails is returned, not raised: Ray would keep of an exception little but its text.
    """

    def __init__(
        self, *, reranker: Reranker, columns: Columns, out: Path, num_threads: int | None
    ) -> None:
        use_threads(num_threads)
        self._ranker = ListRanker(reranker, columns)
        self._columns = columns
        self._out = out

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        receipt, error = "", b""
        [block] = batch["block"]
        try:
            done = run_block(
                Block.of(json.loads(str(block))), self._out, self._ranker, self._columns
            )
            receipt = json.dumps(done.to_dict())
        except (SIEError, OSError) as exc:
            error = pickle.dumps(exc)
        return {"receipt": [receipt], "error": [error]}
