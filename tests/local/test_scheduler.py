"""Batches are shared, turns are fair, and each caller gets exactly their own scores or failure."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from sie_core.errors import InferenceError, QueueFullError, ResourceExhaustedError
from sie_core.local.model import BatchRunner
from sie_core.local.scheduler import Scheduler
from sie_core.local.tokenization import Pair

PATIENCE_SECONDS = 20


def pair(token: int, length: int = 3) -> Pair:
    """Make a pair whose fake score is `token`."""
    return Pair(np.full(length, token, np.int32), length, is_truncated=False)


class FakeModel:
    """Scores a pair by its first token, records batches, and can be held up or made to fail.

    While it is held, each permit lets one batch go on.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.lengths: list[int] = []
        self.threads: set[int] = set()
        self.num_opened = 0
        self.has_begun = threading.Semaphore(0)
        self.permits: threading.Semaphore | None = None
        self.failure: Callable[[Sequence[Pair]], Exception | None] = lambda _: None

    def open(self) -> BatchRunner:
        """Open a worker."""
        self.num_opened += 1
        return self.forward

    def forward(self, pairs: Sequence[Pair]) -> list[float]:
        """Score a batch."""
        self.batches.append([int(p.token_ids[0]) for p in pairs])
        self.lengths.append(sum(len(p.token_ids) for p in pairs))
        self.threads.add(threading.get_ident())
        permits = self.permits
        self.has_begun.release()
        if permits is not None:
            assert permits.acquire(timeout=PATIENCE_SECONDS)
        error = self.failure(pairs)
        if error is not None:
            raise error
        return [float(p.token_ids[0]) for p in pairs]

    def hold(self) -> None:
        """Let no batch end without a permit, from the next one on."""
        self.permits = threading.Semaphore(0)

    def let_go(self) -> None:
        """Let all batches end, those under way too."""
        permits, self.permits = self.permits, None
        if permits is not None:
            permits.release(10_000)

    def step(self, num_batches: int = 1) -> None:
        """Let batches that are under way end one by one, and wait for what follows each."""
        assert self.permits is not None
        for _ in range(num_batches):
            self.permits.release()
            self.await_batches(1)

    def await_batches(self, num_batches: int) -> None:
        """Wait until so many more batches have begun."""
        for _ in range(num_batches):
            assert self.has_begun.acquire(timeout=PATIENCE_SECONDS)


@pytest.fixture
def model() -> FakeModel:
    """A fake model."""
    return FakeModel()


Make = Callable[..., Scheduler]


@pytest.fixture
def make(model: FakeModel) -> Iterator[Make]:
    """A maker of schedulers over the fake model, which are stopped at the end."""
    with contextlib.ExitStack() as stack:
        stack.callback(model.let_go)

        def make_scheduler(num_workers: int, **settings: int) -> Scheduler:
            scheduler = Scheduler([model.open] * num_workers, name="fake", **settings)
            stack.callback(scheduler.stop, PATIENCE_SECONDS)
            stack.callback(model.let_go)
            return scheduler

        yield make_scheduler


@pytest.fixture
def scheduler(make: Make) -> Scheduler:
    """A scheduler with one worker."""
    return make(1)


def make_busy(model: FakeModel, scheduler: Scheduler, num_workers: int = 1) -> None:
    """Give every worker a batch that does not end, so that what comes next queues up."""
    model.hold()
    for _ in range(num_workers):
        scheduler.submit([pair(0)], max_tokens=100)
        model.await_batches(1)


def results(futures: Sequence[Future[list[Any]]]) -> list[list[Any]]:
    """Wait for all."""
    return [future.result(PATIENCE_SECONDS) for future in futures]


# --- batches -------------------------------------------------------------------------------------


def test_waiting_requests_share_a_batch(model: FakeModel, scheduler: Scheduler) -> None:
    """Three callers who wait together share a forward pass and get their own scores in order."""
    make_busy(model, scheduler)
    futures = [scheduler.submit([pair(i), pair(i + 1)], max_tokens=100) for i in (10, 20, 30)]
    model.let_go()
    assert results(futures) == [[10, 11], [20, 21], [30, 31]]
    assert sorted(model.batches[1]) == [10, 11, 20, 21, 30, 31]


def test_an_idle_scheduler_does_not_wait_for_company(scheduler: Scheduler) -> None:
    """A lone request is scored at once."""
    assert scheduler.submit([pair(4)], max_tokens=100).result(PATIENCE_SECONDS) == [4]


def test_a_future_tells_when_it_was_served(model: FakeModel, scheduler: Scheduler) -> None:
    """A request waits until a batch takes some of it, and runs until its last batch is done."""
    model.hold()
    first = scheduler.submit([pair(1)], max_tokens=100)
    model.await_batches(1)
    second = scheduler.submit([pair(i, 60) for i in (2, 3)], max_tokens=100)
    assert first.begun_at is not None
    assert (first.ended_at, second.begun_at) == (None, None)
    assert second.queue_seconds > 0
    assert second.inference_seconds == 0.0
    model.step()
    assert first.ended_at is not None
    assert second.begun_at is not None
    assert second.ended_at is None
    assert first.ended_at <= second.begun_at
    model.let_go()
    results([first, second])
    assert second.ended_at is not None
    assert len(model.batches) == 3
    assert second.queue_seconds == second.begun_at - second.queued_at
    assert second.inference_seconds == second.ended_at - second.begun_at > 0


def test_no_pairs_give_no_scores(scheduler: Scheduler) -> None:
    """An empty request is answered without a thread."""
    empty = scheduler.submit([], max_tokens=100)
    assert empty.result(0) == []
    assert empty.queue_seconds == 0.0
    assert not threads_of("fake")


def threads_of(name: str) -> list[str]:
    """List the names of a scheduler's threads."""
    return [t.name for t in threading.enumerate() if t.name.endswith(f"-{name}")]


def test_a_lone_request_is_split_evenly_over_idle_workers(model: FakeModel, make: Make) -> None:
    """Four workers get near equal parts of what would fit one batch, at the same time."""
    scheduler = make(4)
    model.hold()
    future = scheduler.submit([pair(i, 5 + i % 30) for i in range(100)], max_tokens=10_000)
    model.await_batches(4)
    total = sum(5 + i % 30 for i in range(100))
    assert sum(model.lengths) == total
    assert all(abs(length - total / 4) <= 30 for length in model.lengths)
    model.let_go()
    assert future.result(PATIENCE_SECONDS) == list(range(100))
    assert len(model.threads) == 4


def test_a_request_above_the_budget_makes_batches_of_one_size(model: FakeModel, make: Make) -> None:
    """2,500 tokens with a budget of 1,000 on two workers: four batches, none small, none over."""
    future = make(2).submit([pair(i, 10) for i in range(250)], max_tokens=1000)
    assert future.result(PATIENCE_SECONDS) == list(range(250))
    assert len(model.lengths) == 4
    assert all(600 <= length <= 650 for length in model.lengths)


def test_work_is_not_split_into_crumbs(model: FakeModel, make: Make) -> None:
    """What is less than the smallest part stays together, however many workers are idle."""
    scheduler = make(4, min_batch_tokens=64)
    assert results([scheduler.submit([pair(i, 10) for i in range(6)], max_tokens=1000)])
    assert model.lengths == [60]
    assert results([scheduler.submit([pair(i, 10) for i in range(20)], max_tokens=1000)])
    assert all(50 <= length <= 80 for length in model.lengths[1:])


def test_a_small_rest_makes_no_batch_of_its_own(model: FakeModel, make: Make) -> None:
    """What would be left over is taken along, where the budget allows it."""
    lengths = [40, 40, 9, 9, 9, 3]
    future = make(2).submit([pair(i, n) for i, n in enumerate(lengths)], max_tokens=1000)
    assert future.result(PATIENCE_SECONDS) == list(range(6))
    assert len(model.batches) == 2


@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_hold_every_pair_once_within_the_budget(
    model: FakeModel, make: Make, num_workers: int
) -> None:
    """Random requests at once: all scored once, longest first, no batch above a budget."""
    generator = random.Random(17)
    scheduler = make(num_workers, min_batch_tokens=30)
    make_busy(model, scheduler, num_workers)
    futures, first = [], 1
    for _ in range(40):
        count = generator.randrange(1, 30)
        numbers = range(first, first + count)
        first += count
        pairs = [pair(i, generator.randrange(1, 150)) for i in numbers]
        futures.append((scheduler.submit(pairs, max_tokens=100), list(numbers)))
    model.let_go()
    for future, numbers in futures:
        assert future.result(PATIENCE_SECONDS) == numbers
    batches = [batch for batch in model.batches if batch != [0]]
    assert sorted(i for batch in batches for i in batch) == list(range(1, first))
    for batch, length in zip(model.batches, model.lengths, strict=True):
        assert length <= 100 or len(batch) == 1


def test_the_tightest_limit_of_those_in_a_batch_holds(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """One caller's batch_size and budget bound the batches that it shares."""
    make_busy(model, scheduler)
    futures = [
        scheduler.submit([pair(1), pair(2), pair(3)], max_tokens=100, max_sequences=2),
        scheduler.submit([pair(4), pair(5)], max_tokens=100),
        scheduler.submit([pair(6), pair(7)], max_tokens=3),
    ]
    model.let_go()
    assert results(futures) == [[1, 2, 3], [4, 5], [6, 7]]
    assert max(len(batch) for batch in model.batches if {1, 2, 3} & set(batch)) == 2
    assert all(len(batch) == 1 for batch in model.batches if {6, 7} & set(batch))


# --- turns ---------------------------------------------------------------------------------------


def test_a_small_request_is_served_within_a_batch_of_a_large_one(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """20 pairs that arrive while 10,000 run are the whole of the very next batch."""
    model.hold()
    large = scheduler.submit([pair(1, 10) for _ in range(10_000)], max_tokens=500)
    model.await_batches(1)
    model.step(5)
    small = scheduler.submit([pair(2, 10) for _ in range(20)], max_tokens=500)
    model.step()
    assert model.batches[-1] == [2] * 20
    model.step()
    assert small.result(PATIENCE_SECONDS) == [2] * 20
    assert not large.done()
    large.cancel()


def test_who_goes_ahead_is_split_over_all_workers(model: FakeModel, make: Make) -> None:
    """Two workers with a large request: each takes half of a small one next."""
    scheduler = make(2)
    model.hold()
    large = scheduler.submit([pair(1, 10) for _ in range(10_000)], max_tokens=500)
    model.await_batches(2)
    model.step(5)
    small = scheduler.submit([pair(2, 10) for _ in range(20)], max_tokens=500)
    model.step(2)
    assert model.batches[-2:] == [[2] * 10] * 2
    large.cancel()
    model.let_go()
    assert small.result(PATIENCE_SECONDS) == [2] * 20


def test_large_requests_get_equal_shares(model: FakeModel, make: Make) -> None:
    """At any time, those who have been waiting have been given tokens within one turn's of another.

    Two workers; lengths differ by request, so that shares of pairs would not be shares of tokens.
    """
    scheduler, turn = make(2), 2 * 400
    make_busy(model, scheduler, 2)
    lengths = {1: 7, 2: 50, 3: 190}
    futures = [
        scheduler.submit([pair(i, n) for _ in range(30_000 // n)], max_tokens=400)
        for i, n in lengths.items()
    ]
    given = dict.fromkeys(lengths, 0)
    seen = len(model.batches)
    for _ in range(60):
        model.step()
        for batch in model.batches[seen:]:
            for number in batch:
                given[number] += lengths[number]
        seen = len(model.batches)
        assert max(given.values()) - min(given.values()) <= turn + 190
    assert min(given.values()) > 5000
    for future in futures:
        future.cancel()


def test_a_stream_of_small_requests_does_not_starve_a_large_one(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """A new small request before every second batch: the large one gets the other half."""
    make_busy(model, scheduler)
    large = scheduler.submit([pair(1, 10) for _ in range(300)], max_tokens=100)
    small: list[Future[list[float]]] = []
    for _ in range(30):
        small.append(scheduler.submit([pair(2, 10) for _ in range(10)], max_tokens=100))
        model.step(2)
    assert sum(batch.count(1) for batch in model.batches) >= 280
    assert all(future.done() for future in small[:-2])
    model.let_go()
    assert large.result(PATIENCE_SECONDS) == [1] * 300


# --- bounds --------------------------------------------------------------------------------------


def test_too_much_waiting_work_is_refused_with_the_numbers(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """The error says how much waits, how much came, what the bound is and what to do."""
    make_busy(model, scheduler)
    kept = scheduler.submit([pair(1, 90)], max_tokens=100, max_queued_tokens=100)
    with pytest.raises(
        QueueFullError,
        match=r"90 tokens of 1 call wait for fake already.*the 11 of this call.*"
        r"max_queued_tokens=100; try again later",
    ):
        scheduler.submit([pair(2, 11)], max_tokens=100, max_queued_tokens=100)
    assert scheduler.submit([pair(3, 10)], max_tokens=100, max_queued_tokens=100)
    model.let_go()
    assert kept.result(PATIENCE_SECONDS) == [1]
    assert not [batch for batch in model.batches if 2 in batch]


def test_one_request_of_any_size_is_taken_where_nothing_waits(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """A bound on waiting work is no bound on one call; work that has begun does not wait."""
    make_busy(model, scheduler)
    large = scheduler.submit([pair(1, 900)], max_tokens=100, max_queued_tokens=5)
    model.let_go()
    assert large.result(PATIENCE_SECONDS) == [1]


def test_what_begins_leaves_room_again(model: FakeModel, scheduler: Scheduler) -> None:
    """The count of waiting tokens falls when a batch takes them, not when they are done."""
    make_busy(model, scheduler)
    scheduler.submit([pair(i, 50) for i in range(4)], max_tokens=100)
    assert scheduler.stats().num_queued_tokens == 200
    model.step()
    assert scheduler.stats().num_queued_tokens == 100
    scheduler.submit([pair(5, 50)], max_tokens=100, max_queued_tokens=150)
    assert scheduler.stats().num_queued_requests == 2


# --- those who leave -----------------------------------------------------------------------------


def test_a_cancelled_request_is_not_computed(model: FakeModel, scheduler: Scheduler) -> None:
    """A caller who leaves while queued costs no forward pass; the others are served."""
    make_busy(model, scheduler)
    left = scheduler.submit([pair(7)], max_tokens=100)
    stayed = scheduler.submit([pair(8)], max_tokens=100)
    assert left.cancel()
    model.let_go()
    assert stayed.result(PATIENCE_SECONDS) == [8]
    assert model.batches == [[0], [8]]


def test_a_cancelled_request_leaves_the_queue_at_once(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """Its tokens count no longer, and its texts are let go, before any batch ends."""
    make_busy(model, scheduler)
    left = scheduler.submit([pair(i, 10) for i in range(50)], max_tokens=100)
    stayed = scheduler.submit([pair(99, 10)], max_tokens=100)
    assert scheduler.stats().num_queued_tokens == 510
    left.cancel()
    stats = scheduler.stats()
    assert (stats.num_queued_tokens, stats.num_queued_requests) == (10, 1)
    model.let_go()
    assert stayed.result(PATIENCE_SECONDS) == [99]
    assert scheduler.stats().num_queued_tokens == 0


def test_a_request_cancelled_half_way_stops(model: FakeModel, scheduler: Scheduler) -> None:
    """Batches that remain of an abandoned request are not computed."""
    model.hold()
    request = scheduler.submit([pair(i) for i in range(10)], max_tokens=3)
    model.await_batches(1)
    assert request.cancel()
    assert scheduler.stats().num_queued_tokens == 0
    model.let_go()
    assert scheduler.submit([pair(99)], max_tokens=100).result(PATIENCE_SECONDS) == [99]
    assert len(model.batches) == 2


def test_requests_are_cancelled_while_workers_take_them(make: Make) -> None:
    """500 requests, half of them cancelled at some moment: counts end at 0, nobody is mixed up."""
    scheduler = make(3)
    futures = []
    for i in range(500):
        futures.append(scheduler.submit([pair(i + 1, 5) for _ in range(8)], max_tokens=20))
        if i % 2:
            futures[i // 2].cancel()
    for i, future in enumerate(futures):
        if not future.cancelled():
            assert future.result(PATIENCE_SECONDS) == [i + 1] * 8
    scheduler.stop(PATIENCE_SECONDS)
    stats = scheduler.stats()
    assert (stats.num_queued_tokens, stats.num_queued_requests) == (0, 0)


# --- failures ------------------------------------------------------------------------------------


def test_one_callers_failure_is_not_anothers(model: FakeModel, scheduler: Scheduler) -> None:
    """A pair that breaks the forward pass fails its own request only, with the cause kept."""
    model.failure = lambda pairs: (
        ValueError("broken pair") if any(p.token_ids[0] == 13 for p in pairs) else None
    )
    make_busy(model, scheduler)
    bad = scheduler.submit([pair(12), pair(13)], max_tokens=100)
    good = scheduler.submit([pair(14)], max_tokens=100)
    model.let_go()
    assert good.result(PATIENCE_SECONDS) == [14]
    with pytest.raises(InferenceError, match="broken pair") as caught:
        bad.result(PATIENCE_SECONDS)
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_remains_of_a_failed_request_is_not_computed(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """The first batch fails: the other nine leave the queue."""
    model.failure = lambda pairs: RuntimeError("no") if pairs[0].token_ids[0] == 1 else None
    future = scheduler.submit([pair(1)] * 10, max_tokens=3)
    with pytest.raises(InferenceError):
        future.result(PATIENCE_SECONDS)
    assert scheduler.submit([pair(2)], max_tokens=3).result(PATIENCE_SECONDS) == [2]
    assert model.batches == [[1], [2]]


def test_batches_of_one_request_that_fail_together_fail_it_once(
    model: FakeModel, make: Make
) -> None:
    """Two workers break on the same request: one error, and both go on."""
    scheduler = make(2)
    model.failure = lambda _: RuntimeError("broken")
    model.hold()
    future = scheduler.submit([pair(1), pair(2)], max_tokens=3)
    model.await_batches(2)
    model.let_go()
    with pytest.raises(InferenceError, match="broken"):
        future.result(PATIENCE_SECONDS)
    model.failure = lambda _: None
    assert results([scheduler.submit([pair(3), pair(4)], max_tokens=3)]) == [[3, 4]]


def test_out_of_memory_is_answered_with_smaller_batches(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """A batch that does not fit is halved until it does, and nobody notices."""
    model.failure = lambda pairs: torch.OutOfMemoryError("full") if len(pairs) > 2 else None
    scores = scheduler.submit([pair(i) for i in range(9)], max_tokens=100).result(PATIENCE_SECONDS)
    assert scores == list(range(9))
    assert max(len(batch) for batch in model.batches[1:]) < 9


def test_batches_that_did_not_fit_are_counted_and_said_once(
    model: FakeModel, scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is counted; only the first of a model is a warning."""
    caplog.set_level(logging.DEBUG, "sie_core.local.scheduler")
    model.failure = lambda pairs: torch.OutOfMemoryError("full") if len(pairs) > 1 else None
    scores = scheduler.submit([pair(i) for i in range(4)], max_tokens=100).result(PATIENCE_SECONDS)
    assert scores == list(range(4))
    assert scheduler.stats().num_out_of_memory == sum(len(batch) > 1 for batch in model.batches)
    levels = [r.levelno for r in caplog.records if "out of memory" in r.getMessage()]
    assert levels[0] == logging.WARNING
    assert set(levels[1:]) == {logging.DEBUG}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError()])
def test_out_of_memory_for_a_single_pair_is_a_clear_error(
    model: FakeModel, scheduler: Scheduler, error: Exception
) -> None:
    """Where even one pair does not fit, the error says so and what can be done."""
    model.failure = lambda _: error
    future = scheduler.submit([pair(1, length=50)], max_tokens=100)
    with pytest.raises(ResourceExhaustedError, match=r"batch of 50 tokens.*lower max_length"):
        future.result(PATIENCE_SECONDS)


def test_a_pair_that_does_not_fit_fails_its_own_request_only(
    model: FakeModel, scheduler: Scheduler
) -> None:
    """Out of memory is narrowed down to the request whose pair is too large alone."""
    model.failure = lambda pairs: (
        MemoryError() if any(len(p.token_ids) > 50 for p in pairs) else None
    )
    make_busy(model, scheduler)
    large = scheduler.submit([pair(1, 60), pair(2, 5)], max_tokens=100)
    small = scheduler.submit([pair(3, 5), pair(4, 5)], max_tokens=100)
    model.let_go()
    assert small.result(PATIENCE_SECONDS) == [3, 4]
    with pytest.raises(ResourceExhaustedError, match="batch of 60 tokens"):
        large.result(PATIENCE_SECONDS)


@pytest.mark.parametrize("num_scores", [0, 2])
def test_a_wrong_number_of_scores_is_an_error(num_scores: int) -> None:
    """A forward pass that gives more or fewer scores than pairs is not trusted."""
    scheduler = Scheduler([lambda: lambda _: [0.5] * num_scores], name="wrong")
    with pytest.raises(InferenceError, match=f"gave {num_scores} outputs for 1 sequences"):
        scheduler.submit([pair(1)], max_tokens=9).result(PATIENCE_SECONDS)
    scheduler.stop(PATIENCE_SECONDS)


def test_a_worker_that_cannot_be_opened_is_an_error_and_tried_again() -> None:
    """The caller learns why; the next batch opens it anew."""
    tries: list[int] = []

    def open_worker() -> BatchRunner:
        tries.append(1)
        if len(tries) == 1:
            msg = "no kernel"
            raise OSError(msg)
        return lambda pairs: [1.0] * len(pairs)

    scheduler = Scheduler([open_worker], name="opened")
    with pytest.raises(InferenceError, match="no kernel"):
        scheduler.submit([pair(1)], max_tokens=9).result(PATIENCE_SECONDS)
    assert scheduler.submit([pair(1)], max_tokens=9).result(PATIENCE_SECONDS) == [1.0]
    scheduler.stop(PATIENCE_SECONDS)


def test_workers_survive_failures(model: FakeModel, scheduler: Scheduler) -> None:
    """After a failed request the same thread serves the next."""
    model.failure = lambda _: RuntimeError("once")
    with pytest.raises(InferenceError):
        scheduler.submit([pair(1)], max_tokens=9).result(PATIENCE_SECONDS)
    model.failure = lambda _: None
    assert scheduler.submit([pair(2)], max_tokens=9).result(PATIENCE_SECONDS) == [2]
    assert len(model.threads) == 1


# --- beginning and end ---------------------------------------------------------------------------


def test_warm_up_runs_once_in_every_worker(model: FakeModel, make: Make) -> None:
    """Each of three threads opens its function and scores, before any request."""
    scheduler = make(3)
    model.hold()
    futures = scheduler.warm_up([pair(5)])
    model.await_batches(3)
    model.let_go()
    assert results(futures) == [[5]] * 3
    assert len(model.threads) == model.num_opened == 3
    assert results([scheduler.submit([pair(i) for i in range(30)], max_tokens=9)])
    assert model.num_opened == 3


def test_work_done_is_counted(model: FakeModel, make: Make) -> None:
    """Batches, pairs, tokens and busy time of all workers add up."""
    scheduler = make(2)
    assert results([scheduler.submit([pair(i, 10) for i in range(40)], max_tokens=50)])
    scheduler.stop(PATIENCE_SECONDS)
    stats = scheduler.stats()
    assert (stats.num_workers, stats.num_sequences, stats.num_tokens) == (2, 40, 400)
    assert stats.num_batches == len(model.batches) == 8
    assert stats.busy_seconds > 0


def test_stop_finishes_what_is_queued_and_ends_the_threads(model: FakeModel, make: Make) -> None:
    """Nobody who is waiting is left without an answer, and no thread remains."""
    scheduler = make(2)
    make_busy(model, scheduler, 2)
    queued = scheduler.submit([pair(5) for _ in range(20)], max_tokens=9)
    assert len(threads_of("fake")) == 2
    model.let_go()
    scheduler.stop(PATIENCE_SECONDS)
    assert queued.result(0) == [5] * 20
    assert not threads_of("fake")


def test_stop_leaves_when_its_time_is_up(model: FakeModel, scheduler: Scheduler) -> None:
    """A batch that does not end holds up the end of the process no longer than allowed."""
    make_busy(model, scheduler)
    scheduler.stop(0.01)
    assert threads_of("fake")


def test_a_call_that_comes_after_stop_is_served_by_threads_that_end(scheduler: Scheduler) -> None:
    """A caller who got the model just before its release still gets scores; nothing lingers."""
    scheduler.stop(PATIENCE_SECONDS)
    assert scheduler.submit([pair(6)], max_tokens=100).result(PATIENCE_SECONDS) == [6]
    scheduler.stop(PATIENCE_SECONDS)
    assert not threads_of("fake")


def test_reset_forgets_the_threads_and_the_queue_of_the_parent(
    model: FakeModel, make: Make
) -> None:
    """What a forked child does: it serves its own calls, and its parent's are not counted."""
    scheduler = make(1)
    make_busy(model, scheduler)
    parents = scheduler.submit([pair(7)], max_tokens=100)
    model.let_go()
    parents.result(PATIENCE_SECONDS)
    model.hold()
    left = scheduler.submit([pair(7), pair(7)], max_tokens=3)
    scheduler.stop(0.01)
    scheduler.reset()
    model.let_go()
    left.cancel()
    assert scheduler.submit([pair(8)], max_tokens=100).result(PATIENCE_SECONDS) == [8]
    assert scheduler.stats().num_queued_tokens == 0
