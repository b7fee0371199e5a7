"""`sie serve`: the SIE protocol over models that run in this process."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sie_core.cli.backend import DebugOption, ModeName
from sie_core.errors import InvalidRequestError, MissingDependencyError
from sie_core.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from sie_core.server.settings import ModelSettings

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
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="Another model, loaded at its first use. May be repeated."
        ),
    ] = None,
    allow_any_model: Annotated[
        bool,
        typer.Option(help="Load whatever model of the hub a caller names: it is downloaded."),
    ] = False,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="An adapter that callers may name by options.lora, for every model that it fits. "
            "May be repeated.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with models, profiles, adapters and limits.")
    ] = None,
    wait_for_load: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Let calls wait for a model that is being loaded, before they are told to come "
            "back.",
            show_default="0",
        ),
    ] = None,
    max_loaded_models: Annotated[
        int | None,
        typer.Option(min=1, help="Models kept loaded; the least recently used leave first."),
    ] = None,
    max_queued_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that may wait for one model.", show_default="1,048,576"),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How long requests in progress may still take at the end.",
            show_default="30",
        ),
    ] = None,
    allow_reload: Annotated[
        bool,
        typer.Option(help="Let callers reload models: POST /v1/models/MODEL/reload."),
    ] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Who may call: lines that `sie key` made. Read again when it changes.",
            show_default="everyone may",
        ),
    ] = None,
    rate_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT",
            help="For each key, or each address where there are no keys: 600/minute, "
            "'5000 items/minute', '100000 tokens/hour'. May be repeated.",
        ),
    ] = None,
    open_metrics: Annotated[
        bool, typer.Option(help="Let everyone read /metrics, though there are keys.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may call, such as https://search.example.org. May be "
            "repeated.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate in PEM: the server then speaks HTTPS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key, if that is in another file.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Let in only callers with a certificate of these.")
    ] = None,
    log_format: Annotated[
        LogFormatName, typer.Option(help="Lines for people, or JSON for machines.")
    ] = LogFormatName.TEXT,
    log_level: Annotated[
        LogLevelName, typer.Option(help="debug also shows health checks.")
    ] = LogLevelName.INFO,
    device: Annotated[
        str | None,
        typer.Option(help="cuda, cuda:1, cpu, mps; several CUDA devices with commas between."),
    ] = None,
    mode: Annotated[
        ModeName, typer.Option(help="exact: float32; fast: half precision, where it is faster.")
    ] = ModeName.AUTO,
    num_threads: Annotated[int | None, typer.Option(min=1, help="Cores used on the CPU.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder for weights.", show_default="SIE_CACHE_DIR")
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Collector for OpenTelemetry's spans and metrics, by OTLP over HTTP, such as "
            "http://localhost:4318. Needs the extra telemetry.",
            show_default="OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Serve rerankers and encoders to other programs, by the protocol of the SIE server.

    Stops at Ctrl-C or SIGTERM: requests in progress are finished first.
    """
    del debug
    try:
        from sie_core.local import LocalClient
        from sie_core.server.access_log import configure_logging
        from sie_core.server.otlp import exporting
        from sie_core.server.run import Server
        from sie_core.server.settings import ModelSettings, ServerSettings, read_settings
    except ImportError as exc:
        msg = (
            f"serving needs the extras local and server ({exc}): "
            'pip install "sie-core[local,server,cli]"'
        )
        raise MissingDependencyError(msg) from exc

    configure_logging(log_format.value, level=log_level.value)
    given: dict[str, Any] = read_settings(config) if config is not None else {}
    listed = [*given.get("models", ())]
    listed += [_named(name, preload=True) for name in models or ()]
    listed += [_named(name, preload=False) for name in allow or ()]
    if not listed and not allow_any_model:
        listed = [ModelSettings(name=DEFAULT_MODEL)]
    loras = dict(_pair(text, "lora") for text in lora or ())
    given["models"] = tuple(
        ModelSettings(
            name=it.name,
            source=it.source,
            preload=it.preload,
            profiles=it.profiles,
            loras={**loras, **it.loras},
        )
        for it in listed
    )
    flags = {
        "allow_any_model": allow_any_model or None,
        "wait_for_load_seconds": wait_for_load,
        "max_queued_tokens": max_queued_tokens,
        "drain_seconds": drain_seconds,
        "allow_reload": allow_reload or None,
        "api_key_file": _text(api_key_file),
        "rate_limits": tuple(rate_limit) if rate_limit else None,
        "open_metrics": open_metrics or None,
        "allowed_origins": tuple(allow_origin) if allow_origin else None,
        "tls_cert": _text(tls_cert),
        "tls_key": _text(tls_key),
        "tls_client_ca": _text(tls_client_ca),
    }
    settings = ServerSettings(
        **{**given, **{name: value for name, value in flags.items() if value is not None}}
    )
    client = LocalClient(
        device=device.split(",") if device is not None and "," in device else device,
        mode=mode.value,
        num_threads=num_threads,
        max_queued_tokens=settings.max_queued_tokens,
        max_loaded_models=max_loaded_models,
        cache_dir=cache_dir,
    )
    with exporting(otlp_endpoint):
        server = Server(settings, host=host, port=port, client=client)
        typer.echo(f"sie serves at {server.url}", err=True)
        server.run()


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
