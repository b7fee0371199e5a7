"""`sie serve`: the SIE protocol over models that run in this process."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sie_core.cli.backend import DebugOption
from sie_core.cli.engine import Engine, EngineName, ray_address_option
from sie_core.cli.groups import grouped
from sie_core.errors import InvalidRequestError, MissingDependencyError
from sie_core.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from sie_core.distributed.serving import Cluster
    from sie_core.server.settings import ModelSettings, ServerSettings

_LOOPBACK = "127.0.0.1"


class LogFormatName(StrEnum):
    """How the log is written."""

    TEXT = "text"
    JSON = "json"


class LogLevelName(StrEnum):
    """What the log leaves out."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What callers may use besides what is loaded at the start, as the options say."""

    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Another model, loaded at its first use. May be repeated.",
            rich_help_panel="Models",
        ),
    ] = None
    allow_any_model: Annotated[
        bool,
        typer.Option(
            "--allow-any-model",
            help="Load whatever model of the hub a caller names: it is downloaded.",
            rich_help_panel="Models",
        ),
    ] = False
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="An adapter that callers may name by options.lora, for every model that it fits. "
            "May be repeated.",
            rich_help_panel="Models",
        ),
    ] = None
    allow_reload: Annotated[
        bool,
        typer.Option(
            "--allow-reload",
            help="Let callers reload models from where they came: POST /v1/models/MODEL/reload.",
            rich_help_panel="Models",
        ),
    ] = False
    wait_for_load: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Let calls wait for a model that is being loaded, before they are told to come "
            "back.",
            show_default="0",
            rich_help_panel="Models",
        ),
    ] = None
    max_loaded_models: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Models kept loaded; the least recently used leave first.",
            rich_help_panel="Models",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Return what was set, by the names of `ServerSettings`."""
        return {
            "allow_any_model": self.allow_any_model or None,
            "allow_reload": self.allow_reload or None,
            "wait_for_load_seconds": self.wait_for_load,
        }

    def listed(
        self, configured: tuple[ModelSettings, ...], preloaded: list[str]
    ) -> tuple[ModelSettings, ...]:
        """Return what is served: what a file has, what is named, and what is allowed.

        Raises:
            InvalidRequestError: A name with a folder, or an adapter, is not NAME=FOLDER.
        """
        from sie_core.server.settings import ModelSettings

        listed = [*configured]
        listed += [_named(name, preload=True) for name in preloaded]
        listed += [_named(name, preload=False) for name in self.allow or ()]
        if not listed and not self.allow_any_model:
            listed = [ModelSettings(name=DEFAULT_MODEL)]
        loras = dict(_pair(text, "lora") for text in self.lora or ())
        return tuple(it.with_loras(loras) for it in listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may call, and how much, as the options say."""

    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Who may call: lines that `sie key` made. Read again when it changes.",
            show_default="everyone may",
            rich_help_panel="Access",
        ),
    ] = None
    rate_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT",
            help="For each key, or each address where there are no keys: 600/minute, "
            "'5000 items/minute', '100000 tokens/hour'. May be repeated.",
            rich_help_panel="Access",
        ),
    ] = None
    max_queued_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens that may wait for one model.",
            show_default="1,048,576",
            rich_help_panel="Access",
        ),
    ] = None
    open_metrics: Annotated[
        bool,
        typer.Option(
            "--open-metrics",
            help="Let everyone read /metrics, though there are keys.",
            rich_help_panel="Access",
        ),
    ] = False
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may call, such as https://search.example.org. May be "
            "repeated.",
            rich_help_panel="Access",
        ),
    ] = None
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="Certificate in PEM: the server then speaks HTTPS.", rich_help_panel="Access"
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Its private key, if that is in another file.", rich_help_panel="Access"),
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            help="Let in only callers with a certificate of these.", rich_help_panel="Access"
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Return what was set, by the names of `ServerSettings`."""
        return {
            "api_key_file": _text(self.api_key_file),
            "rate_limits": tuple(self.rate_limit) if self.rate_limit else None,
            "max_queued_tokens": self.max_queued_tokens,
            "open_metrics": self.open_metrics or None,
            "allowed_origins": tuple(self.allow_origin) if self.allow_origin else None,
            "tls_cert": _text(self.tls_cert),
            "tls_key": _text(self.tls_key),
            "tls_client_ca": _text(self.tls_client_ca),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """What is told of the calls, and to whom, as the options say."""

    log_format: Annotated[
        LogFormatName,
        typer.Option(help="Lines for people, or JSON for machines.", rich_help_panel="Watching"),
    ] = LogFormatName.TEXT
    log_level: Annotated[
        LogLevelName,
        typer.Option(help="debug also shows health checks.", rich_help_panel="Watching"),
    ] = LogLevelName.INFO
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Collector for OpenTelemetry's spans and metrics, by OTLP over HTTP, such as "
            "http://localhost:4318. Needs the extra telemetry.",
            show_default="OTEL_EXPORTER_OTLP_ENDPOINT",
            rich_help_panel="Watching",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many processes compute, on a Ray cluster, as the options say."""

    engine: Annotated[
        EngineName,
        typer.Option(
            help="local: models run in this process. ray: in replicas on a Ray cluster, of which "
            "there are as many as the load needs. Needs the extra distributed.",
            rich_help_panel="Cluster",
        ),
    ] = EngineName.LOCAL
    min_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Replicas without any load.",
            show_default="1",
            rich_help_panel="Cluster",
        ),
    ] = None
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Replicas at most.",
            show_default="as --min-replicas",
            rich_help_panel="Cluster",
        ),
    ] = None
    target_ongoing_requests: Annotated[
        float | None,
        typer.Option(
            help="Requests in progress per replica above which there are to be more replicas.",
            show_default="8",
            rich_help_panel="Cluster",
        ),
    ] = None
    cores_per_replica: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Cores for each replica.",
            show_default="1",
            rich_help_panel="Cluster",
        ),
    ] = None
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs for each replica; less than 1 shares one.",
            show_default="0",
            rich_help_panel="Cluster",
        ),
    ] = None
    ray_address: Annotated[str | None, ray_address_option("Cluster")] = None
    ray_app: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The application's name in that cluster.",
            show_default="sie",
            rich_help_panel="Cluster",
        ),
    ] = None

    @property
    def is_ray(self) -> bool:
        """Whether models run on a Ray cluster.

        Raises:
            InvalidRequestError: They do not, and an option is given that speaks of one.
        """
        if self.engine is EngineName.RAY:
            return True
        given = [it.name for it in fields(self) if it.name != "engine" and self._has(it.name)]
        if given:
            option = "--" + given[0].replace("_", "-")
            msg = (
                f"{option} {getattr(self, given[0])} is about replicas on a Ray cluster: add "
                "--engine ray, or leave it out"
            )
            raise InvalidRequestError(msg)
        return False

    def settings(self) -> dict[str, Any]:
        """Return what was set, by the names of `ClusterSettings`."""
        min_replicas = self.min_replicas or 1
        given = {
            "app_name": self.ray_app,
            "min_replicas": min_replicas,
            "max_replicas": min_replicas if self.max_replicas is None else self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
            "cores_per_replica": self.cores_per_replica,
            "gpus_per_replica": self.gpus_per_replica,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None


@grouped
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Models to load at the start: names, folders, or NAME=FOLDER.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = _LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8080,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with models, profiles, adapters and limits.")
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How long requests in progress may still take at the end.",
            show_default="30",
        ),
    ] = None,
    shelf: Models,
    access: Access,
    watching: Watching,
    replicas: Replicas,
    process: Engine,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for weights.",
            show_default="SIE_CACHE_DIR",
            rich_help_panel="This process",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Serve rerankers and encoders to other programs, by the protocol of the SIE server.

    Stops at Ctrl-C or SIGTERM: requests in progress are finished first.
    """
    del debug
    try:
        from sie_core.server.access_log import configure_logging
        from sie_core.server.otlp import exporting
        from sie_core.server.run import Server
        from sie_core.server.settings import ServerSettings, read_settings
    except ImportError as exc:
        msg = (
            f"serving needs the extras local and server ({exc}): "
            'pip install "sie-core[local,server,cli]"'
        )
        raise MissingDependencyError(msg) from exc

    configure_logging(watching.log_format.value, level=watching.log_level.value)
    given = {} if config is None else read_settings(config)
    flags = {"drain_seconds": drain_seconds, **shelf.settings(), **access.settings()}
    given |= {name: value for name, value in flags.items() if value is not None}
    given["models"] = shelf.listed(given.get("models", ()), models or [])
    settings = ServerSettings(**given)
    with ExitStack() as ending:
        if replicas.is_ray:
            cluster = ending.enter_context(
                _open_cluster(
                    settings,
                    shelf=shelf,
                    replicas=replicas,
                    process=process,
                    watching=watching,
                    cache_dir=cache_dir,
                )
            )
            server = Server(settings, host=host, port=port, make_app=cluster.make_app)
        else:
            ending.enter_context(exporting(watching.otlp_endpoint))
            client = process.open_local(
                max_queued_tokens=settings.max_queued_tokens,
                max_loaded_models=shelf.max_loaded_models,
                cache_dir=cache_dir,
            )
            server = Server(settings, host=host, port=port, client=client)
        typer.echo(f"sie serves at {server.url}", err=True)
        server.run()


def _open_cluster(
    settings: ServerSettings,
    *,
    shelf: Models,
    replicas: Replicas,
    process: Engine,
    watching: Watching,
    cache_dir: Path | None,
) -> Cluster:
    """Make the cluster that is to compute, as the options say."""
    from sie_core.distributed.cluster_settings import ClusterSettings, Deployment, ReplicaEngine

    try:
        from sie_core.distributed.serving import Cluster
    except ImportError as exc:
        msg = (
            f"serving on a cluster needs the extra distributed ({exc}): "
            'pip install "sie-core[distributed,local,server,cli]"'
        )
        raise MissingDependencyError(msg) from exc

    deployment = Deployment(
        server=settings,
        cluster=ClusterSettings(max_loaded_models=shelf.max_loaded_models, **replicas.settings()),
        engine=ReplicaEngine(
            device=process.device,
            mode=process.mode.value,
            dtype=process.dtype,
            num_threads=process.num_threads,
            cache_dir=_text(cache_dir),
            log_format=watching.log_format.value,
            log_level=watching.log_level.value,
            otlp_endpoint=watching.otlp_endpoint,
        ),
    )
    return Cluster(deployment, address=replicas.ray_address)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _named(text: str, *, preload: bool) -> ModelSettings:
    """Read MODEL or NAME=FOLDER."""
    from sie_core.server.settings import ModelSettings

    if "=" not in text:
        return ModelSettings(name=text, preload=preload)
    name, source = _pair(text, "model")
    return ModelSettings(name=name, source=source, preload=preload)


def _pair(text: str, what: str) -> tuple[str, str]:
    name, sign, source = text.partition("=")
    if not sign or not name.strip() or not source.strip():
        msg = f"a {what} must be NAME=FOLDER, but got {text!r}"
        raise InvalidRequestError(msg)
    return name.strip(), source.strip()
