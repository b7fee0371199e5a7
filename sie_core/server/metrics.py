"""`Metrics`: what Prometheus is told. The names are those of docs/serve.md and the dashboard.

No label holds what a caller may make up at will: models that the server does not serve, and those
beyond a number, share one.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

import sie_core
from sie_core.remote.wire import PROTOCOL_VERSION
from sie_core.server.admission import Door
from sie_core.server.observation import Observation
from sie_core.server.service import Service
from sie_core.server.shelf import Shelved

MAX_MODELS = 100
"""Models with labels of their own."""

OTHER = "other"
"""The label of all further models, and of paths that are no route."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ITEMS = (1, 2, 5, 10, 20, 50, 100, 200, 512, 1000)
_MS = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What is counted for one route and one model."""

    route: str
    model: str
    duration: Histogram
    body_bytes: Counter
    items: Counter
    tokens: Counter
    truncated: Counter
    size: Histogram
    parts: list[tuple[str, Histogram]]
    requests: dict[tuple[str, str], Counter] = field(default_factory=dict)


class Metrics:
    """Count what passes, and ask the models how they stand when someone reads.

    Args:
        service: Whose models are asked; None where they are in other processes.
    """

    def __init__(self, service: Service | None) -> None:
        self._registry = CollectorRegistry()
        self._models: set[str] = set()
        self._calls: dict[tuple[str, str | None], _Call] = {}
        by_call = ("route", "model")
        self._requests = self._counter(
            "requests", "Requests that are over.", (*by_call, "status", "code")
        )
        self._items = self._counter("items", "Items in requests that were computed.", by_call)
        self._tokens = self._counter("tokens", "Tokens that were computed.", by_call)
        self._truncated = self._counter(
            "truncated_items", "Items that were longer than their model reads.", by_call
        )
        self._body_bytes = self._counter("request_body_bytes", "Bytes of bodies.", by_call)
        self._duration = self._histogram(
            "request_duration_seconds", "From a request's head to the end of its reply.", by_call
        )
        self._size = self._histogram(
            "request_items", "Items per request that was computed.", by_call, _ITEMS
        )
        self._parts = {
            f"{part}_ms": self._histogram(f"{part}_seconds", help_, ("model",))
            for part, help_ in (
                ("queue", "How long a call waited for a worker."),
                ("tokenization", "How long a call's texts took to become tokens."),
                ("inference", "How long a call was computed."),
            )
        }
        build = Gauge("sie_build_info", "What runs here.", _BUILD, registry=self._registry)
        build.labels(sie_core.__version__, PROTOCOL_VERSION, platform.python_version()).set(1)
        if service is not None:
            self._registry.register(_ServiceCollector(service))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def count(self, seen: Observation) -> None:
        """Count one request."""
        record = seen.record
        call = self._call(record.route or OTHER, record.model)
        outcome = (str(seen.status), record.code or "")
        if outcome not in call.requests:
            call.requests[outcome] = self._requests.labels(call.route, call.model, *outcome)
        call.requests[outcome].inc()
        call.duration.observe(seen.seconds)
        call.body_bytes.inc(record.num_body_bytes)
        if record.code is not None or not record.num_items:
            return
        call.items.inc(record.num_items)
        call.size.observe(record.num_items)
        call.tokens.inc(record.usage.get("input_tokens") or 0)
        call.truncated.inc(record.usage.get("truncated_items") or 0)
        for name, histogram in call.parts:
            milliseconds = record.timing.get(name)
            if milliseconds is not None:
                histogram.observe(milliseconds / _MS)

    def _call(self, route: str, model: str | None) -> _Call:
        """Return what is counted for a route and a model: finding it by labels takes longer."""
        found = self._calls.get((route, model))
        if found is not None:
            return found
        label = self._label(model)
        found = _Call(
            route=route,
            model=label,
            duration=self._duration.labels(route, label),
            body_bytes=self._body_bytes.labels(route, label),
            items=self._items.labels(route, label),
            tokens=self._tokens.labels(route, label),
            truncated=self._truncated.labels(route, label),
            size=self._size.labels(route, label),
            parts=[(name, histogram.labels(label)) for name, histogram in self._parts.items()],
        )
        if label != OTHER:  # whose callers' names are without number
            self._calls[route, model] = found
        return found

    def text(self) -> str:
        """Write all of them, as Prometheus reads them."""
        return generate_latest(self._registry).decode()

    async def answer(self, request: Request) -> Response:
        """Answer `GET /metrics`."""
        return written(request, self._registry)

    def collect(self) -> Iterable[Metric]:
        """Return them, as Prometheus's library has them."""
        return self._registry.collect()

    def _label(self, model: str | None) -> str:
        if model is None:
            return ""
        if model not in self._models and len(self._models) >= MAX_MODELS:
            return OTHER
        self._models.add(model)
        return model

    def _counter(self, name: str, help_: str, labels: Iterable[str]) -> Counter:
        return Counter(f"sie_{name}", help_, labels, registry=self._registry)

    def _histogram(
        self,
        name: str,
        help_: str,
        labels: Iterable[str],
        buckets: tuple[float, ...] = _SECONDS,
    ) -> Histogram:
        return Histogram(f"sie_{name}", help_, labels, registry=self._registry, buckets=buckets)


def written(request: Request, metrics: CollectorRegistry) -> Response:
    """Write metrics as their reader takes them."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(metrics), headers={"Content-Type": content_type})


_BUILD = ("version", "protocol", "python")

_COUNTERS = (
    ("batches", "Batches that were computed, since the model was loaded."),
    ("batch_sequences", "Sequences in those batches."),
    ("batch_tokens", "Tokens in those batches."),
    ("busy_seconds", "Time that workers spent in them, of all workers together."),
    ("out_of_memory_batches", "Batches that did not fit into memory."),
)
_GAUGES = (
    ("workers", "Threads or GPUs that compute batches."),
    ("queued_requests", "Requests of which something waits for a worker."),
    ("queued_tokens", "Tokens that wait for a worker."),
    ("model_bytes", "Bytes of weights."),
)


class Standing(Protocol):
    """What lets requests in: a `Service`, or one that stands before several."""

    is_ready: bool
    is_draining: bool
    door: Door


def standing(service: Standing) -> Iterator[Metric]:
    """Tell whether requests are let in, and how many are."""
    yield _gauge("ready", "1 once the models that are there from the start are.", service.is_ready)
    yield _gauge("draining", "1 while the server is being stopped.", service.is_draining)
    yield _gauge("requests_in_progress", "Requests in the server.", service.door.num_requests)
    yield _gauge("body_bytes_in_progress", "Bytes of their bodies.", service.door.num_bytes)


class _ServiceCollector(Collector):
    """Reads how the service and its models stand, at the moment of asking."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        """Name nothing before time: a model may take long to be there."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Ask."""
        service = self._service
        yield from standing(service)
        yield _gauge(
            "max_queued_tokens",
            "Tokens that may wait for one model; more are refused.",
            service.settings.max_queued_tokens,
        )
        shelved = list(service.shelf)[:MAX_MODELS]
        yield from self._loads(shelved)
        yield from self._loaded(shelved)

    def _loads(self, models: Iterable[Shelved]) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "sie_model_state", "1 for the state that a model is in.", labels=("model", "state")
        )
        loads = CounterMetricFamily(
            "sie_model_loads", "Loads of a model, by outcome.", labels=("model", "outcome")
        )
        seconds = GaugeMetricFamily(
            "sie_model_load_seconds", "How long its last load took.", labels=("model",)
        )
        for shelved in models:
            states.add_metric((shelved.name, self._service.shelf.state(shelved)), 1)
            loads.add_metric((shelved.name, "loaded"), shelved.num_loads)
            loads.add_metric((shelved.name, "failed"), shelved.num_failed_loads)
            if shelved.load_seconds is not None:
                seconds.add_metric((shelved.name,), shelved.load_seconds)
        yield from (states, loads, seconds)

    def _loaded(self, models: Iterable[Shelved]) -> Iterator[Metric]:
        counters = {
            name: CounterMetricFamily(f"sie_{name}", help_, labels=("model",))
            for name, help_ in _COUNTERS
        }
        gauges = {
            name: GaugeMetricFamily(f"sie_{name}", help_, labels=("model",))
            for name, help_ in _GAUGES
        }
        running = InfoMetricFamily("sie_model", "How a loaded model runs.", labels=("model",))
        in_memory: set[int] = set()  # two names may stand for one model
        for shelved in models:
            loaded = self._service.shelf.loaded(shelved)
            if loaded is None:
                continue
            in_memory.add(id(loaded))
            stats = loaded.scheduler.stats()
            labels = (shelved.name,)
            counters["batches"].add_metric(labels, stats.num_batches)
            counters["batch_sequences"].add_metric(labels, stats.num_sequences)
            counters["batch_tokens"].add_metric(labels, stats.num_tokens)
            counters["busy_seconds"].add_metric(labels, stats.busy_seconds)
            counters["out_of_memory_batches"].add_metric(labels, stats.num_out_of_memory)
            gauges["workers"].add_metric(labels, stats.num_workers)
            gauges["queued_requests"].add_metric(labels, stats.num_queued_requests)
            gauges["queued_tokens"].add_metric(labels, stats.num_queued_tokens)
            gauges["model_bytes"].add_metric(labels, loaded.num_bytes)
            running.add_metric(labels, {"runs": loaded.description})
        yield _gauge("models_loaded", "Models in memory.", len(in_memory))
        yield from counters.values()
        yield from gauges.values()
        yield running


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sie_{name}", help_, value=float(value))
