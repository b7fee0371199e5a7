"""Our server under load against the engine itself: `python benchmarks/server_load.py`.

As many callers ask the server, a process of its own, and the engine of this process, directly, in
turn, never both: 64 callers of 20 documents. Each reply is checked against the scores that each
document gets alone. The memory of the server is read between the rounds. The callers share the
cores with the server; whatever they cost is on its side of the scales.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
from callers import CallError, Round, run_callers, score_request
from report import Report, add_arguments
from served import Served, serve_ours
from workload import Corpus, Workload, mixed_lengths, real_model_folder

from sie_core.local import LocalClient
from sie_core.types import Item

MODEL = "bench/model"
NUM_CALLS = 32
"""Different calls, made round and round."""

TOLERANCE = {"exact": 1e-4, "fast": 0.05}


class Expected:
    """What each call's documents score alone, and how far replies were from it."""

    def __init__(self, client: LocalClient, workloads: list[Workload]) -> None:
        self._scores = [
            [
                client.score(MODEL, Item(text=it.query), [Item(text=document)])["scores"][0][
                    "score"
                ]
                for document in it.documents
            ]
            for it in workloads
        ]
        self.tolerance = TOLERANCE["exact" if client.describe().startswith("exact") else "fast"]
        self.num_checked = 0
        self.largest_difference = 0.0
        self._lock = threading.Lock()

    def check(self, number: int, entries: list[dict[str, Any]]) -> None:
        """Hold a reply against the scores of each document alone."""
        expected = self._scores[number]
        found = {entry["item_id"]: entry["score"] for entry in entries}
        differences = [abs(found[f"d{i}"] - score) for i, score in enumerate(expected)]
        if len(entries) != len(expected) or max(differences) > self.tolerance:
            msg = f"call {number} got {found}, but alone its documents score {expected}"
            raise CallError(msg)
        with self._lock:
            self.num_checked += 1
            self.largest_difference = max(self.largest_difference, *differences)


def ask_server(
    served: Served, workloads: list[Workload], expected: Expected, callers: int, seconds: float
) -> Round:
    """Let callers ask the server."""
    requests = [
        score_request(served.url, MODEL, it.query, it.documents, content_format="msgpack")
        for it in workloads
    ]
    return run_callers(
        served.url,
        requests,
        num_callers=callers,
        seconds=seconds,
        check=lambda number, body: expected.check(number, msgpack.unpackb(body)["scores"]),
    )


def ask_engine(
    client: LocalClient, workloads: list[Workload], expected: Expected, callers: int, seconds: float
) -> Round:
    """Let as many threads call the engine."""
    seen = Round()
    begun = time.perf_counter()

    def caller(first: int) -> None:
        number = first
        while time.perf_counter() < begun + seconds:
            chosen = workloads[number % len(workloads)]
            began = time.perf_counter()
            items = [Item(id=f"d{i}", text=text) for i, text in enumerate(chosen.documents)]
            result = client.score(MODEL, Item(text=chosen.query), items)
            seen.milliseconds.append(1e3 * (time.perf_counter() - began))
            expected.check(number % len(workloads), [dict(entry) for entry in result["scores"]])
            number += callers

    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(caller, i) for i in range(callers)]:
            done.result()
    seen.seconds = time.perf_counter() - begun
    return seen


def main() -> None:
    """Print a row per round, and what they amount to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of a round, for each of the two"
    )
    arguments = parser.parse_args()
    if not Path("/proc/self/statm").exists():
        sys.exit("resident memory is read from /proc, which this system does not have")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 3.0
    folder = real_model_folder()
    corpus, rng = Corpus.load(), random.Random(5)
    workloads = [
        corpus.of_lengths(mixed_lengths(rng, arguments.documents), f"load {number}")
        for number in range(NUM_CALLS)
    ]
    report = Report("server_load", mode=arguments.mode, callers=arguments.callers)
    client = LocalClient(mode=arguments.mode)
    client.swap(MODEL, str(folder))  # by the name that it has on the server
    expected = Expected(client, workloads)
    rows: list[dict[str, Any]] = []
    terms = (workloads, expected, arguments.callers)
    with serve_ours(f"{MODEL}={folder}", "--mode", arguments.mode) as served:
        for number in range(arguments.rounds + 1):
            seconds = arguments.seconds if number else min(3.0, arguments.seconds)
            sides: dict[str, Round] = {}
            for side in ("server", "engine")[:: -1 if number % 2 else 1]:
                if side == "server":
                    sides[side] = ask_server(served, *terms, seconds)
                else:
                    sides[side] = ask_engine(client, *terms, seconds)
            if not number:  # the first round warms up
                continue
            ours, engine = sides["server"], sides["engine"]
            rows.append(
                {
                    "round": number,
                    "server calls/s": ours.calls_per_second,
                    "engine calls/s": engine.calls_per_second,
                    "server / engine": ours.calls_per_second / engine.calls_per_second,
                    "server p50 ms": ours.p50,
                    "engine p50 ms": engine.p50,
                    "callers' cpu": ours.generator_seconds / ours.seconds,
                    "server MiB": served.resident_mib,
                }
            )
            print(f"round {number}: {rows[-1]['server / engine']:.3f} of the engine", flush=True)
    report.add(f"{arguments.callers} callers of {arguments.documents} documents", rows)
    ratio = statistics.median(row["server / engine"] for row in rows)
    growth = rows[-1]["server MiB"] / rows[0]["server MiB"]
    print(
        f"\nserver / engine, median: {ratio:.3f}; memory, last round / first: {growth:.3f}\n"
        f"{expected.num_checked} replies checked, none lost; largest difference from solo scores "
        f"{expected.largest_difference:.1e} (allowed {expected.tolerance})"
    )
    report.note(
        ratio=ratio,
        memory_growth=growth,
        num_checked=expected.num_checked,
        largest_difference=expected.largest_difference,
    )
    report.save(arguments.json)


if __name__ == "__main__":
    main()
