"""What a server is told, and what it refuses to be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from sie_core.errors import InvalidRequestError
from sie_core.server.settings import ModelSettings, Profile, ServerSettings, read_settings

CONFIG = """
wait_for_load_seconds = 2.5
max_items = 100

[[models]]
name = "BAAI/bge-reranker-v2-m3"
preload = false

[[models]]
name = "ours"
source = "/models/ours"
[models.profiles.legal]
instruction = "Find the clause."
options = { max_length = 256 }
[models.loras]
contracts = "/adapters/contracts"
"""


def test_a_file_sets_what_it_names(tmp_path: Path) -> None:
    """Models with their profiles and adapters, and limits; what it leaves out is left out."""
    path = tmp_path / "serve.toml"
    path.write_text(CONFIG)
    profile = Profile(instruction="Find the clause.", options={"max_length": 256})
    assert read_settings(path) == {
        "wait_for_load_seconds": 2.5,
        "max_items": 100,
        "models": (
            ModelSettings(name="BAAI/bge-reranker-v2-m3", preload=False),
            ModelSettings(
                name="ours",
                source="/models/ours",
                profiles={"legal": profile},
                loras={"contracts": "/adapters/contracts"},
            ),
        ),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_itmes = 5", "max_itmes"),
        ('max_items = "many"', r"Expected `int`, got `str` - at `\$.max_items`"),
        ("max_items = 0", "max_items must be at least 1, but got 0"),
        ("drain_seconds = -1", "drain_seconds must be at least 0"),
        ("[[models]]\npreload = true", "name"),
        ('[[models]]\nname = "a"\n[[models]]\nname = "a"', "'a' is given twice"),
        ("max_items = ", "serve.toml is wrong"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_where(
    tmp_path: Path, content: str, message: str
) -> None:
    """No typo is passed over."""
    path = tmp_path / "serve.toml"
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=message):
        read_settings(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(InvalidRequestError, match=r"nothere\.toml could not be read: No such file"):
        read_settings(tmp_path / "nothere.toml")


def test_limits_are_checked() -> None:
    """A limit that lets nothing through is a mistake."""
    with pytest.raises(InvalidRequestError, match="max_body_bytes must be at least 1"):
        ServerSettings(max_body_bytes=0)
