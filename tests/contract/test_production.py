"""Deadline, score cache, cascade, early stop and batches: in every component, wherever it scores.

Each runs in this process, on a server, and with a server that is not there and a fallback.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sie_core import Item, LocalClient, ScoreCache

QUERY = "how many people live in berlin"
TEXTS = [
    "berlin museum",
    "population of the city",
    "the band of the year",
    "a film by a director",
    "language of the river",
    "tower",
]
NOWHERE = "http://127.0.0.1:9"


class Place:
    """A component's face, and where it scores."""

    def __init__(self, subject: Any, place: str, model: str, server: str) -> None:
        self.subject = subject
        self.name = place
        self.folder = model
        self.model = "test/tiny-bert" if place == "server" else model
        self._settings: dict[str, Any] = {
            "local": {},
            "server": {"base_url": server},
            "fallback": {"base_url": NOWHERE, "fallback": "local"},
        }[place]

    def make(self, **settings: Any) -> Any:
        return self.subject.make(self.model, **self._settings, **settings)

    def rerank(self, component: Any, texts: list[str], **overrides: Any) -> list[Any]:
        documents = self.subject.documents(texts)
        ranked = self.subject.rerank(component, QUERY, documents, **overrides)
        return [self.subject.view(document) for document in ranked]


PLACES = ("local", "server", "fallback")


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, local_subject: Any, tiny_bert: Path, sie_server: str
) -> Place:
    """Each component's sync and async face, in each place."""
    return Place(local_subject, request.param, str(tiny_bert), sie_server)


def _solo(folder: str, texts: list[str], **terms: Any) -> dict[str, float]:
    items = [Item(id=f"doc-{i}", text=text) for i, text in enumerate(texts)]
    reply = LocalClient().score(folder, Item(text=QUERY), items, **terms)
    return {entry["item_id"]: entry["score"] for entry in reply["scores"]}


def _ids(views: list[Any]) -> list[str]:
    return [view.id for view in views]


def test_a_deadline_gives_a_partial_answer(place: Place, tolerance: float) -> None:
    """What is scored comes first, with the scores of a whole run; every document says so."""
    texts = [f"{text} {i} " + "river " * 150 for i in range(500) for text in TEXTS]
    component = place.make(max_latency_ms=60.0)
    for _ in range(3):  # the first may spend all of its time on loading
        views = place.rerank(component, texts)
        scored = [view for view in views if view.score is not None]
        if scored:
            break
    assert len(scored) < len(texts) == len(views)
    assert all(view.metadata["rerank_status"] == "partial" for view in views)
    assert [view.score for view in scored] == sorted((v.score for v in scored), reverse=True)
    numbers = [int(view.id.removeprefix("doc-")) for view in views]
    assert sorted(numbers[: len(scored)]) == list(range(len(scored)))
    assert numbers[len(scored) :] == list(range(len(scored), len(texts)))
    solo = _solo(place.folder, texts[: len(scored)])
    assert {v.id: v.score for v in scored} == pytest.approx(solo, abs=tolerance)


def test_a_deadline_with_time_for_all_changes_nothing(place: Place, tolerance: float) -> None:
    """No mark, no order, and no score but for the rounding of another batch."""
    within = place.rerank(place.make(max_latency_ms=60_000.0), TEXTS)
    without = place.rerank(place.make(), TEXTS)
    assert [(view.id, view.metadata) for view in within] == [
        (view.id, view.metadata) for view in without
    ]
    assert [view.score for view in within] == pytest.approx(
        [view.score for view in without], abs=tolerance
    )


def test_a_score_cache_gives_the_same_numbers(place: Place) -> None:
    """The last of several calls finds every score; where a server was missed, after it is known."""
    cache = ScoreCache(10**6)
    component = place.make(score_cache=cache)
    first = place.rerank(component, TEXTS)
    for _ in range(4):
        before = cache.stats().num_hits
        again = place.rerank(component, TEXTS)
        assert again == first
    assert cache.stats().num_hits == before + len(TEXTS)


def test_a_cascade_orders_all_and_scores_the_best(place: Place, tolerance: float) -> None:
    """With the same model in both places the order is that of the model alone."""
    component = place.make(cascade=[(place.model, 2)])
    views = place.rerank(component, TEXTS)
    alone = place.rerank(place.make(), TEXTS)
    assert _ids(views) == _ids(alone)
    assert [view.score is None for view in views] == [False, False, True, True, True, True]
    assert views[0].score == pytest.approx(alone[0].score, abs=tolerance)
    if "stage_scores" in views[0].metadata:  # the bare Reranker's entries have them themselves
        stage_scores = [view.metadata["stage_scores"][0] for view in views]
        assert stage_scores == pytest.approx([view.score for view in alone], abs=tolerance)
        assert [set(view.metadata) - {"stage_scores"} for view in views] == [
            set(view.metadata) for view in alone
        ]


def test_stop_when_stable_says_that_it_stopped(place: Place) -> None:
    """The best document first, batches of two: the second changes nothing, the third is left."""
    solo = _solo(place.folder, TEXTS)
    ranked = sorted(solo, key=lambda name: -solo[name])
    best_first = [TEXTS[int(name.removeprefix("doc-"))] for name in ranked]
    component = place.make(stop_when_stable=1, top_k=1, options={"batch_size": 2})
    [view] = place.rerank(component, best_first)
    assert view.id == "doc-0"
    assert view.metadata["rerank_status"] == "partial"
    assert "with 4 of 6 documents scored" in view.metadata["rerank_reason"]


def test_long_documents_have_the_score_of_their_best_passage(
    place: Place, tolerance: float
) -> None:
    """And say where it is; short ones are as ever."""
    filler = "the band of the year " * 60
    texts = [filler + "population of berlin " + filler, "berlin museum"]
    views = place.rerank(place.make(long_documents="max_passage"), texts)
    found = {view.id: view for view in views}
    options = {"long_documents": "max_passage"}
    solo = _solo(place.folder, texts, options=options)
    assert {view.id: view.score for view in views} == pytest.approx(solo, abs=tolerance)
    assert found["doc-0"].score != pytest.approx(_solo(place.folder, texts)["doc-0"], abs=tolerance)
    if not type(place.subject).__name__.startswith("Bare"):  # which gives entries, no documents
        start, end = found["doc-0"].metadata["best_passage"]
        assert 0 <= start < end <= len(texts[0])
        assert "best_passage" not in found["doc-1"].metadata


def test_duplicates_are_left_out_where_that_is_asked_for(place: Place, tolerance: float) -> None:
    """The first of each stays, and `top_k` counts what differs; otherwise all come back."""
    texts = [*TEXTS[:3], TEXTS[1], *TEXTS[3:], TEXTS[0], TEXTS[1]]
    events: list[Any] = []
    views = place.rerank(place.make(drop_duplicates=True, on_rerank=events.append), texts)
    assert [(event.num_documents, event.num_duplicates) for event in events] == [(9, 3)]
    assert sorted(view.text for view in views) == sorted(TEXTS)
    assert {view.id for view in views} == {f"doc-{i}" for i in (0, 1, 2, 4, 5, 6)}
    solo = _solo(place.folder, texts)
    assert [v.score for v in views] == pytest.approx([solo[v.id] for v in views], abs=tolerance)
    assert len(place.rerank(place.make(), texts)) == len(texts)
    with pytest.raises(ValueError, match="drop_duplicates"):
        place.make(drop_duplicates="maybe")


def test_metadata_is_part_of_the_ranked_text(place: Place, tolerance: float) -> None:
    """Its fields stand before the content, and the document stays as it was."""
    if type(place.subject).__name__.startswith("Bare"):
        pytest.skip("it ranks the texts that it is given")
    component = place.make(meta_fields=["n"], meta_separator=" ", document_suffix=" end")
    views = place.rerank(component, TEXTS)
    solo = _solo(place.folder, [f"{i} {text} end" for i, text in enumerate(TEXTS)])
    assert {view.id: view.score for view in views} == pytest.approx(solo, abs=tolerance)
    assert {view.text for view in views} == set(TEXTS)


def test_stats_count_what_was_done(place: Place) -> None:
    """Calls, documents and statuses since the component was made, and a hook is told of each."""
    events: list[Any] = []
    component = place.make(on_rerank=events.append)
    for _ in range(2):
        place.rerank(component, TEXTS)
    stats = component.stats()
    assert stats.num_calls == len(events) == 2
    assert stats.statuses == {"complete": 2}
    assert stats.num_input_tokens > 0


def test_an_override_holds_for_its_call_alone(place: Place, tolerance: float) -> None:
    """How many, the threshold, the instruction and the deadline, each in the framework's way."""
    component = place.make()
    whole = place.rerank(component, TEXTS)
    assert place.rerank(component, TEXTS, top_k=2) == whole[:2]
    middle = whole[2].score
    assert place.rerank(component, TEXTS, score_threshold=middle) == whole[:3]
    told = place.rerank(component, TEXTS, instruction="river language")
    solo = _solo(place.folder, TEXTS, instruction="river language")
    assert {view.id: view.score for view in told} == pytest.approx(solo, abs=tolerance)
    hurried = place.rerank(component, TEXTS, max_latency_ms=1e-3)
    assert all(view.metadata["rerank_status"] == "partial" for view in hurried)
    assert _ids(hurried) == [f"doc-{i}" for i in range(len(TEXTS))]
    assert place.rerank(component, TEXTS) == whole


@pytest.mark.parametrize("name", ["top_k", "max_latency_ms"])
def test_a_wrong_override_is_refused(place: Place, name: str) -> None:
    """As the constructor refuses it."""
    component = place.make()
    with pytest.raises(ValueError, match=f"{name.replace('top_k', 'top_[kn]')} must be"):
        place.rerank(component, TEXTS, **{name: 0})


@pytest.fixture(params=PLACES)
def settings(request: pytest.FixtureRequest, tiny_bert: Path, sie_server: str) -> dict[str, Any]:
    """A component's settings for each place."""
    place = Place(None, request.param, str(tiny_bert), sie_server)
    return {"model": place.model, **place._settings}


def test_langchain_ranks_a_batch_at_once(settings: dict[str, Any], tolerance: float) -> None:
    """`batch` and `abatch` give what `invoke` gives for each; one failing input fails alone."""
    from langchain_core.documents import Document

    from sie_langchain import SIEReranker

    runnable = SIEReranker(**settings).as_runnable()
    inputs: list[Any] = [
        {"query": f"{QUERY} {i}", "documents": [Document(page_content=text) for text in TEXTS[i:]]}
        for i in range(5)
    ]
    expected = [runnable.invoke(one) for one in inputs]

    def scores(ranked: list[Document]) -> dict[str, float]:
        return {it.page_content: it.metadata["relevance_score"] for it in ranked}

    for results in (runnable.batch(inputs), asyncio.run(runnable.abatch(inputs))):
        for ranked, alone in zip(results, expected, strict=True):
            assert scores(ranked) == pytest.approx(scores(alone), abs=tolerance)
    wrong = [inputs[0], {"query": " ", "documents": inputs[0]["documents"]}, {}, inputs[1]]
    mixed: list[Any] = runnable.batch(wrong, return_exceptions=True)
    assert scores(mixed[3]) == pytest.approx(scores(expected[1]), abs=tolerance)
    assert [type(it).__name__ for it in mixed[1:3]] == ["InvalidRequestError"] * 2
    with pytest.raises(ValueError, match="query must be"):
        runnable.batch(wrong)
    assert runnable.batch([]) == []


def test_haystack_ranks_a_batch_at_once(settings: dict[str, Any], tolerance: float) -> None:
    """`run_batch` gives what `run` gives for each query."""
    from haystack import Document

    from sie_haystack import SIERanker

    ranker = SIERanker(**settings)
    queries = [f"{QUERY} {i}" for i in range(5)]
    documents = [[Document(content=text) for text in TEXTS[i:]] for i in range(5)]
    expected = [
        ranker.run(query=query, documents=of_one)["documents"]
        for query, of_one in zip(queries, documents, strict=True)
    ]

    def scores(ranked: list[Document]) -> dict[str | None, float | None]:
        return {it.content: it.score for it in ranked}

    awaited = asyncio.run(ranker.run_batch_async(queries, documents))["documents"]
    for results in (ranker.run_batch(queries, documents)["documents"], awaited):
        for ranked, alone in zip(results, expected, strict=True):
            assert scores(ranked) == pytest.approx(scores(alone), abs=tolerance)
    with pytest.raises(ValueError, match="for each of 5 queries, got 4"):
        ranker.run_batch(queries, documents[:4])
