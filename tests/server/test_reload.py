"""Models that change while callers use them: reloads, adapters by request, and too many models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core import SIEClient
from sie_core.local import LocalClient
from sie_core.server.keys import make_key
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings
from sie_core.types import Item

PATIENCE_SECONDS = 60
TOLERANCE = 1e-4
QUERY = Item(text="how many people live in berlin")
ITEMS = [
    Item(text=f"{word} berlin {i}") for i, word in enumerate(["river", "museum", "people"] * 4)
]

Scores = list[float]
Serve = Callable[..., Server]


@pytest.fixture
def other_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """A checkpoint that scores otherwise than `tiny_bert`."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "other"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= -1
    weights["classifier.bias"] += 3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def ordered(result: Any) -> Scores:
    """Return the scores of a reply in the order of the items."""
    by_id = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [by_id[f"item-{i}"] for i in range(len(by_id))]


def engine_scores(model: Path, **terms: Any) -> Scores:
    """Score with the engine, called directly."""
    return ordered(LocalClient(mode="exact").score(str(model), QUERY, ITEMS, **terms))


def which(scores: Scores, known: Sequence[Scores]) -> int:
    """Tell which of some lists of scores a reply is: all of it, and within the tolerance."""
    matches = [i for i, it in enumerate(known) if scores == pytest.approx(it, abs=TOLERANCE)]
    assert len(matches) == 1, f"{scores} is none of {known}"
    return matches[0]


class Callers:
    """Callers who go on calling, each for itself, until they are told to stop."""

    def __init__(self, url: str, calls: Sequence[Callable[[SIEClient], Scores]]) -> None:
        self._url = url
        self._calls = calls
        self._is_over = threading.Event()
        self._changed = threading.Condition()
        self.found: list[list[Scores]] = [[] for _ in calls]

    def wait_for_more(self, num_calls: int = 2) -> None:
        """Wait until every caller has so many more replies; the first may have been under way."""
        with self._changed:
            wanted = [len(it) + num_calls for it in self.found]
            assert self._changed.wait_for(
                lambda: all(len(it) >= n for it, n in zip(self.found, wanted, strict=True)),
                PATIENCE_SECONDS,
            )

    def run(self, number: int) -> None:
        """Call until it is over."""
        with SIEClient(self._url, timeout_seconds=PATIENCE_SECONDS) as client:
            while not self._is_over.is_set():
                scores = self._calls[number](client)
                with self._changed:
                    self.found[number].append(scores)
                    self._changed.notify_all()

    def stop(self) -> None:
        """Let them finish their calls and end."""
        self._is_over.set()


@contextmanager
def calling(url: str, *calls: Callable[[SIEClient], Scores]) -> Iterator[Callers]:
    """Let callers call until the end of the block; what failed for one of them is raised there."""
    callers = Callers(url, calls)
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(callers.run, number) for number in range(len(calls))]
        try:
            yield callers
        finally:
            callers.stop()
        for each in running:
            each.result(PATIENCE_SECONDS)


def scoring(model: str, **terms: Any) -> Callable[[SIEClient], Scores]:
    """Return a call that scores the items."""
    return lambda client: ordered(client.score(model, QUERY, ITEMS, **terms))


def test_a_reload_under_load_fails_no_call_and_mixes_no_scores(
    serve: Serve, cold_bert: Path, other_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reply is wholly the old weights' or the new ones', and later the new ones'."""
    key, line = make_key("operator", is_admin=True)
    (tmp_path / "keys").write_text(f"{line}\n")
    monkeypatch.setenv("SIE_API_KEY", key)  # the callers'
    known = [engine_scores(cold_bert), engine_scores(other_bert)]
    models = (ModelSettings(name="m", source=str(cold_bert)),)
    server = serve(models=models, api_key_file=str(tmp_path / "keys"))
    with calling(server.url, *[scoring("m")] * 8) as callers:
        callers.wait_for_more()
        for folder, index in ((other_bert, 1), (cold_bert, 0), (other_bert, 1)):
            reply = httpx.post(
                f"{server.url}/v1/models/m/reload",
                json={"source": str(folder)},
                headers={"Authorization": f"Bearer {key}"},
                timeout=PATIENCE_SECONDS,
            )
            assert reply.status_code == 200, reply.text
            assert reply.json()["replaced"] == 1
            callers.wait_for_more()
            assert all(which(mine[-1], known) == index for mine in callers.found)
    seen = {which(scores, known) for mine in callers.found for scores in mine}
    assert seen == {0, 1}


def test_who_may_reload_may_not_choose_the_source(
    serve: Serve, cold_bert: Path, other_bert: Path
) -> None:
    """It could be any folder of the machine, or a download: that is for admins."""
    models = (ModelSettings(name="m", source=str(cold_bert)),)
    server = serve(models=models, allow_reload=True)
    url = f"{server.url}/v1/models/m/reload"
    assert httpx.post(url, timeout=PATIENCE_SECONDS).json()["replaced"] == 1
    for source in (str(other_bert), "BAAI/bge-reranker-base"):
        reply = httpx.post(url, json={"source": source}, timeout=PATIENCE_SECONDS)
        assert reply.status_code == 403
        assert reply.json()["detail"]["code"] == "FORBIDDEN"


def test_adapters_by_request_are_their_callers_own_under_load(
    serve: Serve, cold_bert: Path, served_adapter: Path
) -> None:
    """Calls with an adapter and without run at the same time, and each gets its own scores."""
    lora = {"lora": str(served_adapter)}
    known = [engine_scores(cold_bert), engine_scores(cold_bert, options=lora)]
    models = (ModelSettings(name="m", source=str(cold_bert), loras={"a": str(served_adapter)}),)
    plain, adapted = scoring("m"), scoring("m", options={"lora": "a"})
    with calling(serve(models=models).url, *[plain, adapted] * 4) as callers:
        callers.wait_for_more(5)
    for number, mine in enumerate(callers.found):
        assert {which(scores, known) for scores in mine} == {number % 2}


def test_models_that_do_not_fit_together_take_turns(
    serve: Serve, cold_bert: Path, other_bert: Path
) -> None:
    """With room for one model, callers of two are all answered, each by their own model."""
    known = [engine_scores(cold_bert), engine_scores(other_bert)]
    from sie_core.local import release

    release()  # what this process has loaded for other tests is no part of the room
    client = LocalClient(mode="exact", max_loaded_models=1)
    models = tuple(
        ModelSettings(name=name, source=str(folder), preload=False)
        for name, folder in (("first", cold_bert), ("second", other_bert))
    )
    server = serve(models=models, client=client, wait_for_load_seconds=PATIENCE_SECONDS)
    with calling(server.url, *[scoring("first"), scoring("second")] * 2) as callers:
        callers.wait_for_more(3)
    for number, mine in enumerate(callers.found):
        assert {which(scores, known) for scores in mine} == {number % 2}
    states = [it["state"] for it in httpx.get(f"{server.url}/v1/models").json()["models"]]
    assert states.count("loaded") == 1
