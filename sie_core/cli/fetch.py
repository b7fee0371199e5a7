"""`sie fetch`: weights and data into the cache, ahead of time."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sie_core.models import sources
from sie_core.settings import DEFAULT_MODEL, SourceSettings


class Dataset(StrEnum):
    """The data sets that can be fetched by name."""

    HOTPOTQA = "hotpotqa"


def fetch(
    model: Annotated[
        list[str] | None,
        typer.Argument(help=f"Names of models.  [default: {DEFAULT_MODEL}]", show_default=False),
    ] = None,
    *,
    dataset: Annotated[
        list[Dataset] | None, typer.Option(help="A data set to fetch as well.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the models on the hub.")
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for weights and data; else SIE_CACHE_DIR, else the platform's."),
    ] = None,
) -> None:
    """Fetch models into the cache, so that later calls need no network.

    What is there already is left alone. For images and machines that will be offline:

        sie fetch BAAI/bge-reranker-v2-m3
    """
    settings = SourceSettings(cache_dir=cache_dir, revision=revision)
    for name in model or [DEFAULT_MODEL]:
        files = sources.resolve(name, settings)
        typer.echo(f"{files.name}: {files.folder} ({files.source})")
    for chosen in dataset or []:
        from sie_core.evaluation.datasets import load_hotpotqa  # reads a large file

        questions = load_hotpotqa(cache_dir=cache_dir)
        typer.echo(f"{chosen}: {len(questions)} questions")
