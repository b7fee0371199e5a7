"""`sie health`: is a server there, what is it, and how fast does it answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sie_core
from sie_core.cli.terminal import printable
from sie_core.errors import ModelNotFoundError, ServerError
from sie_core.types import Item

if TYPE_CHECKING:
    from sie_core.remote import SIEClient

_T = TypeVar("_T")

_QUERY = Item(text="what is the capital of France?")
_DOCUMENTS = [Item(text="Paris is the capital of France."), Item(text="Bananas are yellow.")]


@dataclass(slots=True)
class Report:
    """What was found out, in the order in which it was asked."""

    url: str
    protocol_version: str
    client_version: str = sie_core.__version__
    server_version: str | None = None
    health_ms: float | None = None
    models: list[dict[str, Any]] = field(default_factory=list)
    models_error: str | None = None
    probe_model: str | None = None
    probe_first_ms: float | None = None
    probe_ms: float | None = None


def health(
    url: Annotated[
        str | None,
        typer.Argument(metavar="URL", help="Address of the server.", show_default="SIE_BASE_URL"),
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Probe this model; else one that is loaded and scores, if any."),
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for each question.")
    ] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Ask a server whether it is alive, which models it has, and how fast it answers.

    Only a model that is loaded is probed, so as not to make a server load one.
    Name it with --model to probe it all the same.
    The server's key is read from SIE_API_KEY.
    Exit code 1 means that the server cannot be reached, or is not well.
    """
    from sie_core.remote import SIEClient  # its httpx would slow the start of every other command

    with SIEClient(url, timeout_seconds=timeout_seconds) as client:
        report = examine(client, model)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2, default=str))
    else:
        _show(report, Console())


def examine(client: SIEClient, model: str | None = None) -> Report:
    """Ask a server about itself.

    Raises:
        SIEError: It is not there, is not well, or the named model cannot be probed.
    """
    from sie_core.remote.wire import PROTOCOL_VERSION

    report = Report(client.base_url, PROTOCOL_VERSION)
    answer, report.health_ms = _timed(client.health)
    report.server_version = answer.get("server_version")
    try:
        report.models = client.list_models()
    except (ServerError, ModelNotFoundError) as exc:  # a gateway need not list them
        report.models_error = str(exc)
    report.probe_model = model or _loaded(report.models)
    if report.probe_model is not None:
        name = report.probe_model
        _, report.probe_first_ms = _timed(lambda: client.score(name, _QUERY, _DOCUMENTS))
        _, report.probe_ms = _timed(lambda: client.score(name, _QUERY, _DOCUMENTS))
    report.server_version = client.server_version or report.server_version
    return report


def _timed(ask: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    answer = ask()
    return answer, round(1000 * (time.perf_counter() - started), 2)


def _loaded(models: list[dict[str, Any]]) -> str | None:
    for model in models:
        outputs = model.get("outputs")
        if model.get("loaded") and isinstance(outputs, list) and "score" in outputs:
            return str(model.get("name"))
    return None


def _show(report: Report, console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    probe = "none: no model that scores is loaded; name one with --model"
    if report.probe_model is not None:
        times = f"{report.probe_first_ms} ms, then {report.probe_ms} ms"
        probe = f"{report.probe_model}, 2 documents: {times}"
    for name, value in (
        ("server", f"{report.url}, alive ({report.health_ms} ms)"),
        ("server version", report.server_version or "unknown (the server does not say)"),
        ("client version", f"{report.client_version}, speaks {report.protocol_version}"),
        ("models", report.models_error or str(len(report.models))),
        ("probe", probe),
    ):
        table.add_row(name, Text(printable(value)))
    console.print(table)
    if report.models:
        console.print(_model_table(report.models))


def _model_table(models: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("model", "state", "gives", "tokens"):
        table.add_column(name, overflow="fold")
    for model in models:
        outputs = model.get("outputs")
        cells = (
            model.get("name"),
            model.get("state") or ("loaded" if model.get("loaded") else "not loaded"),
            ", ".join(map(str, outputs)) if isinstance(outputs, list) else "",
            model.get("max_sequence_length") or "",
        )
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    return table
