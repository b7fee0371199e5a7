"""What the Reranker and every component do. The numbers are those in docs/behaviours.md."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import sie_core.local
from sie_core import Item, LocalClient
from sie_core.calibration import Calibration, LogisticCurve
from sie_core.errors import DeadlineExceededError, InvalidResponseError, ModelError, SIEError
from sie_core.fallback import Backend
from sie_core.fusion import fuse_scores

QUERY = "how many people live in berlin"
TEXTS = [
    "berlin museum",
    "population of the city 😀",
    "the band of the year",
    "river " * 200,
    "berlin museum",
    "a film by a director",
]


@pytest.fixture
def model(tiny_bert: Path) -> str:
    """The tiny model's folder."""
    return str(tiny_bert)


def solo_scores(model: str, texts: list[str]) -> list[float]:
    """Score each text alone, without any component."""
    client = LocalClient()
    return [
        client.score(model, Item(text=QUERY), [Item(text=text)])["scores"][0]["score"]
        for text in texts
    ]


def rerank(subject: Any, model: str, texts: Any, **settings: Any) -> list[Any]:
    """Make the component, rerank documents of these texts, and view the result."""
    component = subject.make(model, **settings)
    ranked = subject.rerank(component, QUERY, subject.documents(texts))
    return [subject.view(document) for document in ranked]


def ids(views: list[Any]) -> list[str]:
    """List ids in order."""
    return [view.id for view in views]


def test_1_each_document_has_its_own_score(subject: Any, model: str, tolerance: float) -> None:
    """Best first, and every score is the one that its text has alone."""
    views = rerank(subject, model, TEXTS)
    solo = solo_scores(model, TEXTS)
    assert [view.score for view in views] == pytest.approx(
        sorted(solo, reverse=True), abs=tolerance
    )
    for view in views:
        assert view.score == pytest.approx(solo[int(view.id.removeprefix("doc-"))], abs=tolerance)
        assert isinstance(view.score, float)


class _Faulty:
    """A backend whose reply is wrong in one way."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def score(self, model: str, _query: Item, items: list[Item], **_: Any) -> Mapping[str, Any]:
        scores = [
            {"item_id": item["id"], "score": -float(i), "rank": i} for i, item in enumerate(items)
        ]
        if self.fault == "missing":
            scores.pop()
        elif self.fault == "duplicate":
            scores.append(scores[0])
        elif self.fault == "unknown":
            scores[0]["item_id"] = "someone-else"
        elif self.fault == "nan":
            scores[0]["score"] = float("nan")
        return {"model": model, "query_id": None, "scores": scores}


@pytest.mark.parametrize("fault", ["missing", "duplicate", "unknown", "nan"])
def test_1_a_wrong_reply_is_an_error_never_a_zero(
    local_subject: Any, model: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing, doubled, unknown and non-finite scores raise, in every component."""

    class Faulty(_Faulty):
        async def score_async(self, *arguments: Any, **options: Any) -> Mapping[str, Any]:
            return self.score(*arguments, **options)

    class FaultyAsync:
        def __init__(self, client: Faulty) -> None:
            self.score = client.score_async

    monkeypatch.setattr(sie_core.local, "LocalClient", lambda **_: Faulty(fault))
    monkeypatch.setattr(sie_core.local, "LocalAsyncClient", FaultyAsync)
    with pytest.raises(InvalidResponseError):
        rerank(local_subject, model, TEXTS)


def test_1_a_degraded_answer_says_so(local_subject: Any, model: str) -> None:
    """A dead server and `fallback="retrieval_order"`: nothing lost, nothing scored, all marked."""
    component = local_subject.make(
        model, base_url="http://127.0.0.1:9", fallback="retrieval_order", score_threshold=0.5
    )
    documents = local_subject.documents(TEXTS)
    views = [local_subject.view(d) for d in local_subject.rerank(component, QUERY, documents)]
    component.close()
    assert ids(views) == [f"doc-{i}" for i in range(len(TEXTS))]
    assert {view.score for view in views} == {None}
    for view in views:
        assert view.metadata["rerank_status"] == "degraded"
        assert view.metadata["rerank_served_by"] == "retrieval_order"
        assert "127.0.0.1:9" in view.metadata["rerank_reason"]
    assert all("rerank_status" not in local_subject.view(d).metadata for d in documents)


def test_2_ties_keep_retrieval_order(subject: Any, model: str) -> None:
    """Equal texts have equal scores and stay in the order given."""
    assert ids(rerank(subject, model, ["berlin"] * 5)) == [f"doc-{i}" for i in range(5)]


def test_3_inputs_are_not_mutated(subject: Any, model: str) -> None:
    """Documents given are as before, and what comes back are other objects."""
    documents = subject.documents(TEXTS)
    before = copy.deepcopy(documents)
    ranked = subject.rerank(subject.make(model), QUERY, documents)
    assert documents == before
    assert not {id(document) for document in ranked} & {id(document) for document in documents}


def test_3_ids_texts_and_metadata_survive(subject: Any, model: str) -> None:
    """Whatever a document carried, it still carries, nested values included."""
    given = {view.id: view for view in map(subject.view, subject.documents(TEXTS))}
    for view in rerank(subject, model, TEXTS):
        assert view.text == given[view.id].text
        assert view.metadata == given[view.id].metadata


def test_4_blank_documents_come_last_unscored(subject: Any, model: str) -> None:
    """Blank text is never sent and never dropped; blank ones keep their order."""
    blank = None if subject.has_none else ""
    texts = ["", "berlin", "  \n\t", "population", blank]
    views = rerank(subject, model, texts)
    assert ids(views)[2:] == ["doc-0", "doc-2", "doc-4"]
    assert [view.score for view in views[2:]] == [None, None, None]
    assert all(view.score is not None for view in views[:2])


def test_3_half_a_surrogate_pair_does_no_harm(subject: Any, model: str, tolerance: float) -> None:
    """Texts cut in the middle of a character are scored; they come back as they were."""
    texts = ["berlin \ud83d museum", "river"]
    component = subject.make(model)
    views = [
        subject.view(document)
        for document in subject.rerank(component, QUERY + " \ude00", subject.documents(texts))
    ]
    client = LocalClient()
    items = [
        Item(id=f"doc-{i}", text=text) for i, text in enumerate(["berlin \ufffd museum", "river"])
    ]
    reply = client.score(model, Item(text=QUERY + " \ufffd"), items)
    solo = {entry["item_id"]: entry["score"] for entry in reply["scores"]}
    assert {view.id: view.score for view in views} == pytest.approx(solo, abs=tolerance)
    assert {view.text for view in views} == set(texts)


def test_4_only_blank_documents_keep_their_order(subject: Any) -> None:
    """With nothing to score, retrieval order stays and no model is needed."""
    views = rerank(subject, "/no/such/model", ["", " ", ""])
    assert ids(views) == ["doc-0", "doc-1", "doc-2"]
    assert {view.score for view in views} == {None}


def test_4_a_threshold_does_not_drop_what_was_not_scored(subject: Any, model: str) -> None:
    """A threshold cuts low scores; a document without a score is not below anything."""
    assert ids(rerank(subject, model, ["", "berlin"], score_threshold=1e6)) == ["doc-0"]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_5_any_number_of_documents_takes_the_same_path(
    subject: Any, model: str, count: int
) -> None:
    """None give none, one gives one, a thousand come back complete and in order."""
    views = rerank(subject, model, [f"berlin {i}" for i in range(count)])
    assert sorted(ids(views)) == sorted(f"doc-{i}" for i in range(count))
    scores = [view.score for view in views]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("top_k", [0, -3])
def test_5_top_k_below_one_is_a_value_error(subject: Any, model: str, top_k: int) -> None:
    """The error names the value."""
    with pytest.raises(ValueError, match=f"must be at least 1, but got {top_k}"):
        rerank(subject, model, TEXTS, top_k=top_k)


@pytest.mark.parametrize("top_k", [1, 3, 6, 100])
def test_5_top_k_keeps_the_best(subject: Any, model: str, top_k: int) -> None:
    """The first `top_k` of the full order; more than there are is all of them."""
    full = ids(rerank(subject, model, TEXTS))
    assert ids(rerank(subject, model, TEXTS, top_k=top_k)) == full[:top_k]


def test_5_a_threshold_keeps_what_reaches_it(subject: Any, model: str) -> None:
    """Documents whose score equals the threshold stay, lower ones go."""
    full = rerank(subject, model, TEXTS)
    views = rerank(subject, model, TEXTS, score_threshold=full[2].score)
    assert ids(views) == ids(full)[:3]


def test_5_a_blank_query_is_a_value_error(subject: Any, model: str) -> None:
    """A query without text is refused, not scored."""
    component = subject.make(model)
    with pytest.raises(ValueError, match="query must be a string with text in it, but got '  '"):
        subject.rerank(component, "  ", subject.documents(TEXTS))


def test_7_components_shared_by_threads_give_solo_scores(
    subject: Any, model: str, tolerance: float
) -> None:
    """Eight threads on one component: each gets what it gets alone."""
    component = subject.make(model)
    slices = [TEXTS[i % 3 : i % 3 + 3] for i in range(8)]
    solo = [
        [
            view.score
            for view in map(
                subject.view, subject.rerank(component, QUERY, subject.documents(texts))
            )
        ]
        for texts in slices
    ]
    shared: dict[int, list[Any]] = {}

    def work(i: int) -> None:
        ranked = subject.rerank(component, QUERY, subject.documents(slices[i]))
        shared[i] = [subject.view(document).score for document in ranked]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [shared[i] for i in range(8)] == [
        pytest.approx(scores, abs=tolerance) for scores in solo
    ]


def test_7_every_component_gives_the_same_order(subject: Any, model: str) -> None:
    """The bare client, scored one by one, decides; components add nothing of their own."""
    solo = solo_scores(model, TEXTS)
    expected = sorted(range(len(TEXTS)), key=lambda i: -round(solo[i], 5))
    assert ids(rerank(subject, model, TEXTS)) == [f"doc-{i}" for i in expected]


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_retrieval_score_is_mixed_in_by_its_weight(
    subject: Any, model: str, weight: float
) -> None:
    """Each document's score is the mix of z-scores; what the model gave stands beside it."""
    retrieved = [0.9, 0.1, 0.8, 0.3]
    alone = {view.id: view.score for view in rerank(subject, model, TEXTS[:4])}
    component = subject.make(model, fuse_retrieval_score=weight)
    documents = subject.with_scores(subject.documents(TEXTS[:4]), retrieved)
    views = [subject.view(one) for one in subject.rerank(component, QUERY, documents)]
    mixed = fuse_scores([alone[f"doc-{i}"] for i in range(4)], retrieved, retrieval_weight=weight)
    expected = sorted(range(4), key=lambda i: -mixed[i])
    assert ids(views) == [f"doc-{i}" for i in expected]
    assert [view.score for view in views] == pytest.approx([mixed[i] for i in expected], abs=1e-3)


def test_calibrated_probabilities(subject: Any, model: str, tmp_path: Path) -> None:
    """A file of `sie calibrate` turns scores into probabilities, in the same order."""
    alone = rerank(subject, model, TEXTS[:4])
    curve = LogisticCurve(slope=3.0, intercept=-1.0)
    fitted = Calibration(model=model, score_space="raw", probability=curve)
    path = fitted.save(tmp_path / "calibration.json")
    views = rerank(subject, model, TEXTS[:4], score_space="calibrated", calibration=path)
    assert ids(views) == ids(alone)
    raw = rerank(subject, model, TEXTS[:4], score_space="raw")
    assert [view.score for view in views] == pytest.approx(
        [curve(view.score) for view in raw], abs=1e-3
    )


def test_9_a_deadline_bounds_loading_and_scoring(subject: Any, model: str) -> None:
    """A time that cannot suffice is a DeadlineExceededError, in every component."""
    with pytest.raises(DeadlineExceededError, match="timeout of 1e-05 s passed"):
        rerank(subject, model, TEXTS, timeout_seconds=1e-5)


class _Poison:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_10_nothing_from_a_model_folder_is_executed(
    local_subject: Any, model: str, tmp_path: Path
) -> None:
    """Pickled weights and modelling code in a folder are refused or ignored, never run."""
    folder, trace = tmp_path / "hostile", tmp_path / "executed"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Poison(trace)))
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    with pytest.raises(ModelError, match="pickle"):
        rerank(local_subject, str(folder), TEXTS)
    assert not trace.exists()


def test_11_a_token_is_shown_nowhere(subject: Any, model: str) -> None:
    """Not in a repr, not in a dump, not in the error of a failing call."""
    secret = "hf_THIS_IS_A_SECRET"  # noqa: S105
    component = subject.make(model, token=secret)
    assert secret not in subject.serialised(component)
    failing = subject.make("/no/such/model", token=secret)
    with pytest.raises(SIEError) as caught:
        subject.rerank(failing, QUERY, subject.documents(TEXTS))
    error: BaseException | None = caught.value
    while error is not None:
        assert secret not in repr(error) + str(error)
        error = error.__cause__ or error.__context__


def test_12_copies_rerank_alike(subject: Any, model: str) -> None:
    """Deepcopy and pickle of a component, used or fresh, give the same ranking."""
    component = subject.make(model, top_k=3)
    for _ in range(2):
        for twin in (copy.deepcopy(component), pickle.loads(pickle.dumps(component))):
            views = map(subject.view, subject.rerank(twin, QUERY, subject.documents(TEXTS)))
            assert ids(list(views)) == ids(rerank(subject, model, TEXTS))[:3]
        subject.rerank(component, QUERY, subject.documents(TEXTS))


class _Locked:
    """A client, and whom a hook belongs to, that cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: list[Any] = []
        self.num_calls = 0

    def score(self, model: str, _query: Item, items: list[Item], **_: Any) -> Mapping[str, Any]:
        self.num_calls += 1
        return {"model": model, "scores": [{"item_id": it["id"], "score": 1.0} for it in items]}

    def tell(self, event: Any) -> None:
        with self.lock:
            self.events.append(event)


class _LockedAsync(_Locked):
    async def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:  # type: ignore[override]
        return super().score(*positional, **named)


def test_12_a_deep_copy_shares_what_stays_the_callers(local_subject: Any) -> None:
    """The hook, whatever it is a method of, and clients, whatever they hold."""
    given, awaited, bare, named = _Locked(), _LockedAsync(), _Locked(), _Locked()
    component = local_subject.make(
        "m",
        client=given,
        async_client=awaited,
        fallback=[bare, Backend(client=named, name="spare")],
        on_rerank=given.tell,
    )
    twins = [copy.deepcopy(component), copy.deepcopy([component])[0]]
    if hasattr(component, "model_copy"):  # of pydantic's components
        twins.append(component.model_copy(deep=True))
        twins.append(component.model_copy(deep=True, update={"top_n": 9}))
    for twin in twins:
        local_subject.rerank(twin, QUERY, local_subject.documents(TEXTS))
        assert twin.fallback[0] is bare
        assert twin.fallback[1].client is named
    assert given.num_calls + awaited.num_calls == len(given.events) == len(twins)


def test_12_a_closed_component_opens_again_on_use(subject: Any, model: str) -> None:
    """`close` may come twice, and the next call loads again."""
    component = subject.make(model)
    first = ids(
        [subject.view(d) for d in subject.rerank(component, QUERY, subject.documents(TEXTS))]
    )
    component.close()
    component.close()
    again = ids(
        [subject.view(d) for d in subject.rerank(component, QUERY, subject.documents(TEXTS))]
    )
    assert again == first
