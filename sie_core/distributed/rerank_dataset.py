"""`rerank_dataset`: the ranking of every row's candidates, as a step of a Ray Data pipeline."""

from __future__ import annotations

from typing import Any

from sie_core.distributed.cluster import map_with, pool_of, use_threads
from sie_core.distributed.columns import Columns
from sie_core.distributed.list_ranker import ListRanker
from sie_core.distributed.parquet import TableRows, is_arrow, ranking_type
from sie_core.distributed.workers import Workers
from sie_core.errors import DatasetError
from sie_core.reranker import Reranker

_SPARE_CORES = 2
"""Of each node, for steps that read, write and leave out what is done: Ray's own workers need a
core each, and if these here had all of them, both would wait for ever."""

ROWS_PER_BATCH = 64
"""Rows handed to a worker at once: with some dozens of candidates each, many full batches."""


def rerank_dataset(
    ds: Any,
    reranker: Reranker | None = None,
    *,
    columns: Columns | None = None,
    workers: Workers | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> Any:
    """Add to every row of a Ray dataset the ranking of its candidates.

    Nothing is computed yet: rows stream through the workers when the result is read or written,
    and no faster than that. Each worker holds the model; where one dies, Ray gives what it had to
    another, and every row still comes out once. To continue a run that was stopped, give Ray's
    own `DataContext.checkpoint_config` a column of ids; `rerank_files` needs none.

    Args:
        ds: A `ray.data.Dataset` whose rows are a query and its candidates.
        reranker: Scores, and cuts; None is one with all defaults.
        columns: What is where in a row; None means the names that `Columns` has.
        workers: How many, and what each has.
        rows_per_batch: Rows handed to a worker at once.

    Returns:
        The dataset with three columns more: see `Columns` and `RankedRow`.

    Raises:
        InvalidRequestError: The dataset has not the columns.
        DatasetError: It has no rows.
        ResourceExhaustedError: No node has room for a worker.
    """
    reranker = reranker or Reranker()
    columns = columns or Columns()
    schema = ds.schema()
    if schema is None:
        msg = "the dataset has no rows"
        raise DatasetError(msg)
    columns.check(schema.names, "the dataset")
    if is_arrow(schema.base_schema):  # that of pandas does not tell what lists hold
        ranking_type(schema.base_schema, columns)
    pool = pool_of(
        workers or Workers(),
        is_local=reranker.base_url is None,
        num_spare_cores=_SPARE_CORES,
    )
    return ds.map_batches(
        batch_size=rows_per_batch,
        batch_format="pyarrow",
        **map_with(pool, _TableWorker, num_at_start=1, reranker=reranker, columns=columns),
    )


class _TableWorker:
    """One of the processes; the model stays loaded from batch to batch."""

    def __init__(self, *, reranker: Reranker, columns: Columns, num_threads: int | None) -> None:
        use_threads(num_threads)
        self._ranker = ListRanker(reranker, columns)
        self._columns = columns

    def __call__(self, table: Any) -> Any:
        rows = TableRows(table, self._columns)
        return rows.with_ranked(self._ranker.rank(rows.queries, rows.candidates))
