"""Deadlines, early stop, cascades and kept scores, as plans driven by hand: no model, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from sie_core.cascade import Stage
from sie_core.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ServerError,
)
from sie_core.pace import cost_of, pace_of
from sie_core.ranking import Ranking
from sie_core.rerank_plan import RerankCall, rerank_plan
from sie_core.score_cache import ScoreCache
from sie_core.stage_plan import Keeping, Patience
from sie_core.steps import Outcome, Step, run


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Scores a text by the number in it, so fast, and keeps what it was asked."""

    def __init__(self, clock: Clock | None = None, seconds_per_text: float = 0.0) -> None:
        self.clock = clock or Clock()
        self.seconds_per_text = seconds_per_text
        self.asked: list[Step] = []

    def score(
        self,
        model: str,
        query: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        *,
        timeout_seconds: float | None = None,
        **arguments: Any,
    ) -> Mapping[str, Any]:
        self.asked.append(Step(model=model, query=query, items=items, arguments=arguments))  # type: ignore[arg-type]
        needed = self.seconds_per_text * len(items)
        if timeout_seconds is not None and needed > timeout_seconds:
            self.clock.now += timeout_seconds
            msg = "no time"
            raise DeadlineExceededError(msg)
        self.clock.now += needed
        return self.reply(model, items)

    def score_many(self, steps: Sequence[Step]) -> list[Outcome]:
        """Be one that runs here, and keeps its time itself: by a clock that is none."""
        return [self.score(it.model, it.query, it.items, **it.arguments) for it in steps]

    def reply(self, model: str, items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        sign = -1 if model == "contrary" else 1
        scores = [
            {"item_id": item["id"], "score": sign * float(item["text"].split()[0]), "rank": 0}
            for item in items
        ]
        return {
            "model": model,
            "scores": scores,
            "usage": {"input_tokens": len(items), "truncated_items": 0},
            "score_space": "raw",
        }

    @property
    def sizes(self) -> list[int]:
        return [len(step.items) for step in self.asked]


_places = iter(range(10**6))


def _call(documents: Sequence[str | None], **settings: Any) -> RerankCall:
    """Return a call at a place of its own, whose pace nobody has measured."""
    settings = {
        "backend": f"place-{next(_places)}",
        "model": "m",
        "arguments": {},
        "keeping": Keeping(source_of=lambda _model, _lora: "here"),
    } | settings
    return RerankCall(query="q", documents=documents, **settings)


def _rank(model: Any, call: RerankCall) -> Ranking:
    return run(rerank_plan(call), lambda: model)


def _order(ranking: Ranking) -> list[int]:
    return [entry.index for entry in ranking]


def _documents(num: int) -> list[str]:
    """Return texts of equal length, the best last."""
    return [f"{index:03d}" for index in range(num)]


def _patience(clock: Clock, seconds: float, **more: Any) -> Patience:
    return Patience(moment=clock.now + seconds, clock=clock, **more)


def test_a_deadline_gives_what_is_scored_best_first_and_then_the_rest() -> None:
    """Of 100 documents of which 50 fit, the scored come first and the rest as retrieved."""
    clock = Clock()
    model = Model(clock, seconds_per_text=0.01)
    documents: list[str | None] = list(_documents(100))
    documents[1] = " "
    ranking = _rank(model, _call(documents, patience=_patience(clock, 0.5)))
    num = ranking.num_scored
    assert ranking.status == "partial"
    assert 40 <= num < 50  # hardly anything is lost to caution
    assert ranking.num_unscored == 99 - num
    scored = [entry for entry in ranking if entry.score is not None]
    assert [entry.index for entry in scored] == [i for i in range(num, -1, -1) if i != 1]
    assert _order(ranking)[num:] == [*range(num + 1, 100), 1]  # blank documents stay last
    assert clock.now <= 100.5
    assert len(model.asked) <= 8  # in few portions
    assert ranking.reason == f"time was up with {num} of 99 documents scored"
    assert ranking.marks["rerank_status"] == "partial"


def test_the_time_that_loading_takes_is_not_learnt() -> None:
    """Where the weights are not in memory yet, the first portion's time says nothing."""
    clock = Clock()
    model = Model(clock, seconds_per_text=5.0)
    call = _call(_documents(2), backend="loads", patience=_patience(clock, 60), keeping=Keeping())
    _rank(model, call)
    assert pace_of("loads", "m", "None").seconds_per_char is None


def test_what_cannot_be_finished_is_not_begun() -> None:
    """With the pace known, a call that has too little time for one more document ends early."""
    clock = Clock()
    model = Model(clock, seconds_per_text=0.1)
    call = _call(_documents(4), patience=_patience(clock, 0.35))
    ranking = _rank(model, call)
    assert ranking.num_scored == 3
    assert clock.now == pytest.approx(100.3)


def test_a_pace_learnt_too_slow_is_corrected() -> None:
    """One document is tried in each call, so that one slow call does not stop all later ones."""
    clock = Clock()
    pace_of("slow-once", "m", "None").observe(33, 60.0)
    model = Model(clock, seconds_per_text=0.001)
    call = _call(_documents(30), backend="slow-once", patience=_patience(clock, 0.1))
    assert _rank(model, call).num_scored == 30
    assert model.sizes[0] == 1


def test_calls_that_share_the_machine_plan_with_their_part_of_the_time() -> None:
    """Of five at once each begins a fifth of what one alone would, and all learn the same pace."""
    cost = cost_of("q", "000", None)
    for num_together, num_first in ((1, 25), (5, 5)):
        clock = Clock()
        pace_of(f"of {num_together}", "m", "None").observe(cost, 0.01)
        model = Model(clock, seconds_per_text=0.01 * num_together)
        patience = _patience(clock, 0.51, num_together=num_together)
        _rank(model, _call(_documents(100), backend=f"of {num_together}", patience=patience))
        assert model.sizes[0] == num_first
        learnt = pace_of(f"of {num_together}", "m", "None").seconds_per_char
        assert learnt == pytest.approx(0.01 / cost)


def test_a_call_that_has_time_for_all_is_complete_and_asks_once() -> None:
    """A generous deadline costs nothing, once the pace is known."""
    clock = Clock()
    model = Model(clock, seconds_per_text=0.001)
    for _ in range(2):
        call = _call(_documents(50), backend="generous", patience=_patience(clock, 10))
        ranking = _rank(model, call)
    assert ranking.status == "complete"
    assert model.sizes == [2, 48, 50]
    assert ranking.marks == {}


def test_a_model_too_slow_for_one_document_gives_retrieval_order() -> None:
    """Nothing is scored at all: that is a partial answer, and no error."""
    clock = Clock()
    ranking = _rank(Model(clock, 1.0), _call(_documents(3), patience=_patience(clock, 0.05)))
    assert (_order(ranking), ranking.status, ranking.num_scored) == ([0, 1, 2], "partial", 0)
    assert clock.now == pytest.approx(100.05)


def test_failures_before_the_deadline_are_raised() -> None:
    """A deadline hides no error but its own."""

    class Failing(Model):
        def reply(self, _model: str, _items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
            msg = "broken"
            raise ServerError(msg)

    with pytest.raises(ServerError, match="broken"):
        _rank(Failing(), _call(_documents(3), patience=_patience(Clock(), 1)))


def test_a_portion_by_another_model_does_not_mix_with_those_before() -> None:
    """Where a fallback takes over in the middle, what the model itself scored is kept."""

    class Ailing(Model):
        def reply(self, model: str, items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
            reply = super().reply(model, items)
            if len(self.asked) == 1:
                return reply
            return {**reply, "status": "degraded", "served_by": "other", "reason": "m is down"}

    clock = Clock()
    ranking = _rank(Ailing(clock, 0.001), _call(_documents(9), patience=_patience(clock, 1)))
    assert (ranking.status, ranking.num_scored, ranking.num_unscored) == ("partial", 2, 7)
    assert "other answered in its place: m is down" in (ranking.reason or "")


def test_scores_of_another_kind_do_not_mix_with_those_before() -> None:
    """Probabilities and logits have no common order: the first are kept, the rest is unscored."""

    class Changing(Model):
        def reply(self, model: str, items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
            space = "probability" if len(self.asked) == 1 else "raw"
            return {**super().reply(model, items), "score_space": space}

    call = _call(_documents(32), patience=Patience(stop_when_stable=9))
    ranking = _rank(Changing(), call)
    assert (ranking.status, ranking.num_scored, ranking.num_unscored) == ("partial", 16, 16)
    assert ranking.score_space == "probability"
    assert "scores of another kind" in (ranking.reason or "")


def test_every_reply_must_say_that_long_documents_were_read() -> None:
    """One of a server that cuts them silently is refused, also where others came before it."""

    class Mixed(Model):
        def reply(self, model: str, items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
            said = {"long_documents": "max_passage"} if len(self.asked) == 1 else {}
            return {**super().reply(model, items), **said}

    call = _call(
        _documents(32),
        arguments={"options": {"long_documents": "max_passage"}},
        patience=Patience(stop_when_stable=9),
    )
    with pytest.raises(InvalidRequestError, match="does not say that it did so"):
        _rank(Mixed(), call)


def test_retrieval_order_after_the_deadline_is_partial() -> None:
    """Time was up: nobody failed, and nobody stands in."""

    class Late(Model):
        def reply(self, model: str, *_: object) -> Mapping[str, Any]:
            self.clock.now += 1.0
            return {"model": model, "scores": [], "status": "degraded", "reason": "no time"}

    clock = Clock()
    ranking = _rank(Late(clock), _call(_documents(3), patience=_patience(clock, 0.5)))
    assert (ranking.status, ranking.reason) == (
        "partial",
        "time was up with 0 of 3 documents scored",
    )


@pytest.mark.parametrize(("sends_once", "ids"), [(True, "01"), (False, "01234")])
def test_equal_texts_are_sent_to_a_server_once(sends_once: bool, ids: str) -> None:
    """Every copy gets the score; a model in this process shares them itself, and counts them."""
    model = Model()
    ranking = _rank(model, _call(["1", "2", "1", "2", "1"], sends_once=sends_once))
    assert [item["id"] for item in model.asked[0].items] == list(ids)
    assert [(entry.index, entry.score) for entry in ranking] == [
        (1, 2.0),
        (3, 2.0),
        (0, 1.0),
        (2, 1.0),
        (4, 1.0),
    ]
    assert ranking.usage["input_tokens"] == len(ids)


def test_duplicates_are_left_out_of_all_places() -> None:
    """Of scored, unscored and of those a stage left behind; blank ones stay, and the first does."""
    documents: list[str | None] = ["1", "3", None, "1", "3", " ", "2", "3", "1 more", " "]
    model = Model()
    ranking = _rank(model, _call(documents, drop_duplicates=True))
    assert [item["id"] for item in model.asked[0].items] == ["0", "1", "6", "8"]
    assert _order(ranking) == [1, 6, 0, 8, 2, 5, 9]
    assert (ranking.num_scored, ranking.num_unscored, ranking.num_duplicates) == (4, 0, 3)
    assert ranking.status == "complete"
    assert _order(_rank(Model(), _call(documents, drop_duplicates=True, top_k=3))) == [1, 6, 0]
    staged = _call(documents, model="contrary", cascade=[Stage("m", 2)], drop_duplicates=True)
    assert _order(_rank(Model(), staged)) == [6, 1, 0, 8, 2, 5, 9]
    kept = _rank(Model(), _call(documents))
    assert (len(kept), kept.num_duplicates) == (len(documents), 0)


def test_duplicates_are_left_out_of_retrieval_order_too() -> None:
    """Where nobody scores, the documents stay as retrieved, without those that stood before."""

    class Nobody(Model):
        def reply(self, model: str, *_: object) -> Mapping[str, Any]:
            return {"model": model, "scores": [], "status": "degraded", "reason": "down"}

    ranking = _rank(Nobody(), _call(["2", None, "2", "1", "2"], drop_duplicates=True))
    assert (_order(ranking), ranking.status) == ([0, 1, 3], "degraded")
    late = _call(["2", "1", "2", "3"], drop_duplicates=True, patience=_patience(Clock(), 0))
    assert _order(_rank(Model(), late)) == [0, 1, 3]


def test_an_untrustworthy_reply_is_refused() -> None:
    """A portion's scores are matched by id as a whole reply's are."""

    class Confused(Model):
        def reply(self, model: str, items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
            return {"model": model, "scores": [{"item_id": "7", "score": 1.0}] * len(items)}

    with pytest.raises(InvalidResponseError, match="not sent"):
        _rank(Confused(), _call(_documents(3)))


def test_stop_when_stable_ends_after_batches_that_change_nothing() -> None:
    """The best come first here: the second and third batch leave the top 2 as it was."""
    model = Model()
    documents = _documents(100)[::-1]
    call = _call(
        documents,
        arguments={"options": {"batch_size": 10}},
        patience=Patience(stop_when_stable=2, top_k=2),
    )
    ranking = _rank(model, call)
    assert model.sizes == [10, 10, 10]
    assert (ranking.status, ranking.num_scored, ranking.num_unscored) == ("partial", 30, 70)
    assert _order(ranking) == list(range(100))


def test_stop_when_stable_goes_on_while_the_top_changes() -> None:
    """The best come last here: nothing may be left out."""
    model = Model()
    call = _call(_documents(48), patience=Patience(stop_when_stable=1, top_k=2))
    assert _rank(model, call).status == "complete"
    assert model.sizes == [16, 16, 16]


def test_a_cascade_scores_the_best_of_the_cheap_model_with_its_own() -> None:
    """Those that go on stand first by the own model, the others behind by the cheap one's."""
    model = Model()
    documents: list[str | None] = [*_documents(10), None]
    call = _call(documents, model="contrary", cascade=[Stage("m", keep=0.3)])
    ranking = _rank(model, call)
    assert [(step.model, len(step.items)) for step in model.asked] == [("m", 10), ("contrary", 3)]
    assert _order(ranking) == [7, 8, 9, 6, 5, 4, 3, 2, 1, 0, 10]
    assert [entry.score for entry in ranking][:4] == [-7.0, -8.0, -9.0, None]
    assert [entry.stage_scores for entry in ranking][2:4] == [(9.0,), (6.0,)]
    assert ranking.entries[-1].stage_scores == (None,)
    assert (ranking.status, ranking.num_scored, ranking.num_unscored) == ("complete", 3, 0)
    assert ranking.usage["input_tokens"] == 13


def test_a_threshold_leaves_out_what_a_cascade_left_behind() -> None:
    """It is below what went on, of which even the last may be cut."""
    call = _call(
        _documents(10), model="contrary", cascade=[Stage("m", keep=3)], score_threshold=-8.0
    )
    assert _order(_rank(Model(), call)) == [7, 8]


def test_stages_may_follow_each_other_and_have_options_of_their_own() -> None:
    """What says how the own model is asked is not passed on to a stage."""
    model = Model()
    call = _call(
        _documents(10),
        arguments={"instruction": "find", "options": {"max_length": 400, "batch_size": 5}},
        cascade=[Stage("a", keep=6), Stage("contrary", keep=0.5, options={"max_length": 64})],
    )
    ranking = _rank(model, call)
    assert [(step.model, len(step.items)) for step in model.asked] == [
        ("a", 10),
        ("contrary", 6),
        ("m", 3),
    ]
    assert model.asked[0].arguments == {"options": {"batch_size": 5}}
    assert model.asked[1].arguments == {"options": {"max_length": 64, "batch_size": 5}}
    assert model.asked[2].arguments == call.arguments
    assert _order(ranking)[:7] == [6, 5, 4, 7, 8, 9, 3]


@pytest.mark.parametrize("own", [{"long_documents": "truncate"}, {"max_document_length": 64}])
def test_a_stage_may_read_long_documents_in_its_own_way(own: dict[str, Any]) -> None:
    """Then nothing of how the own model reads them is passed on to it; otherwise all of it is."""
    model = Model()
    passages = {"long_documents": "max_passage", "passage_length": 200}
    call = _call(
        _documents(4),
        model="contrary",
        arguments={"options": passages},
        cascade=[Stage("a", keep=3, options=own), Stage("b", keep=2)],
    )
    with pytest.raises(InvalidRequestError):  # the model here does not say that it read passages
        _rank(model, call)
    assert [step.arguments["options"] for step in model.asked] == [own, passages]


def test_a_deadline_in_a_cascade_keeps_the_cheap_models_order() -> None:
    """What the own model had no time for stands in the cheap one's order, the best of it first."""
    clock = Clock()
    slow = _Slow(clock)
    call = _call(
        _documents(100),
        model="contrary",
        cascade=[Stage("m", keep=0.5)],
        patience=_patience(clock, 1.0),
    )
    ranking = _rank(slow, call)
    num = ranking.num_scored
    assert ranking.status == "partial"
    assert 0 < num < 50
    assert _order(ranking)[:num] == [*range(100 - num, 100)]
    assert _order(ranking)[num:] == [*range(99 - num, -1, -1)]


class _Slow(Model):
    """A cheap model `m`, and an expensive one `contrary`."""

    def score(self, model: str, *positional: Any, **named: Any) -> Mapping[str, Any]:
        self.seconds_per_text = 0.05 if model == "contrary" else 0.001
        return super().score(model, *positional, **named)


def test_known_scores_are_not_asked_for_again() -> None:
    """A second call sends only what is new, and gives the same numbers."""
    model = Model()
    keeping = Keeping(cache=ScoreCache(10**6), source_of=lambda _model, _lora: "here")
    first = _rank(model, _call(_documents(5), keeping=keeping))
    second = _rank(model, _call(_documents(7), keeping=keeping))
    again = _rank(model, _call(_documents(5), keeping=keeping))
    assert model.sizes == [5, 2]
    assert second.num_cached == 5
    assert again.entries == first.entries
    assert again.score_space == "raw"
    assert again.usage.get("input_tokens", 0) == 0


def test_known_scores_do_not_mix_with_another_models() -> None:
    """Where the model does not answer any more, all documents are scored by who does."""

    class Replaced(Model):
        def reply(self, _: str, items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
            reply = super().reply("contrary", items)
            return {**reply, "status": "degraded", "served_by": "other", "reason": "m is down"}

    keeping = Keeping(cache=ScoreCache(10**6), source_of=lambda _model, _lora: "here")
    _rank(Model(), _call(_documents(5), keeping=keeping))
    degraded = _rank(Replaced(), _call(_documents(7), keeping=keeping))
    assert (degraded.status, degraded.num_cached) == ("degraded", 0)
    assert _order(degraded) == [0, 1, 2, 3, 4, 5, 6]
    model = Model()
    assert _rank(model, _call(_documents(7), keeping=keeping)).num_cached == 5  # none was kept


def test_scores_of_other_weights_are_not_taken() -> None:
    """The same name means other weights after a swap; where they are not known, none are taken."""
    model = Model()
    cache, sources = ScoreCache(10**6), ["old", "old", "new"]
    source_of: Callable[[str, str | None], str | None] = lambda _model, _lora: sources.pop(0)  # noqa: E731
    for _ in range(3):
        keeping = Keeping(cache=cache, source_of=source_of)
        _rank(model, _call(_documents(5), keeping=keeping))
    assert model.sizes == [5, 5]
    unknown = Keeping(cache=cache)
    _rank(model, _call(_documents(5), keeping=unknown))
    _rank(model, _call(_documents(5), keeping=unknown))
    assert model.sizes == [5, 5, 5, 5]


@pytest.mark.parametrize(
    "wrong",
    ["m", {"m": 0.3}, [("m",)], [("m", 0.0)], [("m", 1.0)], [("m", 0)], [("", 0.5)], [3]],
)
def test_a_wrong_cascade_is_refused(wrong: Any) -> None:
    """The error says what a cascade looks like."""
    from sie_core import Reranker

    with pytest.raises(InvalidRequestError, match=r"cascade|keep|model"):
        Reranker(cascade=wrong)


def test_outcomes_are_judged_by_the_plan() -> None:
    """A plan can be driven by hand: it is sent what came of each step."""
    plan = rerank_plan(_call(["1", "2"]))
    [step] = next(plan)
    outcomes: list[Outcome] = [Model().reply("m", step.items)]
    with pytest.raises(StopIteration) as end:
        plan.send(outcomes)
    assert _order(end.value.value) == [1, 0]
