"""One answer of many: how all replicas stand, as one server would tell it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sie_core.distributed.forwarding import ForwardedReply

_STATES: Final = ("loaded", "loading", "failed", "unloaded")
"""The first that any replica is in counts for all."""

REPLICA_LABEL: Final = "replica"


def merge_models(replies: Iterable[ForwardedReply]) -> list[dict[str, Any]]:
    """Say of each model what `GET /v1/models` says, of all replicas together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for reply in replies:
        for model in msgspec.json.decode(reply.body)["models"]:
            found.setdefault(model["name"], []).append(model)
    return [merge_model(models) for models in found.values()]


def merge_model(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say of one model how it stands: as it does where it stands best."""
    best = min(models, key=lambda model: _STATES.index(model["state"]))
    errors = [model["last_error"] for model in models if model["last_error"] is not None]
    return {**best, "last_error": None if best["loaded"] else next(iter(errors), None)}


def merge_standings(replies: Iterable[ForwardedReply]) -> dict[str, dict[str, Any]]:
    """Say how the models stand in what `GET /v1/status` says: numbers are sums over replicas."""
    merged: dict[str, dict[str, Any]] = {}
    for reply in replies:
        for name, standing in msgspec.json.decode(reply.body)["models"].items():
            total = merged.setdefault(name, {"state": standing["state"]})
            total["state"] = min(total["state"], standing["state"], key=_STATES.index)
            for key, value in standing.items():
                if key != "state":
                    total[key] = total.get(key, 0) + value
    return merged


class ClusterMetrics(Collector):
    """Metrics of this process as they are, and of each replica under its name.

    Args:
        own: Of this process.
        replies: What each replica answered at `/metrics`.
    """

    def __init__(self, own: Iterable[Metric], replies: Mapping[str, ForwardedReply]) -> None:
        self._own = own
        self._replies = replies

    def describe(self) -> Iterable[Metric]:
        """Name nothing before time."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Put samples of one name together, as the format wants them."""
        merged: dict[str, Metric] = {}
        for family in self._own:
            known = merged.setdefault(family.name, _empty(family))
            known.samples.extend(family.samples)
        for replica, reply in self._replies.items():
            for family in text_string_to_metric_families(reply.body.decode()):
                known = merged.setdefault(family.name, _empty(family))
                known.samples.extend(
                    sample._replace(labels={**sample.labels, REPLICA_LABEL: replica})
                    for sample in family.samples
                )
        yield from merged.values()


def _empty(family: Metric) -> Metric:
    return Metric(family.name, family.documentation, family.type)
