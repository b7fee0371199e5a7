"""Rows of a query with its candidates, in files, and Ray for those tests that need it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, Any]


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Row]]:
    """Make rows with ids, whose documents are records with ids."""
    return _make_rows


def _make_rows(number: int, *, num_documents: int = 3) -> list[Row]:
    cities = ("berlin", "paris", "city", "museum", "river", "tower", "banana", "yellow")
    return [
        {
            "id": f"row-{i}",
            "query": f"what is the {cities[i % 8]} {i}",
            "documents": [
                {"id": f"{i}/{j}", "text": f"the {cities[(i + j) % 8]} is one of {i * j} people"}
                for j in range(num_documents)
            ],
            "weight": i / 7,
        }
        for i in range(number)
    ]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSONL, under a name."""

    def write(rows: list[Row], name: str = "lists.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as Parquet, in row groups of a size."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write(rows: list[Row], *, group_rows: int = 1000, name: str = "lists.parquet") -> Path:
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group_rows)
        return path

    return write


@pytest.fixture(scope="session")
def read_parts() -> Callable[[Path], list[Row]]:
    """Read the rows of all parts of a folder, in the order of their names."""
    return _read_parts


def _read_parts(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for part in sorted(folder.glob("part-*")):
        if part.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows += pq.read_table(part).to_pylist()
        else:
            rows += [json.loads(line) for line in part.read_text("utf-8").splitlines()]
    return rows


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray on this machine, which is said to have four cores: its own steps need some."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()
