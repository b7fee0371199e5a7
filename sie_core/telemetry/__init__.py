"""Spans, metrics and counts of what is reranked and embedded. See docs/tracing.md.

They are made where calls are, in the core, so that all frameworks' components have them; nothing of
it needs OpenTelemetry, and where the program does not use that, nothing of it is done.
"""

from __future__ import annotations

from sie_core.telemetry.latency import Latency
from sie_core.telemetry.otel import use_providers
from sie_core.telemetry.rerank_event import RerankEvent, RerankStatus
from sie_core.telemetry.rerank_stats import RerankStats

__all__ = ["Latency", "RerankEvent", "RerankStats", "RerankStatus", "use_providers"]
