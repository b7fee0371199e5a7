from __future__ import annotations

import pytest

from sie_core.models.catalog import CATALOG, close_names, find
from sie_core.models.embedded import EMBEDDED_MODELS
from sie_core.settings import DEFAULT_MODEL


def test_no_two_models_share_a_name() -> None:
    """A name or an older spelling means one model."""
    names = [name.lower() for spec in CATALOG for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name",
    [
        "cross-encoder/ms-marco-MiniLM-L12-v2",
        "cross-encoder/ms-marco-MiniLM-L-12-v2",
        "CROSS-ENCODER/MS-MARCO-MINILM-L-12-V2",
        " cross-encoder/ms-marco-minilm-l12-v2 ",
    ],
)
def test_a_model_is_found_in_any_spelling(name: str) -> None:
    """Case, blanks around it and the spelling of older releases make no difference."""
    spec = find(name)
    assert spec is not None
    assert spec.name == DEFAULT_MODEL


def test_the_default_is_in_the_catalogue_and_in_the_wheel() -> None:
    """What is used where nothing is said must be there where the hub is not."""
    assert find(DEFAULT_MODEL) is not None
    assert DEFAULT_MODEL in EMBEDDED_MODELS


def test_an_unknown_model_is_not_found() -> None:
    """The catalogue does not guess."""
    assert find("owner/other") is None
    assert find("") is None


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("BAAI/bge-reranker-bse", "BAAI/bge-reranker-base"),
        ("bge-reranker-large", "BAAI/bge-reranker-large"),
        ("ms-marco-minilm-l6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2"),
        ("cross-encoder/ms-marco-MiniLM-L-12", "cross-encoder/ms-marco-MiniLM-L12-v2"),
    ],
)
def test_a_slip_is_recognised(name: str, closest: str) -> None:
    """With or without the owner, the model meant comes first, and each only once."""
    suggested = close_names(name)
    assert suggested[0] == closest
    assert len(suggested) == len(set(suggested)) <= 3


def test_nothing_is_suggested_for_something_else() -> None:
    """A name that is like none of them gets no hint."""
    assert close_names("zzz") == []
