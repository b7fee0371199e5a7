"""`Economy`: the options by which a model scores fewer documents than there are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from sie_core.cascade import Stage
from sie_core.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Economy:
    """What is left out, as the options say."""

    cascade: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL:KEEP",
            help="A cheaper model that scores first, and the part (0.3) or number (30) of the "
            "candidates that go on. May be given more than once, in order.",
            rich_help_panel="Economy",
        ),
    ] = None
    max_latency_ms: Annotated[
        float | None,
        typer.Option(help="Rank with what is scored after this time.", rich_help_panel="Economy"),
    ] = None
    stop_when_stable: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after so many batches (of --batch-size, or 16) that left the top 10 as it "
            "was.",
            rich_help_panel="Economy",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Return what was set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a reranker.

        Raises:
            InvalidRequestError: A stage is not of the form MODEL:KEEP.
        """
        stages = [_to_stage(one) for one in self.cascade or ()]
        return self.settings() | ({"cascade": stages} if stages else {})


def _to_stage(given: str) -> Stage:
    model, _, keep = given.rpartition(":")
    try:
        number = int(keep) if keep.isdecimal() else float(keep)
    except ValueError:
        number = 0
    if not model or not number:
        msg = f"--cascade must be MODEL:KEEP, such as some/model:0.3, but got {given!r}"
        raise InvalidRequestError(msg)
    return Stage(model, number)
