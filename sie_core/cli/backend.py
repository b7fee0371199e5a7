"""Which model scores, and where: the options that every command which scores takes alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from sie_core.cli.engine import Engine
from sie_core.reranker import Reranker

DEBUG = "sie.debug"
"""The key in a typer context's `meta` that says whether errors show their traceback."""

RerankerFactory = Callable[..., Reranker]
"""Makes the reranker from keyword arguments; `program(obj=…)` may give another than `Reranker`."""


def _remember_debug(ctx: typer.Context, *, value: bool) -> bool:
    ctx.meta[DEBUG] = value
    return value


ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model name or folder.", rich_help_panel="Model")
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=_remember_debug,
        is_eager=True,
        help="Show the traceback of an error.",
        rich_help_panel="Running",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend(Engine):
    """How and where models run; None is the default of `Reranker`."""

    instruction: Annotated[
        str | None,
        typer.Option(
            help="Put before the query, for models trained with instructions.",
            rich_help_panel="Model",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of query and document together.",
            show_default="the model's own maximum",
            rich_help_panel="Model",
        ),
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Address of an SIE server that scores. Its key is read from SIE_API_KEY "
            "only: other users of a machine can see command lines.",
            show_default="SIE_BASE_URL, else this process scores",
            rich_help_panel="Server",
        ),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(help="Machine profile on a cluster, such as l4.", rich_help_panel="Server"),
    ] = None
    wait_for_capacity: Annotated[
        bool,
        typer.Option(
            "--wait-for-capacity",
            help="Wait while the cluster starts a machine.",
            rich_help_panel="Server",
        ),
    ] = False
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs per forward pass at most.", rich_help_panel="This process"),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Give up when one query takes longer than this many seconds, loading included.",
            show_default="180 on a server, else none",
            rich_help_panel="Running",
        ),
    ] = None

    def open_reranker(
        self,
        model: str,
        make_reranker: RerankerFactory | None = None,
        *,
        base_url: str | None = None,
        **settings: Any,
    ) -> Reranker:
        """Make the reranker; nothing is loaded yet.

        Args:
            model: Name or folder.
            make_reranker: Makes it; None is `Reranker` itself.
            base_url: Instead of the options' server.
            settings: Of `Reranker`, which one command alone has.
        """
        return (make_reranker or Reranker)(
            model,
            base_url=base_url or self.base_url,
            gpu=self.gpu,
            wait_for_capacity=self.wait_for_capacity,
            instruction=self.instruction,
            timeout_seconds=self.timeout,
            device=self.devices,
            mode=self.mode.value,
            dtype=self.dtype,
            num_threads=self.num_threads,
            max_length=self.max_length,
            batch_size=self.batch_size,
            **settings,
        )

    def open_client(self, base_url: str | None) -> Any:
        """Make a bare client: of that server, or of this process where it is None."""
        if base_url is not None:
            from sie_core.remote import SIEClient  # its httpx would slow every command's start

            return SIEClient(
                base_url,
                timeout_seconds=self.timeout,
                wait_for_capacity=self.wait_for_capacity,
            )
        return self.open_local(timeout_seconds=self.timeout)

    def settings(self) -> dict[str, Any]:
        """Return what was set, by name."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}


def split_address(named: str) -> tuple[str, str | None]:
    """Split `NAME@http://host:port` into a model and a server's address; None where it has none."""
    found = re.fullmatch(r"(?P<model>.+)@(?P<url>https?://.+)", named)
    return (found["model"], found["url"]) if found else (named, None)
