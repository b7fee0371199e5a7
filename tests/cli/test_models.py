"""`sie models`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from sie_core.models.catalog import CATALOG

Run = Callable[..., Any]


def test_the_table_names_every_model(run: Run) -> None:
    """With its licence, and when to choose it."""
    finished = run("models")
    assert finished.exit_code == 0
    shown = " ".join(finished.stdout.split())
    for spec in CATALOG:
        assert spec.name in shown
        assert spec.license in shown


def test_json_has_every_field(run: Run) -> None:
    """For programs."""
    specs = json.loads(run("models", "--json").stdout)
    assert specs == json.loads(json.dumps([dataclasses.asdict(spec) for spec in CATALOG]))


def test_the_version_is_the_librarys(run: Run) -> None:
    """`sie --version` needs no subcommand."""
    import sie_core

    assert run("--version").stdout == f"sie {sie_core.__version__}\n"
