"""How fast a model answers on this machine: latency, throughput, cold start and memory.

Texts are made up afresh for every call, so that no cache answers; lengths are drawn as passages
have them (log-normal, median 60 words, up to 300).
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_core.errors import InferenceError, InvalidRequestError
from sie_core.evaluation.machine import describe_machine
from sie_core.reranker import Reranker

CANDIDATES = (10, 20, 50, 100)
"""Documents of a call, one call at a time."""

CALLERS = (1, 2, 4, 8, 16, 32)
"""Threads that call at once."""

CALLER_CANDIDATES = 20
"""Documents of each of their calls."""

_MEDIAN_WORDS, _SPREAD, _MAX_WORDS = 60, 0.6, 300
_NUM_QUERY_WORDS = 10
_NUM_WARM_CALLS = 2

Step = Callable[[str], object]
"""Told what is measured next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRow:
    """One caller, one call at a time.

    Attributes:
        num_candidates: Documents of a call.
        num_calls: How many were made.
        p50_ms: Half of them took at most this.
        p95_ms: 95 of 100 took at most this.
        pairs_per_second: Documents scored in a second.
    """

    num_candidates: int
    num_calls: int
    p50_ms: float
    p95_ms: float
    pairs_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputRow:
    """Several callers at once; see `LatencyRow`."""

    num_callers: int
    num_candidates: int
    num_calls: int
    p50_ms: float
    p95_ms: float
    pairs_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """A fresh process, from its start to the first scores.

    Attributes:
        seconds: Until 20 documents were scored, imports and loading included; the best of some.
        resident_mib: The process's memory then; None where the system does not tell.
    """

    seconds: float
    resident_mib: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReport:
    """What was measured, and on which machine.

    Attributes:
        model: Whose speed.
        served_by: `local`, or the server's address.
        execution: How the model runs in this process, and why so; None for a server.
        machine: Processor, cores, memory, versions.
        latency: One row for each number of candidates.
        throughput: One row for each number of callers.
        cold_start: None for a server, or where it was left out.
        resident_mib: This process's memory after all calls; None for a server.
    """

    model: str
    served_by: str
    execution: str | None
    machine: dict[str, str]
    latency: tuple[LatencyRow, ...]
    throughput: tuple[ThroughputRow, ...]
    cold_start: ColdStart | None
    resident_mib: float | None


_WORDS = Path(__file__).with_name("words.txt").read_text(encoding="ascii").split()
"""Words that tokenizers have whole, as they have most of a passage's."""


class Texts:
    """Made-up texts of common words, different ones each time."""

    def __init__(self, *, seed: int = 0) -> None:
        self._dice = random.Random(seed)

    def query(self) -> str:
        """Make a query of ten words."""
        return self._of(_NUM_QUERY_WORDS)

    def documents(self, count: int) -> list[str]:
        """Make documents of the lengths that passages have."""
        return [
            self._of(min(_MAX_WORDS, max(1, round(math.exp(self._dice.gauss(mean, _SPREAD))))))
            for mean in [math.log(_MEDIAN_WORDS)] * count
        ]

    def _of(self, num_words: int) -> str:
        return " ".join(self._dice.choices(_WORDS, k=num_words))


def measure_speed(
    reranker: Reranker,
    *,
    candidates: Sequence[int] = CANDIDATES,
    callers: Sequence[int] = CALLERS,
    num_calls: int = 20,
    cold_starts: int = 3,
    cold_start_arguments: dict[str, Any] | None = None,
    step: Step = lambda _: None,
) -> SpeedReport:
    """Measure a reranker on this machine.

    Args:
        reranker: In this process or on a server; warmed up first.
        candidates: Documents of a call; one row each.
        callers: Threads that call at once; one row each.
        num_calls: Calls for each row; by all callers together at least one each.
        cold_starts: Fresh processes; 0 leaves them out, as a server does.
        cold_start_arguments: The reranker's own arguments, for those processes.
        step: Told what is measured next.

    Raises:
        InvalidRequestError: A number is below 1.
        SIEError: The model could not be had, loaded or run.
    """
    for name, numbers in (("candidates", candidates), ("callers", callers), ("calls", [num_calls])):
        if not numbers or min(numbers) < 1:
            msg = f"{name} must be at least 1, but got {', '.join(map(str, numbers)) or 'none'}"
            raise InvalidRequestError(msg)
    texts = Texts()
    cold_start = None
    if reranker.is_local and cold_starts:
        step("cold start")
        cold_start = measure_cold_start(reranker.model, cold_start_arguments or {}, cold_starts)
    step("warming up")
    reranker.warm_up()
    for _ in range(_NUM_WARM_CALLS):
        reranker.rerank(texts.query(), texts.documents(max(candidates)))
    latency = []
    for count in candidates:
        step(f"{count} candidates")
        latency.append(_measure_latency(reranker, texts, count, num_calls))
    throughput = []
    for count in callers:
        step(f"{count} callers")
        throughput.append(_measure_throughput(reranker, texts, count, num_calls))
    return SpeedReport(
        model=reranker.model,
        served_by="local" if reranker.is_local else reranker.base_url or "given client",
        execution=reranker.execution,
        machine=describe_machine(),
        latency=tuple(latency),
        throughput=tuple(throughput),
        cold_start=cold_start,
        resident_mib=resident_mib() if reranker.is_local else None,
    )


def _measure_latency(
    reranker: Reranker, texts: Texts, num_candidates: int, num_calls: int
) -> LatencyRow:
    seconds = [
        _timed(reranker, texts.query(), texts.documents(num_candidates)) for _ in range(num_calls)
    ]
    return LatencyRow(
        num_candidates=num_candidates,
        num_calls=num_calls,
        p50_ms=1000 * percentile(seconds, 50),
        p95_ms=1000 * percentile(seconds, 95),
        pairs_per_second=num_candidates * num_calls / sum(seconds),
    )


def _measure_throughput(
    reranker: Reranker, texts: Texts, num_callers: int, num_calls: int
) -> ThroughputRow:
    per_caller = max(1, round(num_calls / num_callers))
    drawn = [
        [(texts.query(), texts.documents(CALLER_CANDIDATES)) for _ in range(per_caller)]
        for _ in range(num_callers)
    ]
    start = threading.Barrier(num_callers + 1)

    def call(own: list[tuple[str, list[str]]]) -> list[float]:
        start.wait()
        return [_timed(reranker, query, documents) for query, documents in own]

    with ThreadPoolExecutor(num_callers) as pool:
        running = [pool.submit(call, own) for own in drawn]
        start.wait()
        begin = time.perf_counter()
        seconds = [lap for caller in running for lap in caller.result()]
        elapsed = time.perf_counter() - begin
    return ThroughputRow(
        num_callers=num_callers,
        num_candidates=CALLER_CANDIDATES,
        num_calls=len(seconds),
        p50_ms=1000 * percentile(seconds, 50),
        p95_ms=1000 * percentile(seconds, 95),
        pairs_per_second=CALLER_CANDIDATES * len(seconds) / elapsed,
    )


def _timed(reranker: Reranker, query: str, documents: list[str]) -> float:
    begin = time.perf_counter()
    reranker.rerank(query, documents)
    return time.perf_counter() - begin


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of 100 values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


_COLD_START = """
import json, sys
model, arguments, query, documents = json.load(sys.stdin)
from sie_core import Reranker
ranking = Reranker(model, **arguments).rerank(query, documents)
print(len(ranking), flush=True)
from sie_core.evaluation.speed import resident_mib
print(json.dumps(resident_mib()), flush=True)
"""


def measure_cold_start(model: str, arguments: dict[str, Any], num_starts: int) -> ColdStart:
    """Start fresh processes that score 20 documents, and take the fastest.

    Raises:
        InferenceError: A process ended without scores; the message has the end of what it said.
    """
    texts = Texts(seed=1)
    task = json.dumps([model, arguments, texts.query(), texts.documents(CALLER_CANDIDATES)])
    found: list[ColdStart] = []
    for _ in range(num_starts):
        begin = time.perf_counter()
        with (
            tempfile.TemporaryFile("w+") as errors,  # a pipe would have to be emptied meanwhile
            subprocess.Popen(  # noqa: S603 -- this interpreter, a script of our own
                [sys.executable, "-c", _COLD_START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as child,
        ):
            assert child.stdin is not None  # noqa: S101
            assert child.stdout is not None  # noqa: S101
            child.stdin.write(task)
            child.stdin.close()
            scored = child.stdout.readline()
            seconds = time.perf_counter() - begin
            memory = child.stdout.readline()
            child.wait()
            errors.seek(0)
            said = errors.read().strip()
        if not scored.strip() or not memory.strip():
            msg = f"a fresh process could not score with {model}: {said[-500:]}"
            raise InferenceError(msg)
        found.append(ColdStart(seconds=seconds, resident_mib=json.loads(memory)))
    return min(found, key=lambda one: one.seconds)


def resident_mib() -> float | None:
    """Return this process's resident memory; None where the system does not tell it like Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
