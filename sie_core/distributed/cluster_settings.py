"""How many replicas serve, on what, and how each of them computes. From flags and a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from sie_core.errors import InvalidRequestError
from sie_core.server.access_log import LogFormat
from sie_core.server.settings import ServerSettings
from sie_core.types import Mode


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The replicas, and when there are to be more or fewer of them.

    Attributes:
        app_name: The name that the application has in the Ray cluster.
        min_replicas: Replicas that there are without any load.
        max_replicas: Replicas that there are at most.
        target_ongoing_requests: Requests in progress per replica that Ray aims at: where there are
            more it starts replicas, where there are fewer it ends some.
        max_ongoing_requests: Requests that one replica is given at a time; it merges them into
            batches. More wait where they came in.
        max_loaded_models: Models that one replica holds; for another the one goes that was not
            used for longest. None for all.
        cores_per_replica: Cores that Ray sets aside for a replica, and that it computes with.
        gpus_per_replica: The same for GPUs; less than 1 shares one.
        upscale_delay_seconds: How long there must have been too much before a replica is started.
        downscale_delay_seconds: How long there must have been too little before one is ended.
        num_entrances: Replicas of what takes requests in, in an application of `sie serve` that Ray
            itself deploys. Rates are counted in each.
    """

    app_name: str = "sie"
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 8.0
    max_ongoing_requests: int = 64
    max_loaded_models: int | None = None
    cores_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    upscale_delay_seconds: float = 30.0
    downscale_delay_seconds: float = 600.0
    num_entrances: int = 1

    def __post_init__(self) -> None:
        """Check what the types do not say.

        Raises:
            InvalidRequestError: A value is wrong.
        """
        for name in ("min_replicas", "max_ongoing_requests", "max_loaded_models", "num_entrances"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"{name} must be at least 1, but got {value}"
                raise InvalidRequestError(msg)
        if self.max_replicas < self.min_replicas:
            msg = (
                f"max_replicas must be at least min_replicas, which is {self.min_replicas}, but "
                f"got {self.max_replicas}"
            )
            raise InvalidRequestError(msg)
        if not 0 < self.target_ongoing_requests <= self.max_ongoing_requests:
            msg = (
                "target_ongoing_requests must be more than 0 and at most max_ongoing_requests, "
                f"which is {self.max_ongoing_requests}, but got {self.target_ongoing_requests:g}"
            )
            raise InvalidRequestError(msg)
        for name in ("cores_per_replica", "gpus_per_replica"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                msg = f"{name} must be at least 0, but got {value}"
                raise InvalidRequestError(msg)
        if self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            msg = f"gpus_per_replica above 1 must be whole, but got {self.gpus_per_replica:g}"
            raise InvalidRequestError(msg)

    @property
    def actor_options(self) -> dict[str, float]:
        """What Ray is to set aside for a replica."""
        return {"num_cpus": self.cores_per_replica, "num_gpus": self.gpus_per_replica}

    @property
    def autoscaling(self) -> dict[str, float]:
        """What Ray Serve's autoscaler is told.

        It looks at as much of the past as it waits before it acts, which is half a minute at most.
        """
        look_back_seconds = min(30.0, max(1.0, self.upscale_delay_seconds))
        return {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
            "upscale_delay_s": self.upscale_delay_seconds,
            "downscale_delay_s": self.downscale_delay_seconds,
            "look_back_period_s": look_back_seconds,
            "metrics_interval_s": min(10.0, look_back_seconds / 2),
        }


class ReplicaEngine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How each replica computes: what `LocalClient` takes, and what is told of it.

    Attributes:
        device: `cuda` or `cpu`; None means the GPU that Ray gave it, else the CPU.
        mode: `auto`, `exact` or `fast`.
        dtype: A number format instead.
        num_threads: Cores used on the CPU; None means as many as Ray set aside.
        cache_dir: Folder for weights on each machine.
        log_format: `text` or `json`.
        log_level: What the log leaves out.
        otlp_endpoint: OpenTelemetry's collector; None means what the replica's environment says.
    """

    device: str | None = None
    mode: Mode = "auto"
    dtype: str | None = None
    num_threads: int | None = None
    cache_dir: str | None = None
    log_format: LogFormat = "text"
    log_level: str = "info"
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        """Check the device, which is Ray's to choose.

        Raises:
            InvalidRequestError: It names one of several.
        """
        if self.device not in {None, "cpu", "cuda"}:
            msg = (
                "on Ray, device must be cpu, cuda or left out, since Ray gives each replica its "
                f"GPUs, but got {self.device!r}; say how many by gpus_per_replica"
            )
            raise InvalidRequestError(msg)


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an application is told: the arguments of a manifest.

    Attributes:
        server: The models and the limits, as in the TOML file of `sie serve`.
        cluster: The replicas.
        engine: How each computes.
    """

    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    cluster: ClusterSettings = msgspec.field(default_factory=ClusterSettings)
    engine: ReplicaEngine = msgspec.field(default_factory=ReplicaEngine)

    def __post_init__(self) -> None:
        """Check what concerns several of them.

        Raises:
            InvalidRequestError: They contradict each other.
        """
        has_gpu = self.cluster.gpus_per_replica > 0
        if self.engine.device == "cuda" and not has_gpu:
            msg = (
                "device is cuda, but gpus_per_replica is 0, and Ray hides all GPUs from such a "
                "replica; give it one by gpus_per_replica, or part of one"
            )
            raise InvalidRequestError(msg)
        if self.engine.device == "cpu" and has_gpu:
            msg = (
                f"device is cpu, but gpus_per_replica is {self.cluster.gpus_per_replica:g}; leave "
                "one of them out"
            )
            raise InvalidRequestError(msg)


def read_deployment(arguments: Mapping[str, Any]) -> Deployment:
    """Read the arguments of a manifest.

    Raises:
        InvalidRequestError: One is unknown, or of the wrong type, or wrong.
    """
    try:
        return msgspec.convert(dict(arguments), Deployment)
    except msgspec.ValidationError as exc:
        cause = exc.__cause__
        if isinstance(cause, InvalidRequestError):
            raise cause from exc
        msg = f"the arguments of the application are wrong: {exc}"
        raise InvalidRequestError(msg) from exc
