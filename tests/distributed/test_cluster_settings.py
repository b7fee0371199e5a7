"""Settings of a cluster: what is wrong is told with its value and a way out."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from sie_core.distributed.cluster_settings import (
    ClusterSettings,
    Deployment,
    ReplicaEngine,
    read_deployment,
)
from sie_core.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cluster": {"min_replicas": 0}}, "min_replicas must be at least 1, but got 0"),
        ({"cluster": {"min_replicas": 3, "max_replicas": 2}}, "which is 3, but got 2"),
        ({"cluster": {"target_ongoing_requests": 0}}, "target_ongoing_requests must be more than"),
        ({"cluster": {"target_ongoing_requests": 65}}, "which is 64, but got 65"),
        ({"cluster": {"max_loaded_models": 0}}, "max_loaded_models must be at least 1"),
        (
            {"cluster": {"cores_per_replica": -1}},
            "cores_per_replica must be at least 0, but got -1",
        ),
        ({"cluster": {"gpus_per_replica": 1.5}}, "must be whole, but got 1.5"),
        ({"cluster": {"replicas": 2}}, "unknown field `replicas`"),
        ({"server": {"max_items": "many"}}, "max_items"),
        ({"server": {"max_items": 0}}, "max_items must be at least 1, but got 0"),
        ({"engine": {"device": "cuda:1"}}, "gives each replica its GPUs, but got 'cuda:1'"),
        ({"engine": {"device": "cuda"}}, "gpus_per_replica is 0"),
        ({"engine": {"device": "cpu"}, "cluster": {"gpus_per_replica": 1}}, "leave one of them"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Before anything is deployed."""
    with pytest.raises(InvalidRequestError, match=message.replace("(", r"\(")):
        read_deployment(arguments)


def test_a_deployment_reaches_replicas_as_it_is() -> None:
    """Ray pickles it."""
    deployment = Deployment(
        cluster=ClusterSettings(max_replicas=2), engine=ReplicaEngine(mode="exact")
    )
    assert pickle.loads(pickle.dumps(deployment)) == deployment
