"""Workers of a Ray cluster of this machine. What it costs to start makes these few."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sie_core import Reranker
from sie_core.distributed.columns import Columns
from sie_core.distributed.rerank_files import rerank_files
from sie_core.distributed.workers import Workers
from sie_core.errors import (
    DatasetError,
    InvalidRequestError,
    ModelNotFoundError,
    ResourceExhaustedError,
)

ray = pytest.importorskip("ray")

from sie_core.distributed.ray_engine import RayEngine  # noqa: E402  after what it needs
from sie_core.distributed.rerank_dataset import rerank_dataset  # noqa: E402

MakeRows = Callable[..., list[dict[str, Any]]]
ReadParts = Callable[[Path], list[dict[str, Any]]]

pytestmark = [
    pytest.mark.usefixtures("ray_here"),
    # Ray's own, which it neither closes nor joins at its end.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


@pytest.fixture(scope="module")
def reranker(tiny_bert: Path) -> Reranker:
    """Of a tiny model."""
    return Reranker(str(tiny_bert))


@pytest.fixture
def _plain_context() -> Iterator[None]:
    """Leave Ray Data's settings as they were."""
    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config
    yield
    context.checkpoint_config = before


def scores_of(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return each row's scores by the candidates' places."""
    return {row["id"]: {it["index"]: it["score"] for it in row["ranking"]} for row in rows}


def assert_same_scores(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Batches are filled as work comes, which moves the last bits of a float32."""
    found, expected = scores_of(rows), scores_of(others)
    assert found.keys() == expected.keys()
    for key, scores in expected.items():
        assert found[key] == pytest.approx(scores, abs=1e-5)


def test_files_are_ranked_as_in_one_process_though_a_worker_dies(
    *,
    make_rows: MakeRows,
    read_parts: ReadParts,
    reranker: Reranker,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Every row once, with the same scores; the dead worker's blocks go to another."""
    source = write_jsonl(make_rows(600))
    rerank_files(source, tmp_path / "one", reranker, rows_per_block=20)
    killed: list[int] = []

    def kill_one(_: int) -> None:
        if not killed:
            killed.append(worker_pids()[0])
            os.kill(killed[0], signal.SIGKILL)

    outcome = rerank_files(
        source,
        tmp_path / "two",
        reranker,
        rows_per_block=20,
        engine=RayEngine(Workers(num=2, cores=1)),
        on_rows=kill_one,
    )
    rows = read_parts(tmp_path / "two")
    assert len(killed) == 1
    assert (outcome.total.num_rows, outcome.total.num_scored) == (600, 1800)
    assert [row["id"] for row in rows] == [f"row-{i}" for i in range(600)]
    assert_same_scores(rows, read_parts(tmp_path / "one"))
    assert not list((tmp_path / "two").glob(".*"))


def worker_pids() -> list[int]:
    """Processes of this machine that are workers of a pool of Ray Data's."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::MapWorker(MapBatches(_BlockWorker))"):
            pids.append(int(folder.name))
    return pids


def test_a_worker_s_error_is_ours(
    *, make_rows: MakeRows, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """As it would be raised in one process, and without a worker's traceback around it."""
    with pytest.raises(ModelNotFoundError, match="none"):
        rerank_files(
            write_jsonl(make_rows(3)),
            tmp_path / "out",
            Reranker(str(tmp_path / "none")),
            engine=RayEngine(Workers(num=1, cores=1)),
        )


def test_workers_that_no_node_has_room_for_are_an_error(
    *, make_rows: MakeRows, reranker: Reranker, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Ray would wait for a larger node."""
    with pytest.raises(ResourceExhaustedError, match="no node of the cluster has 64 cores"):
        rerank_files(
            write_jsonl(make_rows(3)),
            tmp_path / "out",
            reranker,
            engine=RayEngine(Workers(cores=64)),
        )


def test_a_dataset_is_ranked(
    *, make_rows: MakeRows, reranker: Reranker, write_parquet: Callable[..., Path], tmp_path: Path
) -> None:
    """Columns stay, rows come out once, and scores are those of one process."""
    import pyarrow.parquet as pq

    rows = make_rows(90)
    source = write_parquet(rows, group_rows=30)
    rerank_files(source, tmp_path / "one", reranker)
    ray.data.DataContext.get_current().enable_progress_bars = False
    read = ray.data.read_parquet(str(source))
    found = rerank_dataset(read, reranker, rows_per_batch=16).take_all()
    assert sorted(row["id"] for row in found) == sorted(row["id"] for row in rows)
    by_id = {row["id"]: row for row in found}
    assert all(by_id[row["id"]]["documents"] == row["documents"] for row in rows)
    assert {row["ranking_status"] for row in found} == {"complete"}
    assert_same_scores(found, pq.read_table(next((tmp_path / "one").glob("part-*"))).to_pylist())


@pytest.mark.slow
@pytest.mark.usefixtures("_plain_context")
def test_ray_s_own_checkpoint_continues_a_dataset(
    *, make_rows: MakeRows, reranker: Reranker, write_parquet: Callable[..., Path], tmp_path: Path
) -> None:
    """It leaves out what was written."""
    import pyarrow.parquet as pq
    from ray.data.checkpoint import CheckpointConfig

    source = str(write_parquet(make_rows(90), group_rows=30))
    out = tmp_path / "ranked"
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=str(tmp_path / "checkpoint"),
        delete_checkpoint_on_success=False,
    )
    rerank_dataset(ray.data.read_parquet(source), reranker).write_parquet(str(out))
    files = set(out.rglob("*.parquet"))
    rerank_dataset(ray.data.read_parquet(source), reranker).write_parquet(str(out))
    assert pq.read_table(out).num_rows == 90
    assert files <= set(out.rglob("*.parquet"))


def test_a_dataset_without_the_columns_is_an_error(reranker: Reranker) -> None:
    """Before anything runs."""
    with pytest.raises(InvalidRequestError, match="the dataset has no column 'documents'"):
        rerank_dataset(ray.data.from_items([{"query": "q", "texts": ["a"]}]), reranker)
    with pytest.raises(InvalidRequestError, match="have no id 'key'"):
        rerank_dataset(
            ray.data.from_items([{"query": "q", "documents": ["a"]}]),
            reranker,
            columns=Columns(id="key"),
        )
    with pytest.raises(DatasetError, match="the dataset has no rows"):
        rerank_dataset(ray.data.from_items([]), reranker)


def test_a_dataset_of_pandas_is_ranked_too(make_rows: MakeRows, reranker: Reranker) -> None:
    """What its lists hold is seen only when they are read."""
    pandas = pytest.importorskip("pandas")
    ray.data.DataContext.get_current().enable_progress_bars = False
    ds = ray.data.from_pandas(pandas.DataFrame(make_rows(5)))
    found = rerank_dataset(ds, reranker, columns=Columns(id="id")).take_all()
    assert sorted(row["id"] for row in found) == [f"row-{i}" for i in range(5)]
    assert all(len(row["ranking"]) == 3 for row in found)
