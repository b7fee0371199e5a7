"""How the engine's time grows: `python benchmarks/scaling.py`.

With the number of candidates, 10 to 1,000: milliseconds per thousand tokens, and the slope of the
line through all counts against the 100-candidate figure. With the number of callers, 1 to 32
threads of 20 candidates each: throughput against one large call, latency against the fair share,
which is the time that one large call takes for everybody's work. And for documents seen before:
what making pairs of token ids takes, all that comes before the forward pass.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from agreement import Agreement
from race import Ours, race, reference
from report import Report, add_arguments
from workload import MAX_LENGTH, Corpus, Workload, checkpoint

from sie_core.local.tokenization import PairTokenizer

COUNTS = (10, 20, 50, 100, 200, 500, 1000)
CALLERS = (1, 2, 4, 8, 16, 32)
BASE_COUNT = 100
CALLER_DOCUMENTS = 20
_MS_PER_SECOND = 1000


def candidate_rows(
    ours: Ours, corpus: Corpus, counts: Sequence[int], num_rounds: int
) -> list[dict[str, Any]]:
    """Time calls of different sizes in turn."""
    times: dict[int, list[float]] = {count: [] for count in counts}
    tokens: dict[int, list[int]] = {count: [] for count in counts}
    for number, count in itertools.product(range(num_rounds), counts):
        workload = corpus.mixed(number, count)
        times[count].append(race([ours], [workload])[ours.name].times[0])
        tokens[count].append(workload.num_tokens)
    per_thousand = {
        count: statistics.median(
            _per_thousand(ms, num) for ms, num in zip(times[count], tokens[count], strict=True)
        )
        for count in counts
    }
    return [
        {
            "candidates": count,
            "tokens": round(statistics.mean(tokens[count])),
            "median ms": statistics.median(times[count]),
            "ms per 1000 tokens": per_thousand[count],
            "against 100 candidates": per_thousand[count] / per_thousand[BASE_COUNT],
        }
        for count in counts
    ]


def _per_thousand(ms: float, num_tokens: int) -> float:
    return 1000 * ms / num_tokens


def slope_against_base(rows: Sequence[dict[str, Any]]) -> float:
    """Return the slope of milliseconds over tokens, as a multiple of the 100-candidate figure."""
    slope, _ = np.polyfit([row["tokens"] for row in rows], [row["median ms"] for row in rows], 1)
    base = next(row for row in rows if row["candidates"] == BASE_COUNT)
    return float(slope / (base["median ms"] / base["tokens"]))


def caller_rows(
    ours: Ours, corpus: Corpus, callers: Sequence[int], num_calls: int
) -> list[dict[str, Any]]:
    """Let threads call at once, and one call carry the same work before and after."""
    rows = []
    for num_callers in callers:
        per_caller = max(2, num_calls // num_callers)
        drawn = [
            [
                corpus.mixed(1_000 * (1 + num_callers) + caller * per_caller + i, CALLER_DOCUMENTS)
                for i in range(per_caller)
            ]
            for caller in range(num_callers)
        ]
        num_documents = num_callers * CALLER_DOCUMENTS
        large = [corpus.mixed(50_000 + num_callers + i, num_documents) for i in range(4)]
        before = [ours.run(workload).ms / workload.num_tokens for workload in large[:2]]
        seconds, latencies, difference = call_at_once(ours, drawn)
        after = [ours.run(workload).ms / workload.num_tokens for workload in large[2:]]
        large_ms_per_token = statistics.median([*before, *after])
        num_tokens = sum(workload.num_tokens for calls in drawn for workload in calls)
        mean_tokens = num_tokens / (num_callers * per_caller)
        fair_ms = num_callers * mean_tokens * large_ms_per_token
        p50, p95 = np.percentile(latencies, [50, 95])
        rows.append(
            {
                "callers": num_callers,
                "calls": num_callers * per_caller,
                "max difference to solo": difference,
                "tokens/s": num_tokens / seconds,
                "tokens/s, one large call": _MS_PER_SECOND / large_ms_per_token,
                "throughput": num_tokens / seconds * large_ms_per_token / _MS_PER_SECOND,
                "p50 ms": float(p50),
                "p95 ms": float(p95),
                "fair ms": fair_ms,
                "p50 / fair": float(p50) / fair_ms,
                "p95 / fair": float(p95) / fair_ms,
            }
        )
    return rows


def call_at_once(
    ours: Ours, drawn: Sequence[Sequence[Workload]]
) -> tuple[float, list[float], float]:
    """Let each thread make its calls one after another.

    Returns:
        Seconds from the first call to the last answer, each call's milliseconds, and the largest
        difference between the scores of a thread's first call and those of the same call alone.
    """
    start = threading.Barrier(len(drawn) + 1)

    def call(workloads: Sequence[Workload]) -> list[Any]:
        start.wait()
        return [ours.run(workload) for workload in workloads]

    with ThreadPoolExecutor(len(drawn)) as pool:
        futures = [pool.submit(call, workloads) for workloads in drawn]
        start.wait()
        started = time.perf_counter()
        laps = [future.result() for future in futures]
        seconds = time.perf_counter() - started
    differences = [
        Agreement.of(own[0].scores, ours.run(workloads[0]).scores).max_difference
        for own, workloads in zip(laps[:4], drawn[:4], strict=True)
    ]
    return seconds, [lap.ms for own in laps for lap in own], max(differences)


def repeat_rows(ours: Ours, corpus: Corpus, num_rounds: int) -> list[dict[str, Any]]:
    """Time documents never seen, then the same ones under another query."""
    tokenizer = PairTokenizer.load(Path(ours.model))
    encoding: dict[str, list[float]] = {"fresh": [], "again": []}
    calls: dict[str, list[float]] = {"fresh": [], "again": []}
    for number in range(70_000, 70_000 + num_rounds):
        workload = corpus.mixed(number)
        other = corpus.mixed(number + num_rounds)
        repeated = Workload(other.query, workload.documents, workload.lengths, other.query_length)
        for name, query in (("fresh", workload.query), ("again", other.query)):
            started = time.perf_counter()
            tokenizer.encode_pairs(query, workload.documents, MAX_LENGTH)
            encoding[name].append(_MS_PER_SECOND * (time.perf_counter() - started))
        calls["fresh"].append(ours.run(workload).ms)
        calls["again"].append(ours.run(repeated).ms)
    return [
        {
            "documents": name,
            "making pairs, ms": statistics.median(times),
            "against fresh": statistics.median(times) / statistics.median(encoding["fresh"]),
            "whole call ms": statistics.median(calls[name]),
        }
        for name, times in encoding.items()
    ]


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--model", default="MiniLM-L6")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--rounds", type=int, help="default 7, or 3 with --quick")
    parser.add_argument("--calls", type=int, help="by all callers; default 128, or 64 with --quick")
    arguments = parser.parse_args()
    num_rounds = arguments.rounds or (3 if arguments.quick else 7)
    num_calls = arguments.calls or (64 if arguments.quick else 128)
    corpus, folder = Corpus.load(), checkpoint(arguments.model)
    report = Report("scaling", model=arguments.model, mode=arguments.mode)
    ours = Ours(arguments.mode, folder)
    warm = corpus.mixed(-1)
    with reference(folder) as truth:
        agreement = Agreement.of(ours.run(warm).scores, truth(warm).scores)
    print(
        f"{ours.name} against transformers float32: max difference "
        f"{agreement.max_difference:.2g}, Kendall tau {agreement.kendall_tau:.4f}"
    )
    rows = candidate_rows(ours, corpus, COUNTS, num_rounds)
    report.add("one caller, 10 to 1,000 candidates", rows)
    slope = slope_against_base(rows)
    print(f"slope over tokens against the 100-candidate figure: {slope:.3f}")
    report.note(slope=slope)
    report.add(
        f"callers of {CALLER_DOCUMENTS} candidates at once",
        caller_rows(ours, corpus, CALLERS, num_calls),
    )
    report.add("the same documents again", repeat_rows(ours, corpus, num_rounds))
    report.save(arguments.json)
    ours.close()


if __name__ == "__main__":
    main()
