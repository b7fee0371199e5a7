"""`Reranker` itself: arguments, clients given, overrides, and what a call passes on."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import pickle
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sie_core import Item, LocalAsyncClient, LocalClient, Reranker, SIEClient
from sie_core.calibration import Calibration, LogisticCurve, RisingSteps
from sie_core.errors import InvalidRequestError, SIEConnectionError
from sie_core.fallback import Backend, FallbackClient
from sie_core.fusion import fuse_scores
from sie_core.pace import pace_of
from sie_core.ranking import Ranking


class Recorder:
    """A client that scores by length and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Item, list[Item], dict[str, Any]]] = []
        self.threads: set[int] = set()

    def score(
        self, model: str, query: Item, items: Sequence[Item], **options: Any
    ) -> Mapping[str, Any]:
        self.calls.append((model, query, list(items), options))
        self.threads.add(threading.get_ident())
        scores = [
            {"item_id": item["id"], "score": float(len(item["text"])), "rank": 0} for item in items
        ]
        reply = {"model": model, "query_id": None, "scores": scores[::-1]}
        space = options.get("options", {}).get("score_space")
        return reply if space is None else reply | {"score_space": space}


def test_only_what_was_set_is_passed_to_the_client() -> None:
    """A client with the plain protocol's signature, such as another library's, can be used."""
    client = Recorder()
    Reranker("m", client=client).rerank("q", ["a", "bb"])
    assert client.calls == [
        ("m", Item(text="q"), [Item(id="0", text="a"), Item(id="1", text="bb")], {})
    ]


def test_everything_that_was_set_is_passed_to_the_client() -> None:
    """Instruction, options and gpu travel; our own options are merged into the caller's."""
    client = Recorder()
    reranker = Reranker(
        "m",
        client=client,
        instruction="find",
        options={"profile": "p"},
        gpu="l4",
        max_length=99,
        batch_size=3,
        lora="owner/legal",
        score_space="raw",
    )
    reranker.rerank("q", ["a"])
    assert client.calls[0][3] == {
        "instruction": "find",
        "gpu": "l4",
        "options": {
            "profile": "p",
            "max_length": 99,
            "batch_size": 3,
            "lora": "owner/legal",
            "score_space": "raw",
        },
    }


def test_arguments_of_the_call_win() -> None:
    """top_k, threshold, instruction and score space can be given per call."""
    client = Recorder()
    reranker = Reranker("m", client=client, top_k=5, score_threshold=0, instruction="a")
    ranking = reranker.rerank(
        "q", ["a", "bb", "ccc"], top_k=1, score_threshold=2, instruction="b", score_space="raw"
    )
    assert [entry.index for entry in ranking] == [2]
    assert client.calls[0][3] == {"instruction": "b", "options": {"score_space": "raw"}}
    assert reranker.top_k == 5


def test_a_sync_client_serves_async_calls_from_a_thread() -> None:
    """With only `client` given, `arerank` does not block the loop's thread."""
    client = Recorder()
    ranking = asyncio.run(Reranker("m", client=client).arerank("q", ["a", "bb"]))
    assert [entry.index for entry in ranking] == [1, 0]
    assert threading.get_ident() not in client.threads


def test_an_async_client_alone_refuses_sync_calls() -> None:
    """The error says what to do."""

    class AsyncRecorder:
        async def score(self, *_: Any, **__: Any) -> Mapping[str, Any]:
            return {"scores": [{"item_id": "0", "score": 1.0}]}

    reranker = Reranker("m", async_client=AsyncRecorder())
    assert len(asyncio.run(reranker.arerank("q", ["a"]))) == 1
    with pytest.raises(InvalidRequestError, match="call arerank"):
        reranker.rerank("q", ["a"])


def test_given_local_clients_are_used_and_stay_open(tiny_bert: Path) -> None:
    """A client that was given is the caller's: closing the reranker leaves it usable."""
    client = LocalClient()
    with Reranker(str(tiny_bert), client=client, async_client=LocalAsyncClient(client)) as reranker:
        sync = reranker.rerank("berlin", ["museum", "paris"])
        awaited = asyncio.run(reranker.arerank("berlin", ["museum", "paris"]))
    assert [entry.index for entry in sync] == [entry.index for entry in awaited]
    assert client.score(str(tiny_bert), Item(text="q"), [Item(text="d")])["scores"]


@pytest.mark.usefixtures("released")
async def test_async_context_and_warm_up(tiny_bert: Path) -> None:
    """`awarm_up` loads the model before the first call; the context manager releases it."""
    from sie_core.local.registry import REGISTRY

    async with Reranker(str(tiny_bert), device="cpu", num_threads=2) as reranker:
        await reranker.awarm_up()
        [loaded] = REGISTRY.loaded().values()
        stats = loaded.scheduler.stats()
        assert stats.num_batches == stats.num_workers == 2  # each worker has run
    assert REGISTRY.loaded() == {}


def test_how_the_model_runs_reaches_the_engine(tiny_bert: Path) -> None:
    """Mode and number of threads are those of the client that is made."""
    with Reranker(str(tiny_bert), mode="exact", num_threads=3) as reranker:
        reranker.rerank("berlin", ["museum", "paris"])
        client = reranker._open(is_async=False)
        assert "mode='exact', dtype='float32', num_workers=3" in repr(client)


def test_32_threads_on_one_reranker_get_their_solo_scores(tiny_bert: Path) -> None:
    """2,000 calls with different queries, sizes and lengths: same scores, same truncation."""
    generator = random.Random(17)
    words = ["berlin", "museum", "population", "python", "😀", "naïve", "tower", "language", "of"]

    def text(longest: int) -> str:
        return " ".join(generator.choices(words, k=generator.randrange(1, longest)))

    calls = [
        (
            text(25),
            [text(generator.choice([10, 60, 200])) for _ in range(generator.randrange(1, 7))],
        )
        for _ in range(80)
    ]
    reranker = Reranker(str(tiny_bert))
    solo = [reranker.rerank(*call) for call in calls]
    assert sum(ranking.usage["truncated_items"] for ranking in solo) > 20
    wrong: list[int] = []

    def work(seed: int) -> None:
        order = random.Random(seed)
        for i in order.choices(range(len(calls)), k=63):
            ranking, expected = reranker.rerank(*calls[i]), solo[i]
            scores = {entry.index: entry.score for entry in ranking}
            solo_scores = {entry.index: entry.score for entry in expected}
            if scores != pytest.approx(solo_scores, abs=1e-4) or ranking.usage != expected.usage:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_usage_and_score_space_are_reported(tiny_bert: Path) -> None:
    """A ranking says what its scores are, and what was consumed and cut."""
    ranking = Reranker(str(tiny_bert), score_space="probability").rerank(
        "berlin", ["museum", "river " * 300]
    )
    assert ranking.score_space == "probability"
    assert ranking.usage["truncated_items"] == 1
    assert ranking.status == "complete"
    assert ranking.served_by == "local"
    assert all(0 <= (entry.score or 0) <= 1 for entry in ranking)


def test_probability_is_the_sigmoid_of_raw(tiny_bert: Path) -> None:
    """The two score spaces give one order."""
    documents = ["museum", "paris", "how tall is the tower"]
    raw = Reranker(str(tiny_bert), score_space="raw").rerank("berlin", documents)
    probability = Reranker(str(tiny_bert), score_space="probability").rerank("berlin", documents)
    assert [e.index for e in raw] == [e.index for e in probability]
    for r, p in zip(raw, probability, strict=True):
        assert p.score == pytest.approx(1 / (1 + math.exp(-(r.score or 0))))


NOWHERE = "http://127.0.0.1:9"
"""A port that nothing listens on."""


def test_one_argument_moves_it_to_a_server(tiny_bert: Path, sie_server: str) -> None:
    """With `base_url` the same call is answered by a server, which the ranking names."""
    documents = ["museum", "", "paris", "how tall is the tower"]
    local = Reranker(str(tiny_bert), score_threshold=-1e6).rerank("berlin", documents)
    with Reranker("test/tiny-bert", base_url=sie_server, score_threshold=-1e6) as reranker:
        remote = reranker.rerank("berlin", documents)
    assert [e.index for e in remote] == [e.index for e in local]
    for there, here in zip(remote, local, strict=True):
        assert there.score == pytest.approx(here.score, abs=1e-4)
    assert remote.served_by == sie_server
    assert remote.score_space == local.score_space == "raw"


def test_the_environment_names_the_server(sie_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`SIE_BASE_URL` is used where no `base_url` is given."""
    monkeypatch.setenv("SIE_BASE_URL", sie_server)
    with Reranker("test/tiny-bert") as reranker:
        assert reranker.rerank("berlin", ["museum"]).served_by == sie_server


def test_without_a_fallback_a_server_that_is_not_there_is_an_error() -> None:
    """Nothing is degraded unless the user allowed it."""
    with (
        Reranker("m", base_url=NOWHERE, timeout_seconds=2) as reranker,
        pytest.raises(SIEConnectionError, match=r"127\.0\.0\.1:9"),
    ):
        reranker.rerank("berlin", ["museum"])


async def test_retrieval_order_is_the_last_resort() -> None:
    """Candidates come back as they were, unscored, uncut by the threshold, and marked."""
    async with Reranker(
        "m", base_url=NOWHERE, timeout_seconds=5, fallback="retrieval_order", score_threshold=0.5
    ) as reranker:
        for ranking in (
            await asyncio.to_thread(reranker.rerank, "berlin", ["b", "", "a"], top_k=2),
            await reranker.arerank("berlin", ["b", "", "a"], top_k=2),
        ):
            assert [(e.index, e.score) for e in ranking] == [(0, None), (1, None)]
            assert ranking.status == "degraded"
            assert ranking.served_by == "retrieval_order"
            assert NOWHERE in (ranking.reason or "")
            assert ranking.marks["rerank_status"] == "degraded"


def test_falling_back_to_this_process_is_complete_and_says_why(tiny_bert: Path) -> None:
    """The same model elsewhere gives the same order: complete, with a reason and no marks."""
    with Reranker(str(tiny_bert), base_url=NOWHERE, fallback="local", top_k=1) as reranker:
        ranking = reranker.rerank("berlin", ["museum", "paris"])
    assert (ranking.status, ranking.served_by) == ("complete", "local")
    assert NOWHERE in (ranking.reason or "")
    assert ranking.marks == {}
    expected = Reranker(str(tiny_bert), top_k=1).rerank("berlin", ["museum", "paris"])
    assert ranking.entries == expected.entries


def test_another_models_answer_is_degraded_and_not_cut() -> None:
    """A fallback with a model of its own gives scores, which the threshold is not for."""
    client = Recorder()
    backend = Backend(client=client, model="small", name="spare")
    with Reranker("m", base_url=NOWHERE, fallback=backend, score_threshold=99) as reranker:
        ranking = reranker.rerank("q", ["a", "bb"])
    assert [e.index for e in ranking] == [1, 0]
    assert (ranking.status, ranking.served_by) == ("degraded", "spare")
    assert client.calls[0][0] == "small"


def test_a_dead_server_is_left_alone_after_a_while(tiny_bert: Path) -> None:
    """The circuit opens after failures in a row, and its state can be seen."""
    with Reranker(str(tiny_bert), base_url=NOWHERE, fallback="local") as reranker:
        assert reranker.circuit_states == {NOWHERE: "closed", "local": "closed"}
        for _ in range(4):
            reranker.rerank("berlin", ["museum"])
        assert reranker.circuit_states == {NOWHERE: "open", "local": "closed"}


def test_fallback_local_without_a_server_is_no_chain(tiny_bert: Path) -> None:
    """Leaving out `base_url` moves back into the process; `fallback` may stay as it is."""
    ranking = Reranker(str(tiny_bert), fallback="local").rerank("berlin", ["museum"])
    assert (ranking.served_by, ranking.reason) == ("local", None)


def test_a_score_space_that_the_server_does_not_confirm_is_refused() -> None:
    """Asked for probabilities, scores of an unknown kind are not passed off as such."""
    reply = {
        "model": "m",
        "query_id": None,
        "scores": [{"item_id": "0", "score": 0.5, "rank": 0}],
        "usage": {"input_tokens": 7},
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=reply))
    with (
        SIEClient("http://server", transport=transport) as client,
        Reranker("m", client=client, score_space="probability") as reranker,
        pytest.raises(InvalidRequestError, match="score_space='probability' was asked for"),
    ):
        reranker.rerank("berlin", ["museum"])


def test_secrets_stay_in_the_process(sie_server: str) -> None:
    """Neither repr nor pickle carries api_key or token; a deep copy has them and works."""
    reranker = Reranker("test/tiny-bert", base_url=sie_server, api_key="k-SECRET", token="t-SECRET")  # noqa: S106
    reranker.rerank("berlin", ["museum"])
    assert "SECRET" not in repr(reranker)
    assert b"SECRET" not in pickle.dumps(reranker)
    twin = copy.deepcopy(reranker)
    assert twin._remote_arguments["api_key"] == "k-SECRET"
    for other in (twin, pickle.loads(pickle.dumps(reranker)), reranker):
        assert len(other.rerank("berlin", ["museum"])) == 1
        other.close()


def test_secrets_of_a_fallback_stay_in_the_process(sie_server: str) -> None:
    """The same holds for the arguments of a backend, given or in a chain."""
    backend = Backend(client=sie_server, arguments={"api_key": "k-SECRET"}, model="test/tiny-bert")
    reranker = Reranker("m", base_url=NOWHERE, fallback=[backend])
    for whole in (reranker, FallbackClient([NOWHERE, backend])):
        assert b"SECRET" not in pickle.dumps(whole)
        assert "SECRET" not in repr(whole)
    assert copy.deepcopy(reranker).fallback[0].arguments == {"api_key": "k-SECRET"}
    chain = copy.deepcopy(FallbackClient([NOWHERE, backend]))
    assert chain._given[1].arguments == {"api_key": "k-SECRET"}


def test_a_given_client_is_shared_by_copies() -> None:
    """It stays the caller's, and may hold locks or sockets that cannot be copied."""
    client = Recorder()
    client.lock = threading.Lock()  # type: ignore[attr-defined]
    copy.deepcopy(Reranker("m", client=client)).rerank("q", ["a"])
    assert len(client.calls) == 1


async def test_closing_from_inside_a_running_loop(sie_server: str) -> None:
    """`close` may be called from sync code that runs in a loop; the connections do close."""
    reranker = Reranker("test/tiny-bert", base_url=sie_server)
    await reranker.arerank("berlin", ["museum"])
    reranker.close()
    await asyncio.sleep(0)
    assert len(await reranker.arerank("berlin", ["museum"])) == 1
    await reranker.aclose()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"top_k": 0}, "top_k must be at least 1, but got 0"),
        ({"score_threshold": math.nan}, "score_threshold must be a finite number"),
        ({"score_space": "logits"}, "score_space must be 'raw' or 'probability'"),
        ({"model": 5}, "model must be a string, but got int: 5"),
        ({"instruction": 5}, "instruction must be a string, but got int: 5"),
        ({"base_url": "localhost:8080"}, "base_url"),
        ({"fallback": "locale"}, "'local' or 'retrieval_order', but got 'locale'"),
        ({"fallback": ["retrieval_order", "local"], "base_url": "http://x"}, "put it last"),
        ({"fallback": "http://u:p@h", "base_url": "http://x"}, "must not hold credentials"),
        ({"timeout_seconds": 0}, "timeout_seconds must be a positive number of seconds or None"),
        ({"max_latency_ms": 0}, "max_latency_ms must be a positive number of milliseconds or None"),
        ({"client": Recorder(), "device": "cpu"}, "device cannot be combined with a client"),
        ({"client": Recorder(), "base_url": "http://x"}, "base_url cannot be combined"),
        ({"client": Recorder(), "mode": "fast"}, "mode cannot be combined with a client"),
        ({"client": Recorder(), "num_threads": 2}, "num_threads cannot be combined"),
        ({"mode": "quick"}, "mode must be one of auto, exact, fast, but got 'quick'"),
        ({"mode": "exact", "dtype": "float32"}, "both decide the number format"),
    ],
)
def test_bad_constructor_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    """Each is an error when the object is made, not at the first query."""
    with pytest.raises(InvalidRequestError, match=complaint):
        Reranker(**arguments)


@pytest.mark.parametrize(
    ("query", "documents", "complaint"),
    [
        ("q", "one string", "documents must be a list of strings, but got str"),
        ("q", [1], r"documents\[0\] must be a string or None, but got int"),
        ("q", None, "documents must be a list of strings, but got NoneType"),
        (None, ["a"], "query must be a string with text in it, but got None"),
        (" ", ["a"], "query must be a string with text in it, but got ' '"),
    ],
)
def test_bad_call_arguments_are_named(query: Any, documents: Any, complaint: str) -> None:
    """Bad queries and documents are refused before a client is asked."""
    client = Recorder()
    with pytest.raises(InvalidRequestError, match=complaint):
        Reranker("m", client=client).rerank(query, documents)
    assert client.calls == []


def test_no_documents_need_no_query_and_no_client() -> None:
    """An empty list is answered at once."""
    client = Recorder()
    assert len(Reranker("m", client=client).rerank("", [])) == 0
    assert client.calls == []


def test_text_sent_is_the_text_given() -> None:
    """White space around a document is not stripped; blank ones alone are kept back."""
    client = Recorder()
    Reranker("m", client=client).rerank("q", ["  a \n", " ", None])
    assert client.calls[0][2] == [Item(id="0", text="  a \n")]


CURVE = Calibration(
    model="m", score_space=None, probability=LogisticCurve(slope=0.5, intercept=-1.0)
)


def test_calibrated_scores_are_probabilities_in_the_models_order() -> None:
    """The threshold is held against them, and what the model gave is kept beside."""
    reranker = Reranker("m", client=Recorder(), score_space="calibrated", calibration=CURVE)
    ranking = reranker.rerank("q", ["a", "bbbb", "", "cc"], score_threshold=0.45)
    assert [entry.index for entry in ranking] == [1, 3, 2]
    scores = [entry.score for entry in ranking]
    assert scores == [CURVE.probability(4.0), CURVE.probability(2.0), None]
    assert [entry.model_score for entry in ranking] == [4.0, 2.0, None]
    assert ranking.score_space == "calibrated"


def test_equal_probabilities_keep_the_models_order() -> None:
    """Steps make ties of different scores; the order is the finer one."""
    flat = Calibration(
        model="m", score_space=None, probability=RisingSteps(scores=(0.0,), probabilities=(0.5,))
    )
    reranker = Reranker("m", client=Recorder(), score_space="calibrated", calibration=flat)
    ranking = reranker.rerank("q", ["a", "ccc", "bb"])
    assert [(entry.index, entry.score) for entry in ranking] == [(1, 0.5), (2, 0.5), (0, 0.5)]


def test_the_calibration_is_found_by_the_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or in the file given; without one the error says how to make it."""
    monkeypatch.setenv("SIE_CACHE_DIR", str(tmp_path))
    reranker = Reranker("m", client=Recorder(), score_space="calibrated")
    with pytest.raises(InvalidRequestError, match="sie calibrate"):
        reranker.rerank("q", ["a"])
    CURVE.save()
    assert reranker.rerank("q", ["a"]).entries[0].score == CURVE.probability(1.0)
    path = CURVE.save(tmp_path / "own.json")
    other = Reranker("x", client=Recorder(), calibration=path)
    ranking = other.rerank("q", ["a"], score_space="calibrated")
    assert ranking.entries[0].score == CURVE.probability(1.0)
    assert other.rerank("q", ["a"]).entries[0].score == 1.0
    assert pickle.loads(pickle.dumps(CURVE)) == CURVE


def test_a_calibration_of_raw_scores_asks_for_raw_scores(tiny_bert: Path) -> None:
    """In this process the model's logits are what it is applied to, whatever its own space."""
    curve = replace(CURVE, score_space="raw")
    texts = ["berlin is a city", "museum"]
    with Reranker(str(tiny_bert)) as reranker:
        raw = reranker.rerank("q", texts, score_space="raw")
    with Reranker(str(tiny_bert), score_space="calibrated", calibration=curve) as reranker:
        calibrated = reranker.rerank("q", texts)
    assert [entry.model_score for entry in calibrated] == [entry.score for entry in raw]
    assert [entry.score for entry in calibrated] == [
        curve.probability(entry.score or 0.0) for entry in raw
    ]


@pytest.mark.parametrize(
    ("weight", "order"), [(0.0, [1, 2, 0, 3]), (1.0, [2, 0, 1, 3]), (0.5, [2, 1, 0, 3])]
)
def test_the_retrieval_score_is_mixed_in_by_its_weight(weight: float, order: list[int]) -> None:
    """0 is the reranker alone, 1 the first stage alone; the mix is the entry's score."""
    reranker = Reranker("m", client=Recorder(), fuse_retrieval_score=weight)
    documents, retrieval_scores = ["a", "cccc", "bbb", " "], [0.8, 0.1, 0.9, None]
    ranking = reranker.rerank("q", documents, retrieval_scores=retrieval_scores)
    assert [entry.index for entry in ranking] == order
    mixed = fuse_scores([1.0, 4.0, 3.0], [0.8, 0.1, 0.9], retrieval_weight=weight)
    assert {entry.index: entry.score for entry in ranking} == {**dict(enumerate(mixed)), 3: None}
    assert {entry.index: entry.model_score for entry in ranking} == {0: 1, 1: 4, 2: 3, 3: None}


def test_the_threshold_is_held_against_the_score_before_mixing() -> None:
    """A mix has no scale of its own."""
    reranker = Reranker("m", client=Recorder(), fuse_retrieval_score=0.9, score_threshold=3)
    ranking = reranker.rerank("q", ["a", "cccc", "bbb"], retrieval_scores=[9, 1, 2])
    assert [entry.index for entry in ranking] == [2, 1]


@pytest.mark.parametrize("scores", [None, [1.0], [1.0, None], [1.0, math.nan]])
def test_mixing_needs_every_retrieval_score(scores: list[float | None] | None) -> None:
    """A guess in place of a missing one would move documents."""
    reranker = Reranker("m", client=Recorder(), fuse_retrieval_score=0.5)
    with pytest.raises(InvalidRequestError, match="fuse_retrieval_score needs"):
        reranker.rerank("q", ["a", "b"], retrieval_scores=scores)


@pytest.mark.parametrize("of", [list, np.array])
def test_retrieval_scores_may_be_numpys(of: Callable[[Any], Any]) -> None:
    """As FAISS and others give them; the mix is a plain number, which JSON can hold."""
    reranker = Reranker("m", client=Recorder(), fuse_retrieval_score=0.5)
    given = of([np.float32(1.0), np.float32(2.0)])
    ranking = reranker.rerank("q", ["a", "bb"], retrieval_scores=given)
    assert [entry.index for entry in ranking] == [1, 0]
    assert {type(entry.score) for entry in ranking} == {float}


def test_no_documents_need_no_retrieval_scores() -> None:
    """An empty list stays one, whatever else is asked for."""
    assert len(Reranker("m", client=Recorder(), fuse_retrieval_score=0.5).rerank("q", [])) == 0


def test_an_empty_instruction_takes_the_place_of_the_constructors() -> None:
    """Only None means that one."""
    client = Recorder()
    reranker = Reranker("m", client=client, instruction="find")
    reranker.rerank("q", ["a"], instruction="")
    reranker.rerank("q", ["a"])
    assert [call[3] for call in client.calls] == [{}, {"instruction": "find"}]


def test_a_given_client_is_named_by_what_it_is(tiny_bert: Path, sie_server: str) -> None:
    """A server's address in `served_by`; the engine's counts are there for one in this process."""
    with SIEClient(sie_server) as client:
        ranking = Reranker("test/tiny-bert", client=client).rerank("berlin", ["museum"])
    assert ranking.served_by == sie_server
    reranker = Reranker(str(tiny_bert), client=LocalClient())
    assert reranker.rerank("berlin", ["museum"]).served_by == "local"
    assert reranker.stats().engine.num_batches > 0


def test_a_copy_shares_the_clients_of_a_fallback() -> None:
    """They are the caller's, and may hold what cannot be copied."""

    class Locked(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    bare, named = Locked(), Locked()
    backend = Backend(client=named, name="spare")
    twin = copy.deepcopy(Reranker("m", base_url=NOWHERE, fallback=[bare, backend]))
    assert twin.fallback[0] is bare
    assert twin.fallback[1].client is named
    assert copy.copy(Reranker("m", base_url=NOWHERE, fallback=bare)).fallback is bare


def test_another_models_scores_are_not_calibrated() -> None:
    """The curve is that of the model asked for; a stand-in's scores stay as they are."""
    calibration = Calibration(
        model="m", score_space=None, probability=LogisticCurve(slope=1.0, intercept=0.0)
    )
    with Reranker(
        "m",
        base_url=NOWHERE,
        fallback=Backend(client=Recorder(), model="other"),
        score_space="calibrated",
        calibration=calibration,
    ) as reranker:
        ranking = reranker.rerank("q", ["a", "bb"])
    assert [(entry.index, entry.score) for entry in ranking] == [(1, 2.0), (0, 1.0)]
    assert (ranking.status, ranking.score_space) == ("degraded", None)


def test_a_calibration_of_unasked_scores_holds_where_the_reply_names_them() -> None:
    """A server that learnt to say which scores it gives gives the same ones."""

    class Saying(Recorder):
        def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:
            return {**super().score(*positional, **named), "score_space": "raw"}

    calibration = Calibration(
        model="m", score_space=None, probability=LogisticCurve(slope=1.0, intercept=-1.0)
    )
    reranker = Reranker("m", client=Saying(), score_space="calibrated", calibration=calibration)
    ranking = reranker.rerank("q", ["a"])
    assert ranking.score_space == "calibrated"
    assert ranking.entries[0].score == pytest.approx(0.5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_a_client_was_opened_does_not_wait_for_it() -> None:
    """The thread that holds the lock is not there."""
    reranker = Reranker("m", client=Recorder())
    with reranker._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if len(reranker.rerank("q", ["a"])) == 1 else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_deadline_holds_where_a_backend_knows_of_none() -> None:
    """Behind a fallback as without one the client goes on in a thread; the answer is partial."""

    class Stubborn:
        def __init__(self) -> None:
            self.released = threading.Event()

        def score(self, _model: str, _query: Item, _items: Sequence[Item]) -> Mapping[str, Any]:
            self.released.wait(30)
            return {}

    async def awaited(reranker: Reranker, client: Stubborn) -> Ranking:
        try:
            return await reranker.arerank("q", ["a"])
        finally:
            client.released.set()  # or the loop, which waits for its threads, does not end

    for fallback in (None, "retrieval_order"):
        client = Stubborn()
        reranker = Reranker("m", client=client, max_latency_ms=30, fallback=fallback)
        rankings = [reranker.rerank("q", ["a"])]
        assert not client.released.is_set()
        rankings.append(asyncio.run(awaited(reranker, client)))
        for ranking in rankings:
            assert (ranking.status, ranking.num_scored) == ("partial", 0)


def test_a_pace_is_that_of_how_a_model_runs(tiny_bert: Path) -> None:
    """What one core measured says nothing of how much two can do before a deadline."""
    with Reranker(str(tiny_bert), num_threads=1) as reranker:
        reranker.warm_up()
        reranker.rerank("berlin", ["museum"], max_latency_ms=60_000)
        paces = [
            pace_of(f"local None auto None {num_threads}", str(tiny_bert), "None")
            for num_threads in (1, 2)
        ]
    assert paces[0].seconds_per_char is not None
    assert paces[1].seconds_per_char is None


def test_a_timeout_is_of_the_whole_call() -> None:
    """A later stage of a cascade has what the first one left of it."""

    class Slow(Recorder):
        def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:
            threading.Event().wait(0.15)  # more than a hundredth of the timeout
            return super().score(*positional, **named)

    client = Slow()
    chain = Reranker("m", base_url=NOWHERE, fallback=client, timeout_seconds=10, cascade=[("c", 2)])
    with chain:
        chain.rerank("q", ["a", "b", "c"])
    assert [call[0] for call in client.calls] == ["c", "m"]
    first, second = (call[3]["timeout_seconds"] for call in client.calls)
    assert second < first - 0.1


def test_without_scores_there_is_nothing_to_mix() -> None:
    """Retrieval order stays retrieval order."""
    reranker = Reranker(
        "m",
        base_url="http://127.0.0.1:9",
        fallback="retrieval_order",
        fuse_retrieval_score=0.5,
        timeout_seconds=5,
    )
    with reranker:
        ranking = reranker.rerank("q", ["a", "b"], retrieval_scores=[1.0, 2.0])
    assert [(entry.index, entry.score) for entry in ranking] == [(0, None), (1, None)]
