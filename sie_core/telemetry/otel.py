"""OpenTelemetry where the program uses it, and nothing where it does not.

Nothing here imports the package `opentelemetry`: it is used once the program has imported it, as
whoever sets it up must. Others pay a look into `sys.modules` for each call, and need not have it.
What goes wrong in here, in an exporter of the program's, say, is logged once and fails no call.

    from sie_core import telemetry

    telemetry.use_providers(tracer_provider=…, meter_provider=…)  # instead of the global ones
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

_logger = logging.getLogger(__name__)

SCOPE: Final = "sie_core"
"""The name of the instrumentation, for spans and metrics."""

MAX_TRACED_DOCUMENTS: Final = 20
"""Documents written on a span: by default OpenTelemetry keeps 128 attributes of one."""

SpanKind = Literal["internal", "server"]

Reading = tuple[Mapping[str, str], Mapping[str, float]]
"""Which model it is, and its counters by the names of `SchedulerStats`."""

EngineReadings = Callable[[], Iterable[Reading]]
"""Returns a reading of each loaded model."""


@dataclass(slots=True)
class _State:
    """What was set, and what was made of it; of one process."""

    tracer_provider: Any = None
    meter_provider: Any = None
    made_tracer: tuple[Any, Any] | None = None
    made_meter: tuple[Any, Any] | None = None
    read_engines: EngineReadings | None = None
    has_warned: bool = False


_state = _State()


def use_providers(*, tracer_provider: Any = None, meter_provider: Any = None) -> None:
    """Send spans and metrics to these providers; None means OpenTelemetry's global one."""
    _state.tracer_provider, _state.meter_provider = tracer_provider, meter_provider
    _state.made_tracer = _state.made_meter = None


def shows_content(choice: bool | None = None) -> bool:
    """Tell whether queries and texts may stand on spans: as chosen, else as SIE_TRACE_CONTENT says.

    They may not unless someone says so.
    """
    if choice is not None:
        return choice
    return os.environ.get("SIE_TRACE_CONTENT", "").strip().lower() in ("1", "true", "yes", "on")


def find_tracer() -> Any | None:
    """Return a tracer; None where nobody has set one up."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not hasattr(trace, "get_tracer_provider"):  # or it is being imported
        return None
    provider = _state.tracer_provider or trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    if _state.made_tracer is None or _state.made_tracer[0] is not provider:
        _state.made_tracer = (provider, provider.get_tracer(SCOPE))
    return _state.made_tracer[1]


def find_meter() -> Any | None:
    """Return a meter; None where OpenTelemetry is not in use. It is the same one every time."""
    metrics = sys.modules.get("opentelemetry.metrics")
    if metrics is None or not hasattr(metrics, "get_meter"):
        return None
    # The global provider may be set later: its proxy's instruments become real then.
    provider = _state.meter_provider or metrics
    if _state.made_meter is None or _state.made_meter[0] is not provider:
        _state.made_meter = (provider, provider.get_meter(SCOPE))
    return _state.made_meter[1]


def has_metrics() -> bool:
    """Tell whether OpenTelemetry's metrics are in use."""
    return "opentelemetry.metrics" in sys.modules


def observe_engines(read: EngineReadings) -> None:
    """Say where the counters of the models in this process are read when metrics are collected."""
    _state.read_engines = read


def read_engines() -> list[Reading]:
    """Return the counters of the models in this process; none where there is no engine."""
    return [] if _state.read_engines is None else list(_state.read_engines())


class Span:
    """One span under way, or none: then nothing is done.

    Attributes:
        context: In which what belongs under it is done; see `within`. None where there is no span.
        is_recording: Whether attributes are wanted.
    """

    __slots__ = ("_span", "context", "is_recording")

    def __init__(self, span: Any = None, context: Any = None) -> None:
        self._span = span
        self.context = context
        self.is_recording = span is not None and span.is_recording()

    @classmethod
    def start(
        cls,
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        kind: SpanKind = "internal",
        parent: Any = None,
    ) -> Span:
        """Begin a span under `parent`, a context, or else under what is going on here."""
        tracer = find_tracer()
        if tracer is None:
            return NO_SPAN
        with harmless():
            trace = sys.modules["opentelemetry.trace"]
            span = tracer.start_span(
                name,
                context=parent,
                kind=getattr(trace.SpanKind, kind.upper()),
                attributes=attributes,
            )
            return cls(span, trace.set_span_in_context(span, parent))
        return NO_SPAN

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Write attributes; those that are None are left out."""
        if not self.is_recording:
            return
        with harmless():
            self._span.set_attributes(
                {name: value for name, value in attributes.items() if value is not None}
            )

    def rename(self, name: str) -> None:
        """Give it another name."""
        if self.is_recording:
            with harmless():
                self._span.update_name(name)

    def fail(self, error_type: str, error: BaseException | None = None) -> None:
        """Mark it as failed. The error itself is written only if given: it may quote a text."""
        if not self.is_recording:
            return
        with harmless():
            status = sys.modules["opentelemetry.trace"].StatusCode.ERROR
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(status, error_type if error is None else f"{error}")
            if error is not None:
                self._span.record_exception(error)

    def end(self) -> None:
        """End it."""
        if self._span is not None:
            with harmless():
                self._span.end()


NO_SPAN: Final = Span()
"""Stands for a span where there is none."""


def within(context: Any | None) -> AbstractContextManager[None]:
    """Let what is done inside belong to a span's context; None changes nothing."""
    return nullcontext() if context is None else _attached(context)


@contextlib.contextmanager
def _attached(context: Any) -> Iterator[None]:
    api = importlib.import_module("opentelemetry.context")
    token = api.attach(context)
    try:
        yield
    finally:
        api.detach(token)


def inject(headers: MutableMapping[str, str]) -> None:
    """Write what is going on here into a request's headers: W3C `traceparent`, as configured."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not hasattr(trace, "get_current_span"):
        return
    with harmless():
        if trace.get_current_span().get_span_context().is_valid:
            importlib.import_module("opentelemetry.propagate").inject(headers)


def extract(headers: Mapping[str, str]) -> Any | None:
    """Return the context that a request's headers speak of; None where there is no tracing."""
    if find_tracer() is None:
        return None
    with harmless():
        return importlib.import_module("opentelemetry.propagate").extract(headers)
    return None


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Let no error out; the first of them is logged."""
    try:
        yield
    except Exception as exc:  # telemetry fails no call
        level = logging.DEBUG if _state.has_warned else logging.WARNING
        _state.has_warned = True
        _logger.log(level, "telemetry failed: %s: %s", type(exc).__name__, exc, exc_info=exc)
