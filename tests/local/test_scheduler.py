"""Requests are merged, and each caller gets exactly their own scores or their own failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from sie_core.errors import InferenceError, ResourceExhaustedError
from sie_core.local.scheduler import Scheduler
from sie_core.local.tokenization import Pair

PATIENCE_SECONDS = 20


def pair(token: int, length: int = 3) -> Pair:
    """Make a pair whose fake score is `token`."""
    return Pair(np.full(length, token, np.int32), length, is_truncated=False)


class FakeModel:
    """Scores a pair by its first token, records batches, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_running = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.failure: Callable[[Sequence[Pair]], Exception | None] = lambda _: None

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        self.batches.append([int(p.token_ids[0]) for p in pairs])
        self.is_running.set()
        assert self.may_go_on.wait(PATIENCE_SECONDS)
        error = self.failure(pairs)
        if error is not None:
            raise error
        return [float(p.token_ids[0]) for p in pairs]


@pytest.fixture
def model() -> FakeModel:
    """A fake model."""
    return FakeModel()


@pytest.fixture
def scheduler(model: FakeModel) -> Iterator[Scheduler]:
    """A scheduler over the fake model, stopped at the end."""
    scheduler = Scheduler(model, name="fake")
    yield scheduler
    model.may_go_on.set()
    scheduler.stop(PATIENCE_SECONDS)


def hold(model: FakeModel, scheduler: Scheduler) -> None:
    """Make the dispatcher busy with a first batch, so that what comes next queues up."""
    model.may_go_on.clear()
    scheduler.submit([pair(0)], max_tokens=100)
    assert model.is_running.wait(PATIENCE_SECONDS)


def test_waiting_requests_are_merged_into_one_batch(model: FakeModel, scheduler: Scheduler) -> None:
    """Three callers who wait together share a forward pass and get their own scores in order."""
    hold(model, scheduler)
    futures = [scheduler.submit([pair(i), pair(i + 1)], max_tokens=100) for i in (10, 20, 30)]
    model.may_go_on.set()
    assert [f.result(PATIENCE_SECONDS) for f in futures] == [[10, 11], [20, 21], [30, 31]]
    assert sorted(model.batches[1]) == [10, 11, 20, 21, 30, 31]


def test_an_idle_scheduler_does_not_wait_for_company(scheduler: Scheduler) -> None:
    """A lone request is scored at once."""
    assert scheduler.submit([pair(4)], max_tokens=100).result(PATIENCE_SECONDS) == [4]


def test_no_pairs_give_no_scores(scheduler: Scheduler) -> None:
    """An empty request is answered without the thread."""
    assert scheduler.submit([], max_tokens=100).result(0) == []


def test_a_cancelled_request_is_not_computed(model: FakeModel, scheduler: Scheduler) -> None:
    """A caller who leaves while queued costs no forward pass; the others are served."""
    hold(model, scheduler)
    left = scheduler.submit([pair(7)], max_tokens=100)
    stayed = scheduler.submit([pair(8)], max_tokens=100)
    assert left.cancel()
    model.may_go_on.set()
    assert stayed.result(PATIENCE_SECONDS) == [8]
    assert model.batches == [[0], [8]]


def test_a_request_cancelled_half_way_stops(model: FakeModel, scheduler: Scheduler) -> None:
    """Batches that remain of an abandoned request are skipped."""
    model.may_go_on.clear()
    request = scheduler.submit([pair(i) for i in range(10)], max_tokens=3)
    assert model.is_running.wait(PATIENCE_SECONDS)
    assert request.cancel()
    model.may_go_on.set()
    assert scheduler.submit([pair(99)], max_tokens=100).result(PATIENCE_SECONDS) == [99]
    assert len(model.batches) == 2


def test_one_callers_failure_is_not_anothers(model: FakeModel, scheduler: Scheduler) -> None:
    """A pair that breaks the forward pass fails its own request only, with the cause kept."""
    model.failure = lambda pairs: (
        ValueError("broken pair") if any(p.token_ids[0] == 13 for p in pairs) else None
    )
    hold(model, scheduler)
    bad = scheduler.submit([pair(12), pair(13)], max_tokens=100)
    good = scheduler.submit([pair(14)], max_tokens=100)
    model.may_go_on.set()
    assert good.result(PATIENCE_SECONDS) == [14]
    with pytest.raises(InferenceError, match="broken pair") as caught:
        bad.result(PATIENCE_SECONDS)
    assert isinstance(caught.value.__cause__, ValueError)


def test_out_of_memory_is_answered_with_smaller_batches(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """A batch that does not fit is halved until it does, and nobody notices."""
    model.failure = lambda pairs: torch.OutOfMemoryError("full") if len(pairs) > 2 else None
    scores = scheduler.submit([pair(i) for i in range(9)], max_tokens=100).result(PATIENCE_SECONDS)
    assert scores == list(range(9))
    assert max(len(batch) for batch in model.batches[1:]) < 9


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError()])
def test_out_of_memory_for_a_single_pair_is_a_clear_error(
    model: FakeModel, scheduler: Scheduler, error: Exception
) -> None:
    """Where even one pair does not fit, the error says so and what can be done."""
    model.failure = lambda _: error
    future = scheduler.submit([pair(1, length=50)], max_tokens=100)
    with pytest.raises(ResourceExhaustedError, match=r"batch of 50 tokens.*lower max_length"):
        future.result(PATIENCE_SECONDS)


def test_the_dispatcher_survives_failures(model: FakeModel, scheduler: Scheduler) -> None:
    """After a failed request the same thread serves the next."""
    model.failure = lambda _: RuntimeError("once")
    with pytest.raises(InferenceError):
        scheduler.submit([pair(1)], max_tokens=9).result(PATIENCE_SECONDS)
    model.failure = lambda _: None
    assert scheduler.submit([pair(2)], max_tokens=9).result(PATIENCE_SECONDS) == [2]


def test_stop_finishes_what_is_queued_and_ends_the_thread(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """Nobody who is waiting is left without an answer, and no thread remains."""
    hold(model, scheduler)
    queued = scheduler.submit([pair(5)], max_tokens=100)
    model.may_go_on.set()
    scheduler.stop(PATIENCE_SECONDS)
    assert queued.result(0) == [5]
    assert not [t for t in threading.enumerate() if t.name == "sie-dispatch-fake"]


def test_a_call_that_comes_after_stop_is_served_by_a_thread_that_ends(
    scheduler: Scheduler,
) -> None:
    """A caller who got the model just before its release still gets scores; nothing lingers."""
    scheduler.stop(PATIENCE_SECONDS)
    assert scheduler.submit([pair(6)], max_tokens=100).result(PATIENCE_SECONDS) == [6]
    scheduler.stop(PATIENCE_SECONDS)
    assert not [t for t in threading.enumerate() if t.name == "sie-dispatch-fake"]


def test_the_tightest_limit_of_merged_requests_holds(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """One caller's batch_size bounds the batches that it shares."""
    hold(model, scheduler)
    futures = [
        scheduler.submit([pair(1), pair(2), pair(3)], max_tokens=100, max_pairs=2),
        scheduler.submit([pair(4), pair(5)], max_tokens=100),
    ]
    model.may_go_on.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    assert max(len(batch) for batch in model.batches) == 2
