"""What is ranked of a document, and what becomes of long ones, in every component."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from sie_core import Item, LocalClient
from sie_core.errors import InvalidRequestError, SIEError

QUERY = "how many people live in berlin"
LONG = "river " * 150 + "population of the city 😀 and people of berlin " + "the band " * 150
TEXTS = ["berlin museum", LONG, "", "museum " * 300]


NOWHERE = "http://127.0.0.1:9"


class Placed:
    """A component's face that scores in this process, on a server, or by its fallback."""

    def __init__(self, subject: Any, place: str, server: str) -> None:
        self.subject = subject
        self.place = place
        self.settings: dict[str, Any] = {
            "local": {},
            "server": {"base_url": server},
            "fallback": {"base_url": NOWHERE, "fallback": "local"},
        }[place]

    def make(self, model: str, **settings: Any) -> Any:
        """Construct it; a server knows the model by another name."""
        name = "test/tiny-bert" if self.place == "server" else model
        return self.subject.make(name, **self.settings, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.subject, name)


@pytest.fixture(params=["local", "server", "fallback"])
def subject(request: pytest.FixtureRequest, local_subject: Any, sie_server: str) -> Placed:
    """Each component's sync and async face, in each place."""
    return Placed(local_subject, request.param, sie_server)


@pytest.fixture
def model(tiny_bert: Path) -> str:
    """The tiny model's folder."""
    return str(tiny_bert)


def expected(model: str, texts: list[str], **options: Any) -> dict[str, tuple[float, Any]]:
    """Score texts by the client, and map ids to scores and spans."""
    items = [Item(id=f"doc-{i}", text=text) for i, text in enumerate(texts) if text]
    result = LocalClient().score(model, Item(text=QUERY), items, options=options)
    return {entry["item_id"]: (entry["score"], entry.get("span")) for entry in result["scores"]}


def test_a_long_document_has_the_score_and_the_place_of_its_best_passage(
    subject: Any, model: str, tolerance: float
) -> None:
    """The client's own; nothing else of the document is changed, and the input is not."""
    component = subject.make(model, long_documents="max_passage", passage_overlap=16)
    documents = subject.documents(TEXTS)
    before = copy.deepcopy(documents)
    views = [subject.view(it) for it in subject.rerank(component, QUERY, documents)]
    found = expected(model, TEXTS, long_documents="max_passage", passage_overlap=16)
    originals = {view.id: view for view in map(subject.view, before)}
    for view in views:
        score, span = found.get(view.id, (None, None))
        assert view.score == (None if score is None else pytest.approx(score, abs=tolerance))
        assert view.metadata.pop("best_passage", None) == span
        view.metadata.pop("relevance_score", None)  # LangChain's place for the score
        assert view.metadata == originals[view.id].metadata
        assert view.text == originals[view.id].text
    assert found["doc-1"][1] is not None
    assert documents == before


def test_a_bound_on_passages_holds(subject: Any, model: str, tolerance: float) -> None:
    """With one passage a long document has the score that it has when it is cut."""
    component = subject.make(model, long_documents="max_passage", max_passages=1)
    ranked = subject.rerank(component, QUERY, subject.documents(TEXTS))
    found = expected(model, TEXTS)
    for view in map(subject.view, ranked):
        if view.score is not None:
            assert view.score == pytest.approx(found[view.id][0], abs=tolerance)


def test_long_documents_are_refused_where_that_is_asked(subject: Any, model: str) -> None:
    """The error names them by their positions, blank documents counted; a fallback's is a note."""
    component = subject.make(model, long_documents="error")
    with pytest.raises(SIEError) as caught:
        subject.rerank(component, QUERY, subject.documents(TEXTS))
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(r"2 of 3 items .* 128 tokens .* '1', '3'", said), said
    assert isinstance(caught.value, InvalidRequestError) == (subject.place != "fallback")
    short = [text for text in TEXTS if len(text) < 100]
    assert len(subject.rerank(component, QUERY, subject.documents(short))) == 2


@pytest.fixture
def framework(subject: Placed) -> Placed:
    """Each framework's faces; the bare reranker ranks the texts that it is given."""
    if type(subject.subject).__name__.startswith("Bare"):
        pytest.skip("it has no metadata")
    return subject


def test_metadata_prefixes_and_suffixes_are_ranked_with_the_content(
    framework: Any, model: str, tolerance: float
) -> None:
    """The score is that of the text put together; what a document does not have is left out."""
    component = framework.make(
        model,
        meta_fields=["n", "missing", "nested"],
        meta_template="{name} = {value}",
        meta_separator="; ",
        query_prefix="q: ",
        query_suffix="?",
        document_prefix="d: ",
        document_suffix=".",
    )
    ranked = framework.rerank(component, QUERY, framework.documents(["berlin", "a river"]))
    texts = [
        f"d: n = {i}; nested = tags: a, {i}; {text}."
        for i, text in enumerate(["berlin", "a river"])
    ]
    items = [Item(id=f"doc-{i}", text=text) for i, text in enumerate(texts)]
    result = LocalClient().score(model, Item(text=f"q: {QUERY}?"), items)
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    views = [framework.view(document) for document in ranked]
    assert {view.id: view.score for view in views} == pytest.approx(found, abs=tolerance)
    assert {view.text for view in views} == {"berlin", "a river"}


def test_the_best_passage_is_a_place_in_the_content(framework: Any, model: str) -> None:
    """Not in the text with metadata and prefix, which nobody sees."""
    component = framework.make(
        model,
        meta_fields=["nested"],
        document_prefix="d: ",
        long_documents="max_passage",
        passage_overlap=16,
    )
    ranked = framework.rerank(component, QUERY, framework.documents([LONG]))
    [view] = [framework.view(document) for document in ranked]
    before = "d: tags: a, 0\n"
    [(_, span)] = expected(
        model, [before + LONG], long_documents="max_passage", passage_overlap=16
    ).values()
    start, end = view.metadata["best_passage"]
    assert LONG[start:end] == (before + LONG)[slice(*span)].removeprefix(before)


def test_a_blank_document_stays_unscored_whatever_the_prefix(framework: Any, model: str) -> None:
    """Prefixes make no text of nothing; a field that the user named does."""
    component = framework.make(model, meta_fields=["missing"], document_prefix="d: ")
    ranked = framework.rerank(component, QUERY, framework.documents(["", "berlin"]))
    assert [framework.view(it).score is None for it in ranked] == [False, True]
    component = framework.make(model, meta_fields=["n"])
    ranked = framework.rerank(component, QUERY, framework.documents(["", "berlin"]))
    assert all(framework.view(it).score is not None for it in ranked)


@pytest.mark.parametrize("template", ["{name}", "{value", "{value} {other}", "{value} {0}"])
def test_a_template_without_its_value_is_an_error(framework: Any, template: str) -> None:
    """At construction, and it is named."""
    with pytest.raises(ValueError, match=r"meta_template must have \{value\} in it"):
        framework.make("any", meta_template=template)
