"""`DocumentText`: metadata and content put together, whatever a document's metadata holds."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Any

import pytest

from sie_core.document_text import DocumentText, RankedText, as_text
from sie_core.errors import InvalidRequestError


class Colour(enum.Enum):
    """A value that is no text."""

    RED = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("Assam ", "Assam "),
        (1889, "1889"),
        (0, "0"),
        (False, "False"),
        (1.5, "1.5"),
        (dt.date(1889, 3, 31), "1889-03-31"),
        (Colour.RED, "Colour.RED"),
        (["tea", None, " ", 3], "tea, 3"),
        (("a", ["b", "c"]), "a, b, c"),
        ({"b", "a", "c"}, "a, b, c"),
        ({"by": "Kim", "on": None, "tags": ["x", "y"]}, "by: Kim, tags: x, y"),
        ([], ""),
        ({}, ""),
        (b"raw", "b'raw'"),
    ],
)
def test_values_of_every_kind_become_texts(value: object, text: str) -> None:
    """None and blanks vanish, members are listed, sets in one order always."""
    assert as_text(value) == text


def test_fields_stand_before_the_content_in_the_order_asked_for() -> None:
    """What a document does not have, and what is blank in it, leaves no trace."""
    text = DocumentText(meta_fields=["year", "title", "none", "blank"], meta_separator=" | ")
    metadata = {"title": "Assam", "year": 1889, "none": None, "blank": "  ", "other": "unasked"}
    ranked = text.of_document("Tea grows here.", metadata)
    assert ranked == RankedText("1889 | Assam | Tea grows here.", 15, 30)
    assert text.of_document("Tea grows here.", {}) == RankedText("Tea grows here.", 0, 15)
    assert text.of_document("Tea grows here.") == RankedText("Tea grows here.", 0, 15)
    assert metadata["none"] is None


def test_a_template_writes_name_and_value() -> None:
    """Braces in a value stay as they are."""
    text = DocumentText(meta_fields=["title"], meta_template="<{name}>{value}</{name}>")
    ranked = text.of_document("x", {"title": "{value} {0}"})
    assert ranked is not None
    assert ranked.text == "<title>{value} {0}</title>\nx"


def test_the_example_of_the_module_is_true() -> None:
    """Its places too."""
    text = DocumentText(meta_fields=("title", "tags"), meta_template="{name}: {value}")
    ranked = text.of_document("Tea is grown here.", {"title": "Assam", "tags": ["tea", "plain"]})
    assert ranked is not None
    assert ranked.text == "title: Assam\ntags: tea, plain\nTea is grown here."
    assert ranked.in_content((0, 44)) == (0, 14)


@pytest.mark.parametrize(("content", "metadata"), [("", {}), (None, {}), (" \n", {"title": " "})])
def test_prefixes_make_no_text_of_nothing(content: str | None, metadata: dict[str, Any]) -> None:
    """Blank content without one of the fields stays unscored."""
    text = DocumentText(meta_fields=["title"], document_prefix="passage: ", document_suffix=".")
    assert text.of_document(content, metadata) is None
    assert text.texts_of([(content, metadata), ("a", {})]) == [None, "passage: a."]


def test_a_named_field_is_enough_to_be_scored() -> None:
    """Who names it wants it ranked, as a caption of a picture."""
    ranked = DocumentText(meta_fields=["caption"]).of_document(None, {"caption": "A tea plant"})
    assert ranked is not None
    assert ranked.text == "A tea plant\n"
    assert ranked.in_content((0, 11)) is None


def test_a_query_gets_its_own_prefix_and_suffix() -> None:
    """A blank one stays blank, so that it stays an error."""
    text = DocumentText(query_prefix="query: ", query_suffix="?", document_prefix="passage: ")
    assert text.of_query("tea") == "query: tea?"
    assert text.of_query("  ") == "  "


@pytest.mark.parametrize(
    ("span", "place"),
    [((0, 100), (0, 7)), ((0, 3), None), ((12, 14), (2, 4)), ((5, 12), (0, 2)), ((17, 30), None)],
)
def test_places_are_told_in_the_content(span: tuple[int, int], place: object) -> None:
    """What lies in metadata, prefix or suffix is no place in it."""
    ranked = RankedText("0123456789" + "content" + "suffix", 10, 17)
    assert ranked.in_content(span) == place


def test_the_content_is_found_in_what_a_framework_wrote() -> None:
    """Behind the metadata that holds the same words."""
    text = DocumentText(document_prefix="> ", document_suffix=" <")
    ranked = text.of_text("title: tea\n\ntea", "tea")
    assert ranked == RankedText("> title: tea\n\ntea <", 14, 17)
    assert text.of_text("title: tea\n\n", " ") is None


@pytest.mark.parametrize(
    ("text", "content", "start"),
    [
        ("title: x\n\nriver", "river\n", 10),
        ("title: x\n\n \n river", " \n river", 10),
        ("title: x\n\n  river", "  river \n", 10),
        ("river\n\ntitle: x", "  river", -2),
    ],
)
def test_the_content_is_found_though_a_framework_stripped_blanks(
    text: str, content: str, start: int
) -> None:
    """LlamaIndex strips what it puts together; places are those in the content as it is."""
    ranked = DocumentText().of_text(text, content)
    assert ranked == RankedText(text, start, start + len(content))
    found = text.rfind("river")
    place = ranked.in_content((found, found + 5))
    assert place is not None
    assert content[slice(*place)] == "river"
    whole = ranked.in_content((0, len(text)))
    assert whole is not None
    assert content[slice(*whole)].strip() == "river"


def test_a_content_that_a_template_changed_has_no_place() -> None:
    """None is told, rather than a wrong one; the text is ranked all the same."""
    ranked = DocumentText(document_prefix="> ").of_text("title: x\n\nRIVER", "river")
    assert ranked is not None
    assert ranked.text == "> title: x\n\nRIVER"
    assert ranked.in_content((0, len(ranked.text))) is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"meta_fields": "title"}, r"meta_fields must be a list of names .* got 'title'"),
        ({"meta_fields": [1]}, r"meta_fields must be a list of names"),
        ({"meta_separator": None}, "meta_separator must be a string, but got None"),
        ({"query_prefix": 3}, "query_prefix must be a string, but got 3"),
        ({"meta_template": "{name}"}, r"meta_template must have \{value\} in it"),
        ({"meta_template": 5}, r"meta_template must have \{value\} in it"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], complaint: str) -> None:
    """Before anything is ranked."""
    with pytest.raises(InvalidRequestError, match=complaint):
        DocumentText(**settings)
