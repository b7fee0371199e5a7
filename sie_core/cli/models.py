"""`sie models`: the models that are known by name, or what is known of one name or folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sie_core.cli.terminal import printable
from sie_core.errors import MissingDependencyError, ModelNotFoundError
from sie_core.models import sources
from sie_core.models.catalog import CATALOG, ModelSpec, close_names, find
from sie_core.models.description import describe
from sie_core.models.recognition import Kind
from sie_core.settings import SourceSettings

_KINDS: dict[Kind, tuple[str, str]] = {
    "cross-encoder": (
        "Cross-encoders",
        "read query and document together and give one score: fast rerankers.",
    ),
    "causal-reranker": (
        "Causal-LM rerankers",
        "ask a language model, and follow an instruction: larger, for GPUs.",
    ),
    "late-interaction": (
        "Late interaction (ColBERT)",
        "give a vector per token; document vectors can be computed once and kept.",
    ),
    "dense": ("Dense encoders", "give one vector per text, for first-stage retrieval."),
}
"""Each kind's heading, and what its models do."""

KindName = StrEnum("KindName", {name: name for name in get_args(Kind)})  # type: ignore[misc]
"""The kinds as choices on a command line."""


def models(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[NAME_OR_FOLDER]", help="Tell about this one.", show_default=False),
    ] = None,
    *,
    kind: Annotated[KindName | None, typer.Option(help="List this kind only.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with every field, instead.")
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/models.md instead.")
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for weights and data; else SIE_CACHE_DIR, else the platform's."),
    ] = None,
) -> None:
    """List the models known by name, and when to choose which; or tell about one.

    Others work too, by name or folder: what a folder is recognised as, or why it is refused, is
    told by

        sie models ./my-model

    Nothing is downloaded.
    """
    if model is not None:
        facts = _tell(model, SourceSettings(cache_dir=cache_dir))
        if as_json:
            typer.echo(json.dumps(facts, indent=2))
        else:
            Console().print(_facts_table(facts))
        return
    chosen = [spec for spec in CATALOG if kind in (None, spec.kind, *spec.also)]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(spec) for spec in chosen], indent=2))
    elif as_markdown:
        typer.echo(_markdown(chosen), nl=False)
    else:
        _print_tables(chosen, Console())


def _by_kind(specs: list[ModelSpec]) -> Iterator[tuple[Kind, list[ModelSpec]]]:
    for kind in get_args(Kind):
        of_kind = [spec for spec in specs if spec.kind == kind]
        if of_kind:
            yield kind, of_kind


def _print_tables(specs: list[ModelSpec], console: Console) -> None:
    # Names are what people copy: they are not broken where the terminal can hold them.
    longest = max(len(spec.name) for spec in specs)
    for kind, of_kind in _by_kind(specs):
        heading, what = _KINDS[kind]
        console.print(Text.assemble((heading, "bold"), f" {what}\n"))
        table = Table(box=box.SIMPLE, padding=0, show_edge=False, show_lines=True)
        table.add_column("model", overflow="fold", min_width=longest)
        table.add_column("size", justify="right")
        table.add_column("languages", min_width=len("multilingual"))
        table.add_column("tokens", justify="right")
        table.add_column("licence")
        for spec in of_kind:
            table.add_row(
                Text.assemble((spec.name, "bold"), "\n", (_advice(spec), "dim")),
                _size(spec.num_parameters),
                ", ".join(spec.languages),
                _tokens(spec),
                _license(spec),
            )
        console.print(table)
        console.print()


def _advice(spec: ModelSpec) -> str:
    scores = f" Scores: {spec.score_space}." if spec.kind != "dense" else ""
    also = f" Also: {', '.join(spec.also)}." if spec.also else ""
    return spec.when_to_choose + scores + also


def _size(num_parameters: int) -> str:
    billion = 1_000_000_000
    if num_parameters >= billion:
        return f"{num_parameters / billion:.1f} B"
    return f"{num_parameters / 1e6:.0f} M"


def _tokens(spec: ModelSpec) -> str:
    if spec.max_query_length is None:
        return str(spec.max_length)
    return f"{spec.max_query_length} + {spec.max_length}"


def _license(spec: ModelSpec) -> str:
    note = f" ({spec.license_note})" if spec.license_note else ""
    return f"{spec.license}{note}" + (", not commercial" if spec.is_non_commercial else "")


def _tell(model: str, settings: SourceSettings) -> dict[str, Any]:
    """Return what is known of a model: of the catalogue's, and of its files where they are.

    Raises:
        ModelNotFoundError: It is neither in the catalogue nor on this machine.
        SIEError: Its files do not run here, or are broken.
    """
    spec = find(model)
    facts: dict[str, Any] = {} if spec is None else dataclasses.asdict(spec)
    try:
        files = sources.locate(model, settings)
    except MissingDependencyError as exc:
        return facts | {"here": f"not known: {exc}"}
    if files is not None:
        found = dataclasses.asdict(describe(files.folder))
        return facts | {"here": f"{files.folder} ({files.source})", "files": found}
    if spec is None:
        close = close_names(model)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        msg = (
            f"{model!r} is neither in the catalogue nor on this machine; `sie fetch {model}` "
            f"fetches it if the hub has it, and `sie models` lists those known by name.{hint}"
        )
        raise ModelNotFoundError(msg)
    return facts | {"here": f"not on this machine; `sie fetch {spec.name}` fetches it"}


def _facts_table(facts: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = dict(facts)
    rows |= {f"in its files: {name}": value for name, value in rows.pop("files", {}).items()}
    for name, value in rows.items():
        if value is None or value in ((), {}, False):
            continue
        table.add_row(name.replace("_", " "), Text(printable(_shown(value))))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


_PREFACE = """# Models

What is known by name. `sie models --markdown > docs/models.md` writes this page from the
catalogue (`sie_core/models/catalog.py`), and a test fails when it is stale. `sie models NAME` tells
all that is known of one, and whether it is on this machine; `sie models FOLDER` tells what a folder
is recognised as, or why it is refused.

Others work too: any BERT, RoBERTa, XLM-RoBERTa or ModernBERT with one score or two labels; ColBERT
models and sentence encoders made of the same; rerankers made of Gemma, Qwen2 and Qwen3 by the
prompts of those below. Code in a model's repository is never run.

Tokens are those of query and document together; for late interaction, of a query + of a document;
for dense encoders, of a text. Scores are what the authors' own code gives, raw or a probability,
and either can be asked for with `score_space`.
"""


def _markdown(specs: list[ModelSpec]) -> str:
    lines = [_PREFACE]
    for kind, of_kind in _by_kind(specs):
        heading, what = _KINDS[kind]
        lines += [f"## {heading}\n", f"They {what}\n"]
        has_vectors = any(spec.embedding_size for spec in of_kind)
        columns = ["Model", "Parameters", "Languages", "Tokens", "Licence"]
        columns += ["Numbers per vector"] if has_vectors else []
        columns += ["Scores"] if kind != "dense" else []
        columns += ["When to choose it"]
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for spec in of_kind:
            also = f" Also: {', '.join(spec.also)}." if spec.also else ""
            cells = [
                f"[{spec.name}](https://huggingface.co/{spec.name})",
                _size(spec.num_parameters),
                ", ".join(spec.languages),
                _tokens(spec),
                _license(spec),
                *([str(spec.embedding_size)] if has_vectors else []),
                *([spec.score_space] if kind != "dense" else []),
                spec.when_to_choose + also,
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
