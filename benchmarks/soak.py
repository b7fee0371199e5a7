"""Whether anything grows with use: `python benchmarks/soak.py --minutes 30` (`make soak`).

Threads and an event loop make calls of every kind at random, with OpenTelemetry's spans and
metrics exported, for a set time. Up to 200 times they pause, and while no call is under way the
resident memory, the threads and the open files of the process are counted, each time after Python
and the C library have given back what nobody uses: when they do so by themselves is chance. Each
caller begins with the largest call of every kind, all at the same time, so that what memory calls
need at most is there from then on.

Memory is said to grow if, after a warm-up of three fifths of the time, the slope of a least-squares
line through it is above zero with 95% confidence; where the interval reaches more than 0.1 MiB a
minute above zero, nothing is shown, which is wrong as well. Neighbouring samples are alike, and
tell less than as many that have nothing to do with each other; how alike they are is seen by how
the line's residuals correlate with the next, and the interval is as wide as for the smaller number
of samples that would tell as much (Santer and others, Journal of Geophysical Research 105, 2000,
page 7337).
Threads and files grow if in the last third of what follows the warm-up there are never as few as
there were at most within it.

Exits with 1 where something grows, or a call fails that should not.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import ctypes
import gc
import logging
import math
import mmap
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from report import Report, add_arguments
from scipy import stats
from workload import SMALL_MODEL, checkpoint

from sie_core import DEFAULT_MODEL, LocalClient, Reranker
from sie_core.document_text import DocumentText
from sie_core.errors import InputTooLongError
from sie_core.local.memory import give_back
from sie_core.telemetry import use_providers

WARM_UP = 0.6
"""The part of the time that does not count, unless another is given. Caches fill in it, threads'
heaps become as large as they get, and the interpreter's table of interned strings doubles, once:
after some 25,000 calls."""

LEVEL_CALLS = 55_000
"""After as many memory was level. Two cores with AMX make them with the default model in 15
minutes, with AVX2 alone in more than two hours: `--small` is for those."""

_MOST_SAMPLES = 200
_LEAST_APART = 3.0
"""Seconds between two samples: callers that pause call nothing."""

_MOMENT = 0.05
"""Seconds that a caller or its work may take to come to rest."""

_TOO_WIDE = 0.1
"""MiB a minute over what is tolerated: an interval that reaches higher proves nothing."""

_METRICS_EVERY_MS = 5000
_LARGEST_ROUNDS = 3
_LOOP_THREADS = 6
_MOST_DOCUMENTS = 40
CONFIDENCE = 0.95
_MIB = 1024 * 1024
_PAGE_MIB = mmap.PAGESIZE / _MIB
_CACHE_BYTES = _MIB // 4
"""Full within minutes: a cache that is filling grows, and its table doubles at a stroke."""

_WORDS = (files("sie_core.evaluation") / "words.txt").read_text("utf-8").split()
_UNIQUE_WORDS = 5
"""As many of 470 as make 10^13 texts."""

Call = tuple[str, list[str], dict[str, Any]]
"""A query, documents, and what else `rerank` is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One kind of call.

    Attributes:
        name: For the table.
        settings: The constructor's arguments; "MODEL" stands for the model, "FOLDER" for an empty
            folder.
        arguments: What else a call is given.
        longest: Words of a document at most.
        repeats: Whether the same documents come again and again, and twice in a call.
        is_many: Whether several queries are ranked at once.
        is_fresh: Whether each call has a reranker of its own, which it closes.
        fails_with: The error that some of these calls are to end with.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[[random.Random], dict[str, Any]] = lambda _: {}
    longest: int = 60
    repeats: bool = False
    is_many: bool = False
    is_fresh: bool = False
    fails_with: type[Exception] | None = None


def _overrides(rng: random.Random) -> dict[str, Any]:
    return {
        "top_k": rng.randrange(1, _MOST_DOCUMENTS),
        "score_threshold": rng.uniform(-5, 5),
        "instruction": " ".join(rng.choices(_WORDS, k=4)),
        "score_space": rng.choice(["raw", "probability"]),
        "long_documents": rng.choice(["truncate", "max_passage"]),
        "drop_duplicates": rng.random() < 0.5,  # noqa: PLR2004  every other time
    }


def _latency(rng: random.Random) -> dict[str, Any]:
    return {"max_latency_ms": rng.uniform(20, 500)}


_PASSAGES = {
    "long_documents": "max_passage",
    "passage_length": 60,
    "passage_overlap": 20,
    "max_passages": 4,
}
_ON_DISK = {"max_bytes": _CACHE_BYTES, "folder": "FOLDER", "max_disk_bytes": _MIB}
_CASCADE = {"cascade": [("MODEL", 0.3)]}
_NOWHERE = "http://127.0.0.1:9"

FEATURES = (
    Feature(name="plain"),
    Feature(name="own reranker", is_fresh=True),
    Feature(name="deadline", arguments=_latency),
    Feature(name="long documents", settings=_PASSAGES, longest=900),
    Feature(
        name="long documents refused",
        settings={"long_documents": "error"},
        longest=600,
        fails_with=InputTooLongError,
    ),
    Feature(name="score cache", settings={"score_cache": _CACHE_BYTES}, repeats=True),
    Feature(name="score cache, new texts", settings={"score_cache": _CACHE_BYTES}),
    Feature(name="score cache on disk", settings={"score_cache": _ON_DISK}, repeats=True),
    Feature(name="duplicates", settings={"drop_duplicates": True}, repeats=True),
    Feature(name="settings of each call", arguments=_overrides),
    Feature(name="cascade", settings=_CASCADE),
    Feature(name="early stop", settings={"stop_when_stable": 1, "batch_size": 4}),
    Feature(name="many queries", is_many=True),
    Feature(name="watched", settings={"on_rerank": str, "trace_content": True}),
    Feature(name="fallback", settings={"base_url": _NOWHERE, "fallback": "local"}),
    Feature(name="probabilities", settings={"score_space": "probability"}),
    Feature(
        name="all together",
        settings={
            **_PASSAGES,
            **_CASCADE,
            "score_cache": _CACHE_BYTES,
            "stop_when_stable": 2,
            "drop_duplicates": True,
            "on_rerank": str,
        },
        arguments=_latency,
        longest=400,
    ),
)


class Calls:
    """Draws calls and makes them, in threads and in an event loop.

    Args:
        model: Name or folder.
        features: What is called.
        mode: See `Reranker`.
        pause_seconds: Between two calls of one caller at most.
    """

    def __init__(
        self, model: str, features: Sequence[Feature], *, mode: Any, pause_seconds: float
    ) -> None:
        self._model = model
        self._folder = tempfile.TemporaryDirectory(prefix="sie-soak-")
        self._mode = mode
        self._features = features
        self._pause_seconds = pause_seconds
        # A small cache is full within the warm-up; of the usual size, it would fill all the time.
        self._client = LocalClient(mode=mode, token_cache_bytes=_MIB)
        self._client.warm_up(model)
        self._rerankers = {feature.name: self._reranker(feature) for feature in features}
        self._known = [self._document(random.Random(i), 40) for i in range(200)]
        self._text = DocumentText(meta_fields=["title"], document_prefix="passage: ")
        self._lock = threading.Lock()
        self._num_under_way = 0
        self._is_paused = False
        self.num_calls: collections.Counter[str] = collections.Counter()
        self.errors: list[str] = []
        self.is_over = threading.Event()

    def in_thread(self, seed: int) -> None:
        """Make one call after the other."""
        rng = random.Random(seed)
        largest = self._largest()
        while not self.is_over.wait(rng.random() * self._pause_seconds):
            if not self._begin():
                continue
            is_largest = bool(largest)
            feature = largest.pop() if largest else rng.choice(self._features)
            own = self._reranker(feature) if feature.is_fresh else None
            reranker = own or self._rerankers[feature.name]
            try:
                if feature.is_many:
                    pairs = [self._draw(feature, rng, is_largest=is_largest)[:2] for _ in range(3)]
                    reranker.rank_many(pairs)
                else:
                    query, documents, arguments = self._draw(feature, rng, is_largest=is_largest)
                    reranker.rerank(query, documents, **arguments)
                reranker.stats()
            except Exception as exc:  # noqa: BLE001  what went wrong is part of the result
                self._note(feature, exc)
            finally:
                if own is not None:
                    own.close()
                self._end(feature.name)

    async def in_loop(self, seed: int) -> None:
        """Do what `in_thread` does, in an event loop."""
        rng = random.Random(seed)
        largest = self._largest()
        while not self.is_over.is_set():
            await asyncio.sleep(rng.random() * self._pause_seconds)
            if not self._begin():
                continue
            is_largest = bool(largest)
            feature = largest.pop() if largest else rng.choice(self._features)
            own = self._reranker(feature) if feature.is_fresh else None
            reranker = own or self._rerankers[feature.name]
            try:
                if feature.is_many:
                    pairs = [self._draw(feature, rng, is_largest=is_largest)[:2] for _ in range(3)]
                    await reranker.arank_many(pairs)
                else:
                    query, documents, arguments = self._draw(feature, rng, is_largest=is_largest)
                    await reranker.arerank(query, documents, **arguments)
                reranker.stats()
            except Exception as exc:  # noqa: BLE001  what went wrong is part of the result
                self._note(feature, exc)
            finally:
                if own is not None:
                    await own.aclose()
                self._end(f"{feature.name}, awaited")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let the calls under way end, and begin none meanwhile."""
        with self._lock:
            self._is_paused = True
        while self._num_under_way:
            time.sleep(_MOMENT)
        time.sleep(_MOMENT)  # what a call leaves behind at its deadline is dropped after it
        try:
            yield
        finally:
            self._is_paused = False

    def _begin(self) -> bool:
        """Count a call as under way, unless none may begin."""
        with self._lock:
            if self._is_paused:
                return False
            self._num_under_way += 1
            return True

    def _end(self, name: str) -> None:
        with self._lock:
            self._num_under_way -= 1
            self.num_calls[name] += 1

    def close(self) -> None:
        """Release the model."""
        for reranker in self._rerankers.values():
            reranker.close()
            if reranker.score_cache is not None:
                reranker.score_cache.close()
        self._client.close()
        self._folder.cleanup()

    def _reranker(self, feature: Feature) -> Reranker:
        settings = dict(feature.settings)
        if "cascade" in settings:
            settings["cascade"] = [(self._model, keep) for _, keep in settings["cascade"]]
        if settings.get("score_cache") is _ON_DISK:
            settings["score_cache"] = _ON_DISK | {"folder": self._folder.name}
        return Reranker(self._model, mode=self._mode, **settings)

    def _largest(self) -> list[Feature]:
        """Return what each caller begins with, at its largest: all of them in the same order.

        Each thread's part of the heap is as large as its largest call needed, and what Python holds
        as large as the calls that met. Left to chance, larger calls than before, and larger ones
        that meet, come ever more rarely, but come, and look like a leak.
        """
        return [*self._features] * _LARGEST_ROUNDS

    def _draw(self, feature: Feature, rng: random.Random, *, is_largest: bool) -> Call:
        num_documents = min(_MOST_DOCUMENTS, max(1, int(rng.lognormvariate(1.6, 0.9))))
        if is_largest:
            num_documents = _MOST_DOCUMENTS
        if feature.repeats:
            documents = rng.choices(self._known, k=num_documents)
        else:
            longest = feature.longest
            documents = [
                self._document(rng, longest if is_largest else rng.randrange(1, longest))
                for _ in range(num_documents)
            ]
        query = self._text.of_query(" ".join(rng.choices(_WORDS, k=8)))
        texts = self._text.texts_of((document, {"title": "a title"}) for document in documents)
        return query, [text or "" for text in texts], feature.arguments(rng)

    def _document(self, rng: random.Random, num_words: int) -> str:
        """Draw a text that no other call has.

        Of few words: one that was never read before brings in another page of the mapped weights,
        and rare ones would do so for hours.
        """
        return " ".join(rng.choices(_WORDS, k=_UNIQUE_WORDS + num_words))

    def _note(self, feature: Feature, error: Exception) -> None:
        if feature.fails_with is not None and isinstance(error, feature.fails_with):
            return
        with self._lock:
            self.errors.append(f"{feature.name}: {type(error).__name__}: {error}")


class _MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`: what its allocator holds, over all of its arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            [
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            ]
        )
    )


def allocated_bytes() -> float:
    """Return what is allocated and not freed, or nan where the C library cannot tell.

    Resident memory is this and what the allocator keeps for later. Where only the latter grows,
    nothing leaks: each thread allocates from an arena of its own, and fills it at its own worst
    moment.
    """
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return math.nan
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return float(info.uordblks + info.hblkhd)


class Sample(NamedTuple):
    """What the process has at one moment.

    Attributes:
        minutes: Since the start.
        resident_mib: Memory in RAM, pages of mapped files included.
        private_mib: Without those.
        allocated_mib: What the C library has given out.
        num_threads: Threads.
        num_files: Open files.
        num_blocks: What Python's own allocator has given out.
    """

    minutes: float
    resident_mib: float
    private_mib: float
    allocated_mib: float
    num_threads: int
    num_files: int
    num_blocks: int

    @classmethod
    def take(cls, minutes: float) -> Sample:
        """Count, after what nobody uses any more has gone back to the system."""
        gc.collect()
        give_back()
        statm = Path("/proc/self/statm").read_text(encoding="ascii").split()
        resident, shared = (int(pages) * _PAGE_MIB for pages in statm[1:3])
        return cls(
            minutes=minutes,
            resident_mib=resident,
            private_mib=resident - shared,
            allocated_mib=allocated_bytes() / _MIB,
            num_threads=len(os.listdir("/proc/self/task")),  # noqa: PTH208  names are enough
            num_files=len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            num_blocks=sys.getallocatedblocks(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """How fast something grows, and between what bounds with confidence."""

    per_minute: float
    low: float
    high: float


def slope_of(points: Sequence[tuple[float, float]], *, confidence: float = CONFIDENCE) -> Slope:
    """Fit a line through points `(minutes, value)`, in time's order and equally far apart.

    Samples that are so much alike that they tell less than three would have an unbounded interval.
    """
    minutes, values = np.array(points).T
    fitted = stats.linregress(minutes, values)
    residuals = values - fitted.intercept - fitted.slope * minutes
    squares = float(residuals @ residuals)
    alike = max(0.0, float(residuals[1:] @ residuals[:-1]) / squares) if squares else 0.0
    freedom = len(points) * (1 - alike) / (1 + alike) - 2
    reach = math.inf
    if freedom > 1:
        error = math.sqrt(squares / freedom) / float(np.linalg.norm(minutes - minutes.mean()))
        reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    slope = float(fitted.slope)
    return Slope(per_minute=slope, low=slope - reach, high=slope + reach)


def soak(calls: Calls, *, seconds: float, num_threads: int, num_tasks: int) -> list[Sample]:
    """Make calls for a time, and return what was counted meanwhile."""

    async def run_tasks() -> None:
        # The loop's own threads begin one by one, when one more is needed than ever before.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_LOOP_THREADS))
        all_there = threading.Barrier(_LOOP_THREADS)
        await asyncio.gather(*(asyncio.to_thread(all_there.wait) for _ in range(_LOOP_THREADS)))
        await asyncio.gather(*(calls.in_loop(1000 + i) for i in range(num_tasks)))

    threads = [
        threading.Thread(target=calls.in_thread, args=(i,), name=f"caller-{i}")
        for i in range(num_threads)
    ]
    threads.append(threading.Thread(target=lambda: asyncio.run(run_tasks()), name="loop"))
    for thread in threads:
        thread.start()
    started = time.monotonic()
    interval = max(_LEAST_APART, seconds / _MOST_SAMPLES)
    # There from the start: a list would be what grows.
    rows = np.empty((_MOST_SAMPLES, len(Sample._fields)))
    count = 0
    while time.monotonic() - started < seconds:
        calls.is_over.wait(interval)
        with calls.paused():
            rows[count] = Sample.take((time.monotonic() - started) / 60)
        count += 1
    calls.is_over.set()
    for thread in threads:
        thread.join()
    return [Sample(*row[:4], *map(int, row[4:])) for row in rows[:count].tolist()]


def verdict(
    samples: Sequence[Sample],
    errors: Sequence[str],
    *,
    minutes: float,
    tolerance: float,
    warm_up: float = WARM_UP,
) -> tuple[dict[str, Slope], list[str]]:
    """Return the slopes of memory, and what is wrong."""
    before = [sample for sample in samples if sample.minutes < minutes * warm_up]
    after = [sample for sample in samples if sample.minutes >= minutes * warm_up]
    slopes = {
        what: slope_of([(sample.minutes, getattr(sample, f"{what}_mib")) for sample in after])
        for what in ("resident", "private", "allocated")
    }
    slope = slopes["resident"]
    wrong = [*errors[:5]]
    if slope.low > tolerance:
        wrong.append(f"memory grows by {slope.low:.2f} MiB a minute or more")
    elif slope.high > tolerance + _TOO_WIDE:
        wrong.append(
            f"memory may grow by up to {slope.high:.2f} MiB a minute: the samples cannot tell; "
            "a longer run could"
        )
    for what in ("num_threads", "num_files"):
        most_before = max(getattr(sample, what) for sample in before)
        least_at_end = min(getattr(sample, what) for sample in after[-len(after) // 3 :])
        if least_at_end > most_before:
            wrong.append(
                f"{what} was {most_before} at most, and {least_at_end} at least in the end"
            )
    return slopes, wrong


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, help="default 30, or 2 with --quick")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=4, help="callers in the event loop")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument(
        "--small",
        action="store_true",
        help=f"instead, {SMALL_MODEL}'s shape with random weights, for a slow machine: what counts "
        "is the number of calls",
    )
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--pause-ms", type=float, default=20, help="between calls at most")
    parser.add_argument("--warm-up", type=float, default=WARM_UP, help="a part of the time")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="MiB a minute that do not count as growth"
    )
    arguments = parser.parse_args()
    arguments.minutes = arguments.minutes or (2 if arguments.quick else 30)
    if arguments.small:
        arguments.model = str(checkpoint(SMALL_MODEL))
    return arguments


def _show(
    report: Report, calls: Calls, samples: Sequence[Sample], slopes: Mapping[str, Slope]
) -> None:
    report.add(
        "calls",
        [{"kind": name, "calls": count} for name, count in sorted(calls.num_calls.items())],
    )
    every = max(1, math.ceil(len(samples) / 12))
    report.add(
        "over time",
        [
            {
                "minutes": sample.minutes,
                "MiB": sample.resident_mib,
                "MiB private": sample.private_mib,
                "MiB allocated": sample.allocated_mib,
                "threads": sample.num_threads,
                "files": sample.num_files,
                "Python's blocks": sample.num_blocks,
            }
            for sample in samples[(len(samples) - 1) % every :: every]
        ],
    )
    report.add(
        f"growth of memory after the warm-up, with {CONFIDENCE:.0%} confidence",
        [
            {"memory": what, "MiB a minute": it.per_minute, "from": it.low, "to": it.high}
            for what, it in slopes.items()
        ],
    )


@contextlib.contextmanager
def telemetry() -> Iterator[None]:
    """Export spans and metrics as a program would; what is written goes nowhere.

    Spans at once: a queue of them would hold more or fewer whenever memory is counted.
    """
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=nowhere)))
        reader = PeriodicExportingMetricReader(
            ConsoleMetricExporter(out=nowhere), export_interval_millis=_METRICS_EVERY_MS
        )
        meters = MeterProvider([reader])
        use_providers(tracer_provider=tracers, meter_provider=meters)
        try:
            yield
        finally:
            use_providers()
            tracers.shutdown()
            meters.shutdown()


def main() -> int:
    """Print tables, and say by the exit status whether nothing grew."""
    arguments = _parse()
    if not Path("/proc/self/statm").exists():
        sys.exit("memory is read from /proc, which this system does not have")
    logging.getLogger("sie_core").setLevel(logging.ERROR)
    minutes = arguments.minutes
    report = Report("soak", minutes=minutes, model=arguments.model, mode=arguments.mode)
    calls = Calls(
        arguments.model,
        FEATURES,
        mode=arguments.mode,
        pause_seconds=arguments.pause_ms / 1000,
    )
    with telemetry():
        samples = soak(
            calls, seconds=60 * minutes, num_threads=arguments.threads, num_tasks=arguments.tasks
        )
    calls.close()
    slopes, wrong = verdict(
        samples,
        calls.errors,
        minutes=minutes,
        tolerance=arguments.tolerance,
        warm_up=arguments.warm_up,
    )
    _show(report, calls, samples, slopes)
    report.note(
        wrong=wrong,
        num_errors=len(calls.errors),
        samples=[sample._asdict() for sample in samples],
    )
    report.save(arguments.json)
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong and calls.num_calls.total() * arguments.warm_up < LEVEL_CALLS:
        print(
            f"The warm-up was {arguments.warm_up:.0%} of {calls.num_calls.total():,} calls; memory "
            f"is level after some {LEVEL_CALLS:,}: try --small, or more --minutes"
        )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
