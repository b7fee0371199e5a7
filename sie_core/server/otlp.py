"""Sending spans and metrics to an OpenTelemetry collector, for a process that is `sie serve`."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sie_core.errors import InvalidRequestError, MissingDependencyError
from sie_core.telemetry import use_providers
from sie_core.telemetry.instruments import find_instruments

_logger = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 5.0
"""How long the end of the server waits for the collector; the SDK alone would try for 20 s."""

_SERVICE_NAME: Final = "sie-server"
_ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_INSTALL: Final = 'pip install "sie-core[telemetry]"'


@contextlib.contextmanager
def exporting(endpoint: str | None = None) -> Iterator[bool]:
    """Send spans and metrics while inside, and say whether they are; what is left goes at the end.

    OpenTelemetry's own environment variables are heeded: OTEL_EXPORTER_OTLP_ENDPOINT and its kind,
    OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_TRACES_EXPORTER=none, OTEL_SDK_DISABLED.

    Args:
        endpoint: The collector's address for OTLP over HTTP, such as `http://localhost:4318`; None
            means what the environment says, and nothing where it says nothing.

    Raises:
        InvalidRequestError: The address is none, or the environment asks for another protocol.
        MissingDependencyError: The extra `telemetry` is not installed, and an address was given.
    """
    is_named = any(os.environ.get(name) for name in _ENDPOINTS)
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_disabled or (endpoint is None and not is_named):
        yield False
        return
    _check(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        if endpoint is not None:
            msg = f"exporting needs the extra telemetry ({exc}): {_INSTALL}"
            raise MissingDependencyError(msg) from exc
        _logger.warning("nothing is exported, because %s: %s", exc, _INSTALL)
        yield False
        return
    base = None if endpoint is None else endpoint.rstrip("/")
    resource = Resource.create(_own_attributes())
    tracer_provider = meter_provider = None
    exporters: list[Any] = []
    if _is_wanted("OTEL_TRACES_EXPORTER"):
        spans = OTLPSpanExporter(endpoint=None if base is None else f"{base}/v1/traces")
        exporters.append(spans)
        tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracer_provider.add_span_processor(BatchSpanProcessor(spans))
    if _is_wanted("OTEL_METRICS_EXPORTER"):
        metrics = OTLPMetricExporter(endpoint=None if base is None else f"{base}/v1/metrics")
        exporters.append(metrics)
        meter_provider = MeterProvider(
            [PeriodicExportingMetricReader(metrics)], resource=resource, shutdown_on_exit=False
        )
    use_providers(tracer_provider=tracer_provider, meter_provider=meter_provider)
    find_instruments()  # so that the engine is observed before the first call
    try:
        yield True
    finally:
        use_providers()
        _end([it for it in (tracer_provider, meter_provider) if it is not None], exporters)


def _end(providers: Sequence[Any], exporters: Sequence[Any]) -> None:
    """Send what is left; a collector that does not answer must not keep the process alive."""
    threads = [
        threading.Thread(target=provider.shutdown, name="sie-export-end", daemon=True)
        for provider in providers
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        for exporter in exporters:
            exporter.shutdown()  # gives up trying again
        _logger.warning(
            "the collector did not take what was left within %g s; it is lost", PATIENCE_SECONDS
        )


def _check(endpoint: str | None) -> None:
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        msg = f"the collector's address must be like http://localhost:4318, but got {endpoint!r}"
        raise InvalidRequestError(msg)
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if endpoint is None and protocol != "http/protobuf":
        msg = (
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, but spans are sent by http/protobuf "
            "alone, which collectors take on port 4318"
        )
        raise InvalidRequestError(msg)


def _is_wanted(variable: str) -> bool:
    return os.environ.get(variable, "otlp").strip().lower() != "none"


def _own_attributes() -> dict[str, str]:
    """Return the server's name, unless the environment gives it one."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return {} if named else {"service.name": _SERVICE_NAME}
