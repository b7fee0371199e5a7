"""`Engine`: how a model runs in this process, for every command in which one does."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sie_core.cli.interrupt import exiting_at_interrupt
from sie_core.errors import MissingDependencyError

if TYPE_CHECKING:
    from sie_core.local import LocalClient


class ModeName(StrEnum):
    """How exactly the model computes."""

    AUTO = "auto"
    EXACT = "exact"
    FAST = "fast"


class EngineName(StrEnum):
    """Where models run: in this process, or in those of a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


def ray_address_option(panel: str) -> Any:
    """Make the option `--ray-address`, which means the same everywhere."""
    return typer.Option(
        metavar="HOST:PORT",
        help="With ray: the cluster's address; local starts one, whatever runs.",
        show_default="RAY_ADDRESS, else a cluster on this machine, else one is started",
        rich_help_panel=panel,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Device, exactness and threads, as the options say; None is the default of `LocalClient`."""

    device: Annotated[
        str | None,
        typer.Option(
            help="cuda, cuda:1, cpu or mps. Several GPUs, such as cuda:0,cuda:1, share the work.",
            show_default="cuda if there, else cpu",
            rich_help_panel="This process",
        ),
    ] = None
    mode: Annotated[
        ModeName,
        typer.Option(
            help="exact: float32. fast: half precision, where that is faster. auto: fast where it "
            "can be had.",
            rich_help_panel="This process",
        ),
    ] = ModeName.AUTO
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float16 or bfloat16, instead of --mode.",
            show_default="what the mode means",
            rich_help_panel="This process",
        ),
    ] = None
    num_threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cores used on the CPU.",
            show_default="SIE_NUM_THREADS, else all that this process may use",
            rich_help_panel="This process",
        ),
    ] = None

    def open_local(self, **settings: Any) -> LocalClient:
        """Make a client of this process's models; nothing is loaded yet.

        Args:
            settings: Of `LocalClient`, which one command alone has.
        """
        import_engine()
        from sie_core.local import LocalClient

        return LocalClient(
            device=self.devices,
            mode=self.mode.value,
            dtype=self.dtype,
            num_threads=self.num_threads,
            **settings,
        )

    @property
    def devices(self) -> str | list[str] | None:
        """The device, or a list where several were named."""
        device = self.device
        return device.split(",") if device and "," in device else device


def import_engine() -> None:
    """Import torch, so that Ctrl-C does it no harm.

    Where it is missing, a fallback may still answer; without one the first call says so.
    """
    with exiting_at_interrupt(), suppress(MissingDependencyError):
        import sie_core.local  # noqa: F401
