"""Reranking files of lists on more than one machine: `python benchmarks/scale.py`.

A Ray cluster of two nodes on this machine, each node pinned to a core of its own.

Proof: 50,000 rows are ranked by one process, and by the cluster, where a worker is killed when a
quarter is done, and a node, with its worker, when a half is. Counted are rows that are missing or
there twice, and how far scores are from those of the one process.

Efficiency: the same rows ranked by one worker on one node, and by two workers on two nodes: rows a
second, from the first block that is done to the last but those at the end, when some workers have
nothing left to do; and of the whole call, with the start of the workers. 1 would be no loss. The
part of a row's time that does not grow with workers is what the driver does; its processor time is
counted for the estimate in docs/scale.md.

Beside the model: what reading and writing a row and cutting its texts into tokens takes of one
core, for rows of 50 candidates of 100 words, as they come out of a first stage.

Needs the extra distributed, two cores, and nothing else running on them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster
from report import Report, add_arguments
from tokenizers import Tokenizer

from sie_core import DEFAULT_MODEL, Reranker
from sie_core.distributed.columns import Columns
from sie_core.distributed.job import format_of
from sie_core.distributed.ranked_row import RankedRow
from sie_core.distributed.ray_engine import RayEngine
from sie_core.distributed.rerank_files import rerank_files
from sie_core.distributed.workers import Workers
from sie_core.models.sources import resolve
from sie_core.settings import SourceSettings

NUM_ROWS = 50_000
NUM_DOCUMENTS = 2
NUM_WORDS = 12
WORDS = (files("sie_core.evaluation") / "words.txt").read_text("utf-8").split()
NAME = "tokenizer.json"
_STORE_BYTES = 100_000_000
_WORKER = b"ray::MapWorker(MapBatches(_BlockWorker))"


@dataclass(kw_only=True)
class Progress:
    """When rows were done, and what is to happen after how many of them.

    Attributes:
        happenings: Each once, after that many rows.
    """

    happenings: list[tuple[int, Callable[[], str]]] = field(default_factory=list)
    times: list[tuple[float, int]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def advance(self, num_rows: int) -> None:
        """Count rows as done."""
        before = self.times[-1][1] if self.times else 0
        self.times.append((time.perf_counter(), before + num_rows))
        while self.happenings and before + num_rows >= self.happenings[0][0]:
            after, happen = self.happenings.pop(0)
            self.done.append(f"after {after:,} rows: {happen()}")

    def rows_per_second(self, *, skip_blocks: int) -> float:
        """Return the pace between the first blocks and the last ones."""
        (begin, first), (end, last) = self.times[skip_blocks], self.times[-1 - skip_blocks]
        return (last - first) / (end - begin)


@contextmanager
def cluster_of(num_nodes: int) -> Iterator[Cluster]:
    """Start nodes of one core each; what they start stays on that core."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster()
    try:
        for number in range(num_nodes):
            os.sched_setaffinity(0, {cores[number % len(cores)]})
            cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES, include_dashboard=False)
        os.sched_setaffinity(0, cores)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        os.sched_setaffinity(0, cores)
        ray.shutdown()
        cluster.shutdown()


def write_rows(path: Path, num_rows: int) -> None:
    """Write lists of made-up sentences, the same every time."""
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(num_rows):
            row = {
                "id": f"row-{number}",
                "query": sentence(rng, 6),
                "documents": [sentence(rng, NUM_WORDS) for _ in range(NUM_DOCUMENTS)],
            }
            stream.write(json.dumps(row) + "\n")


def read_scores(folder: Path) -> tuple[dict[str, list[float]], int]:
    """Return each row's scores in the order of its documents, and how many rows there are."""
    scores: dict[str, list[float]] = {}
    num_rows = 0
    for part in sorted(folder.glob("part-*.jsonl")):
        for line in part.read_text("utf-8").splitlines():
            row = json.loads(line)
            num_rows += 1
            by_place = {entry["index"]: entry["score"] for entry in row["ranking"]}
            scores[row["id"]] = [by_place[place] for place in sorted(by_place)]
    return scores, num_rows


def compared(expected: dict[str, list[float]], folder: Path, num_rows: int) -> dict[str, Any]:
    """Hold a folder against the scores of one process."""
    found, num_found = read_scores(folder)
    differences = [
        abs(one - other)
        for name, scores in found.items()
        for one, other in zip(scores, expected[name], strict=True)
    ]
    return {
        "rows": num_found,
        "missing": num_rows - len(found),
        "twice": num_found - len(found),
        "scores": len(differences),
        "other scores": sum(difference > 0 for difference in differences),
        "largest difference": max(differences),
    }


def kill_worker() -> str:
    """Kill a worker's process."""
    pids = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if _command(folder).startswith(_WORKER)
    ]
    os.kill(pids[0], signal.SIGKILL)
    return f"one of {len(pids)} workers killed"


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


def ranked(
    source: Path, out: Path, arguments: argparse.Namespace, num_workers: int | None, **told: Any
) -> tuple[float, float]:
    """Rank the rows; return the seconds of the call, and of this process's processor time."""
    engine = None if num_workers is None else RayEngine(Workers(num=num_workers, cores=1))
    began, used = time.perf_counter(), _processor_seconds()
    with Reranker(arguments.model, num_threads=1) as reranker:
        rerank_files(source, out, reranker, rows_per_block=arguments.block, engine=engine, **told)
    return time.perf_counter() - began, _processor_seconds() - used


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def prove(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Kill a worker and a node in the middle of all rows."""
    num_rows = arguments.rows
    source = folder / "lists.jsonl"
    write_rows(source, num_rows)
    alone, _ = ranked(source, folder / "alone", arguments, None)
    expected, _ = read_scores(folder / "alone")
    with cluster_of(2) as cluster:

        def remove_node() -> str:
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            return "a node killed"

        progress = Progress(happenings=[(num_rows // 4, kill_worker), (num_rows // 2, remove_node)])
        seconds, _ = ranked(source, folder / "cluster", arguments, 2, on_rows=progress.advance)
    row = compared(expected, folder / "cluster", num_rows)
    report.add("a worker and a node killed", [row])
    for line in progress.done:
        print(line)
    print(f"{seconds:,.0f} s; one process on one core {alone:,.0f} s")
    report.note(happened=progress.done, seconds=seconds, seconds_alone=alone)


def measure(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Rank the same rows with one worker and with two, in turns."""
    source = folder / "some.jsonl"
    write_rows(source, arguments.measured_rows)
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        paces: dict[int, float] = {}
        wholes: dict[int, float] = {}
        drivers: dict[int, float] = {}
        for num_workers in (1, 2) if number % 2 else (2, 1):
            with cluster_of(num_workers):
                progress = Progress()
                wholes[num_workers], drivers[num_workers] = ranked(
                    source,
                    folder / f"round-{number}-{num_workers}",
                    arguments,
                    num_workers,
                    on_rows=progress.advance,
                )
            paces[num_workers] = progress.rows_per_second(skip_blocks=2 * num_workers)
        rounds.append(
            {
                "round": number + 1,
                "rows/s, 1 worker": paces[1],
                "2 workers": paces[2],
                "efficiency": paces[2] / (2 * paces[1]),
                "of the whole call": wholes[1] / (2 * wholes[2]),
                "driver's ms a block": 1000
                * drivers[2]
                / (arguments.measured_rows / arguments.block),
            }
        )
    report.add("efficiency from 1 to 2 workers of a core each", rounds)


def beside_the_model(folder: Path, report: Report, *, num_rows: int = 200) -> None:
    """Measure what a worker does with a row before and after it is scored."""
    rng = random.Random(2)
    rows = [
        {"id": number, "query": sentence(rng, 8), "documents": [sentence(rng, 100)] * 50}
        for number in range(num_rows)
    ]
    entries = [{"index": place, "score": rng.random()} for place in range(50)]
    ranked_rows = [RankedRow(ranking=entries, status="complete")] * num_rows
    lines = folder / "wide.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = folder / "wide.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    measured = []
    for path in (lines, table):
        formats = format_of(path)
        [block] = formats.blocks(path, num_rows, Columns())
        seconds = best_of(
            lambda formats=formats, block=block, path=path: formats.read(block, Columns()).write(
                path.with_suffix(".out"), ranked_rows
            )
        )
        measured.append({"what": f"read and write, {path.suffix[1:]}", "ms a row": seconds})
    tokenizer = Tokenizer.from_file(str(resolve(DEFAULT_MODEL, SourceSettings()).folder / NAME))
    texts = [sentence(rng, 100) for _ in range(50)]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    seconds = best_of(lambda: [tokenizer.encode_batch_fast(texts) for _ in range(num_rows)])
    measured.append({"what": "tokens", "ms a row": seconds})
    for row in measured:
        row["ms a row"] *= 1000 / num_rows
        row["rows/s of a core"] = 1000 / row["ms a row"]
    num_tokens = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts))
    report.add(f"beside the model: rows of 50 candidates, {num_tokens:,} tokens", measured)


def sentence(rng: random.Random, num_words: int) -> str:
    """Draw words."""
    return " ".join(rng.choices(WORDS, k=num_words))


def best_of(work: Callable[[], Any], *, rounds: int = 5) -> float:
    """Return the seconds of the fastest of some rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main(given: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="of the proof")
    parser.add_argument("--block", type=int, default=250, help="rows per block")
    parser.add_argument("--measured-rows", type=int, default=20_000, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("proof", "efficiency", "beside"))
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.rows, arguments.measured_rows, arguments.rounds = 5000, 5000, 1
    report = Report(
        "scale",
        rows=arguments.rows,
        documents=NUM_DOCUMENTS,
        words=NUM_WORDS,
        block=arguments.block,
        model=arguments.model,
    )
    folder = Path(tempfile.mkdtemp(prefix="sie-scale-"))
    try:
        if arguments.only in (None, "beside"):
            beside_the_model(folder, report)
        if arguments.only in (None, "efficiency"):
            measure(folder, report, arguments)
        if arguments.only in (None, "proof"):
            prove(folder, report, arguments)
    finally:
        shutil.rmtree(folder)
    report.save(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
