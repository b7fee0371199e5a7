"""Each component's README names every parameter that it takes."""

from __future__ import annotations

import inspect
import re
from importlib import metadata
from pathlib import Path

import pytest

from sie_core import Reranker
from sie_haystack import SIERanker
from sie_langchain import SIEReranker
from sie_llamaindex import SIENodePostprocessor


def read_me(distribution: str) -> str:
    """Read the checkout's, or what the installed distribution carries of it."""
    path = Path(__file__).parents[1] / "packages" / distribution / "README.md"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return str(metadata.metadata(distribution).json["description"])


PARAMETERS = {
    "sie-langchain": set(SIEReranker.model_fields),
    "sie-llamaindex": set(inspect.signature(SIENodePostprocessor.__init__).parameters),
    "sie-haystack": set(inspect.signature(SIERanker.__init__).parameters),
}
"""Of each distribution's reranker."""

ELSEWHERE = {"self", "top_k", "trace_content"}
"""What has another name in a framework (`top_n`), or is set for all (`SIE_TRACE_CONTENT`)."""


@pytest.mark.parametrize("distribution", PARAMETERS)
def test_a_table_names_every_parameter(distribution: str) -> None:
    """In the first column of a table, alone or beside others."""
    first_columns = re.findall(r"^\|([^|]*)\|", read_me(distribution), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(first_columns)))
    missing = PARAMETERS[distribution] - named - {"self"}
    assert not missing


@pytest.mark.parametrize("distribution", PARAMETERS)
def test_a_component_takes_what_the_reranker_takes(distribution: str) -> None:
    """A feature of the core that a component lacks is lost on who uses that framework."""
    of_core = set(inspect.signature(Reranker.__init__).parameters)
    missing = of_core - ELSEWHERE - PARAMETERS[distribution]
    assert not missing
