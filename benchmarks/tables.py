"""Print what the benchmarks wrote as Markdown: `python benchmarks/tables.py FILE.json …`.

The tables of docs/performance.md are made with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import format_cell


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; all columns but the first are numbers or short."""
    columns = list(rows[0])
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[format_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_document(content: Mapping[str, Any]) -> str:
    """Return a benchmark's results with where, when and how they were had."""
    machine, versions = content["machine"], content["versions"]
    hidden = "".join(f", {name}={value}" for name, value in machine["hidden"].items())
    parts = [
        f"`{content['command']}`, {content['date'][:10]}, {machine['processor']}, "
        f"{machine['cores']} cores ({machine['isa']}{hidden}), "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    ]
    for title, rows in content["tables"].items():
        parts += [f"**{title}**", to_markdown(rows)]
    return "\n\n".join(parts)


def main() -> None:
    """Print each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    for file in parser.parse_args().files:
        print(to_document(json.loads(file.read_text(encoding="utf-8"))) + "\n")


if __name__ == "__main__":
    main()
