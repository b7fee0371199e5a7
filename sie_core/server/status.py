"""`GET /v1/status`: how the server stands, in numbers that the page at `/` draws."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sie_core.server.bodies import json_reply
from sie_core.server.service import Service
from sie_core.server.shelf import Shelved


async def status(request: Request) -> Response:
    """Answer `GET /v1/status`."""
    return json_reply(describe(request.app.state.service))


def describe(service: Service) -> dict[str, Any]:
    """Return how a service and its models stand.

    Returns:
        `uptime_s`; by model its `state`, and where it is loaded what waits and what was done since
        (`queued_tokens`, `queued_requests`, `batches`, `sequences`, `tokens`, `busy_s`) and the
        `bytes` of its weights; of `requests` with a body the `total` that are over, those
        `failed` and those `in_flight`; `latency_ms` of the last minute's answers, null for none.
    """
    calls = service.door.calls
    percentiles = calls.percentiles(0.5, 0.95)
    p50, p95 = [None, None] if percentiles is None else [1000 * it for it in percentiles]
    return {
        "uptime_s": time.monotonic() - service.started,
        "models": {shelved.name: _model(service, shelved) for shelved in service.shelf},
        "requests": {
            "total": calls.num_calls,
            "failed": calls.num_failed,
            "in_flight": service.door.num_requests,
        },
        "latency_ms": {"p50": p50, "p95": p95},
    }


def _model(service: Service, shelved: Shelved) -> dict[str, Any]:
    standing: dict[str, Any] = {"state": service.shelf.state(shelved)}
    loaded = service.shelf.loaded(shelved)
    if loaded is None:
        return standing
    stats = loaded.scheduler.stats()
    return standing | {
        "queued_tokens": stats.num_queued_tokens,
        "queued_requests": stats.num_queued_requests,
        "batches": stats.num_batches,
        "sequences": stats.num_sequences,
        "tokens": stats.num_tokens,
        "busy_s": stats.busy_seconds,
        "bytes": loaded.num_bytes,
    }
