"""What telemetry costs a rerank call: `python benchmarks/telemetry.py`.

Calls of the same reranker in turn, with telemetry in one state after the other, against calls whose
plan nobody follows. The client answers at once, so that what a call costs in Python shows; what is
found is then held against a call of the embedded model, with candidates of 100 words. All is CPU
time, which other programs do not lengthen.

Predicted: without OpenTelemetry under 1% of a call to the model and under 20 microseconds; with the
SDK's spans and metrics under 5% for 20 candidates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from sie_core import Item, Reranker
from sie_core.rerank_plan import rerank_plan
from sie_core.telemetry import use_providers

QUERY = "which documents are relevant?"
WORDS = "the server ranks a document by how well it answers"
HIDDEN = ("opentelemetry.trace", "opentelemetry.metrics")


class Nowhere(SpanExporter):
    """Takes spans and drops them: what a collector costs is not a call's affair."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Drop them."""
        del spans
        return SpanExportResult.SUCCESS


class Instant:
    """A client that answers at once."""

    def score(self, model: str, query: Item, items: Sequence[Item], **_: Any) -> Mapping[str, Any]:
        """Give each item its place for a score."""
        del query
        scores = [{"item_id": item["id"], "score": float(i)} for i, item in enumerate(items)]
        timing = {"total_ms": 1.0, "queue_ms": 0.1, "tokenization_ms": 0.2, "inference_ms": 0.6}
        return {"model": model, "query_id": None, "scores": scores, "timing": timing}


@contextmanager
def without_package() -> Iterator[None]:
    """Let it be as if the program had not imported OpenTelemetry."""
    kept = {name: sys.modules.pop(name) for name in HIDDEN}
    try:
        yield
    finally:
        sys.modules.update(kept)


@dataclass(frozen=True, slots=True)
class State:
    """One way in which telemetry can stand."""

    name: str
    is_followed: bool = True
    has_package: bool = True
    has_hook: bool = False
    has_metrics: bool = False
    has_spans: bool = False
    has_content: bool = False


STATES = [
    State("not followed", is_followed=False, has_package=False),
    State("off: OpenTelemetry not imported", has_package=False),
    State("off, with a hook", has_package=False, has_hook=True),
    State("imported, nothing set up"),
    State("SDK: metrics", has_metrics=True),
    State("SDK: spans", has_spans=True),
    State("SDK: spans and metrics", has_metrics=True, has_spans=True),
    State("SDK: spans with contents, metrics", has_metrics=True, has_spans=True, has_content=True),
]


class Providers:
    """The SDK, made once."""

    def __init__(self) -> None:
        self.tracer = TracerProvider(shutdown_on_exit=False)
        self.tracer.add_span_processor(BatchSpanProcessor(Nowhere()))
        self.meter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)

    def close(self) -> None:
        """End its threads."""
        self.tracer.shutdown()
        self.meter.shutdown()


@contextmanager
def standing(state: State, providers: Providers, reranker: Reranker) -> Iterator[None]:
    """Let telemetry stand in one way."""
    use_providers(
        tracer_provider=providers.tracer if state.has_spans else None,
        meter_provider=providers.meter if state.has_metrics else None,
    )
    reranker.on_rerank = (lambda _: None) if state.has_hook else None
    reranker.trace_content = state.has_content
    follow = reranker._plan  # noqa: SLF001
    if not state.is_followed:
        reranker._plan = rerank_plan  # type: ignore[method-assign]  # noqa: SLF001
    try:
        if state.has_package:
            yield
        else:
            with without_package():
                yield
    finally:
        reranker._plan = follow  # type: ignore[method-assign]  # noqa: SLF001
        use_providers()


def measure(num_documents: int, num_rounds: int, num_calls: int) -> list[float]:
    """Return the calling thread's median seconds of a call in each state; states take turns."""
    providers = Providers()
    seconds: list[list[float]] = [[] for _ in STATES]
    documents = texts(num_documents)
    with Reranker("m", client=Instant()) as reranker:
        for turn in range(num_rounds + 1):
            for position in range(len(STATES)):
                index = (position + turn) % len(STATES)  # nobody is always first
                with standing(STATES[index], providers, reranker):
                    reranker.rerank(QUERY, documents)
                    begin = time.thread_time()
                    for _ in range(num_calls):
                        reranker.rerank(QUERY, documents)
                    if turn:  # the first round warms up
                        seconds[index].append((time.thread_time() - begin) / num_calls)
    providers.close()
    return [statistics.median(times) for times in seconds]


def measure_model(num_documents: int, num_calls: int) -> float:
    """Return the median CPU seconds of a call of the embedded model, all its threads together."""
    with Reranker() as reranker, without_package():
        reranker.rerank(QUERY, texts(num_documents))
        times = []
        for _ in range(num_calls):
            begin = time.process_time()
            reranker.rerank(QUERY, texts(num_documents))
            times.append(time.process_time() - begin)
    return statistics.median(times)


def texts(num_documents: int) -> list[str]:
    """Make documents of 100 words."""
    text = " ".join([WORDS] * 10)
    return [f"{i} {text}" for i in range(num_documents)]


def main() -> None:
    """Print a table for each number of documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--documents", type=int, nargs="*", default=[20, 100])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    rows = []
    for num_documents in arguments.documents:
        model = measure_model(num_documents, num_calls=5)
        found = measure(num_documents, arguments.rounds, num_calls=50)
        for state, seconds in zip(STATES, found, strict=True):
            beyond = seconds - found[0]
            rows.append(
                (num_documents, state.name, 1e6 * beyond, seconds / found[0], 1 + beyond / model)
            )
    if arguments.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
        return
    print(
        "the calling thread's time beyond that of a call that nobody follows, and as ratios of it"
    )
    for num_documents, state, microseconds, instant_ratio, model_ratio in rows:
        print(
            f"{num_documents:>4} documents, {state:<34} {microseconds:+7.1f} us, "
            f"instant client {instant_ratio:5.2f}, embedded model {model_ratio:7.4f}"
        )


COLUMNS = ("num_documents", "state", "beyond_us", "instant_ratio", "model_ratio")

if __name__ == "__main__":
    main()
