"""The manifest for KubeRay: what it deploys is there, and takes the arguments it is given."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sie_core.distributed.cluster_settings import Deployment, read_deployment

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes" / "rayservice.yaml"


@pytest.fixture
def service() -> dict[str, Any]:
    """The RayService's specification."""
    (found,) = [it for it in yaml.safe_load_all(MANIFEST.read_text()) if it["kind"] == "RayService"]
    return dict(found["spec"])


@pytest.fixture
def served(service: dict[str, Any]) -> dict[str, Any]:
    """What Ray Serve is to do."""
    return dict(yaml.safe_load(service["serveConfigV2"]))


def deployment_of(served: dict[str, Any]) -> Deployment:
    """Read the arguments of the one application."""
    (application,) = served["applications"]
    return read_deployment(application["args"])


def test_ray_takes_the_configuration_and_finds_the_application(served: dict[str, Any]) -> None:
    """By its own schema, by the import path; and the builder builds of the arguments."""
    reason = "Ray is not installed: the extra distributed brings it"
    schema = pytest.importorskip("ray.serve.schema", reason=reason)
    schema.ServeDeploySchema.model_validate(served)
    (application,) = served["applications"]
    module, _, name = application["import_path"].partition(":")
    build = getattr(importlib.import_module(module), name)
    built = build(application["args"])
    assert type(built).__name__ == "Application"


def test_a_replica_fits_into_a_worker(service: dict[str, Any], served: dict[str, Any]) -> None:
    """One that asks for more cores or GPUs than a pod has would wait for ever."""
    cluster = deployment_of(served).cluster
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert cluster.cores_per_replica <= float(limits["cpu"])
    assert cluster.gpus_per_replica <= float(limits["nvidia.com/gpu"])
    assert group["minReplicas"] <= cluster.min_replicas
    assert group["maxReplicas"] >= cluster.max_replicas
    assert service["rayClusterConfig"]["enableInTreeAutoscaling"] is True


def test_times_and_ports_fit_each_other(service: dict[str, Any], served: dict[str, Any]) -> None:
    """Sie answers before Ray's proxy gives up, and is drained before its pod is killed."""
    settings = deployment_of(served).server
    assert served["http_options"]["request_timeout_s"] > settings.request_timeout_seconds
    cluster = service["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > settings.drain_seconds
    for pod in (cluster["headGroupSpec"]["template"], group["template"]):
        (container,) = pod["spec"]["containers"]
        ports = {it["name"]: it["containerPort"] for it in container["ports"]}
        assert ports["serve"] == served["http_options"]["port"]
        volumes = {it["name"] for it in pod["spec"]["volumes"]}
        mounts = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
        assert set(mounts) == volumes
        assert Path(str(settings.api_key_file)).parent == Path(mounts["keys"])
        assert deployment_of(served).engine.cache_dir == mounts["weights"]


def test_the_image_has_the_version_of_ray_that_is_named(service: dict[str, Any]) -> None:
    """KubeRay needs it; and the image that the manifest tells to build has the extra."""
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert service["rayClusterConfig"]["rayVersion"] == pinned[1]
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    assert re.search(r"^ARG EXTRAS=", dockerfile, re.MULTILINE)
    assert "EXTRAS=distributed," in MANIFEST.read_text()


def test_the_probes_are_programs() -> None:
    """They are Python that compiles, since the image has no wget."""
    probes = re.findall(r"- (import urllib.*)$", MANIFEST.read_text(), re.MULTILINE)
    assert probes
    for probe in probes:
        compile(probe, "probe", "exec")
