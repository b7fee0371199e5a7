"""`Scheduler`: the threads that run one loaded model, and who is served when.

Every worker takes a batch as soon as it is free; nobody waits for company. What waits stands in a
line of requests, served in turns (deficit round robin, Shreedhar and Varghese 1995): at its turn a
request may use as many tokens as fill one batch of every worker, then it goes to the end of the
line. A small request thus waits for one turn of each request before it, however large they are;
and one that comes while a request is served that has had turns before goes ahead of it, once in
each such turn. See docs/decisions/0041-scheduling.md.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch

from sie_core.errors import InferenceError, QueueFullError, ResourceExhaustedError
from sie_core.local.model import BatchRunner, TokenSequence
from sie_core.settings import MAX_QUEUED_TOKENS

_logger = logging.getLogger(__name__)

_SMALL_REST = 4
"""A batch takes the rest of a request along where that is less than this part of its aim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """What waits and what was done, since the model was loaded.

    Attributes:
        num_workers: Threads that run batches.
        num_queued_requests: Requests with sequences that no batch has yet.
        num_queued_tokens: Tokens of those sequences.
        num_batches: Batches that were computed.
        num_sequences: Sequences in them.
        num_tokens: Tokens in them.
        max_tokens: Tokens that they could have held, by their requests' limits.
        num_requests: Requests that were answered.
        queue_seconds: Time that those waited until a batch took the first of them.
        busy_seconds: Time that workers spent in them, of all workers together.
        num_out_of_memory: Batches that did not fit into memory; those of more than one sequence
            were split in halves and tried again.
    """

    num_workers: int
    num_queued_requests: int = 0
    num_queued_tokens: int = 0
    num_batches: int = 0
    num_sequences: int = 0
    num_tokens: int = 0
    max_tokens: int = 0
    num_requests: int = 0
    queue_seconds: float = 0.0
    busy_seconds: float = 0.0
    num_out_of_memory: int = 0

    @property
    def batch_fill(self) -> float | None:
        """Return how full batches were, of 1; None where there were none.

        A lone request is split over all workers, and nobody waits for company: a low number says
        that there was little to do, a high one that batches are as large as they may be.
        """
        return self.num_tokens / self.max_tokens if self.max_tokens else None

    def as_counters(self) -> dict[str, float]:
        """Return its numbers by name, those that are not there yet left out."""
        counters = asdict(self) | {"batch_fill": self.batch_fill}
        return {name: number for name, number in counters.items() if number is not None}


class Running(Future[list[Any]]):
    """The outputs of a request, once it has them, and when it was served.

    Attributes:
        queued_at: When it was given to the scheduler; seconds of `time.perf_counter`.
        begun_at: When a batch took the first of it; None before that.
        ended_at: When its last batch was done; None before that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queued_at = time.perf_counter()
        self.begun_at: float | None = None
        self.ended_at: float | None = None

    @property
    def queue_seconds(self) -> float:
        """Return how long all of it waited, so far."""
        end = time.perf_counter() if self.begun_at is None else self.begun_at
        return end - self.queued_at

    @property
    def inference_seconds(self) -> float:
        """Return how long its batches took from the first to the last, so far."""
        if self.begun_at is None:
            return 0.0
        end = time.perf_counter() if self.ended_at is None else self.ended_at
        return end - self.begun_at


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Request:
    """One caller's sequences and the outputs found for them so far.

    Attributes:
        waiting: Positions of the sequences that no batch has yet; the longest is last.
        num_waiting_tokens: Tokens of those.
        credit: Tokens that it may still use at its turn.
        has_had_turn: Whether a whole turn of it is over.
        aim: Tokens of its batches where it went ahead of another: split over all workers.
        is_settled: Whether the future has, or is about to be given, its answer.
    """

    sequences: Sequence[TokenSequence]
    lengths: list[int]
    max_tokens: int
    max_sequences: int | None
    waiting: list[int]
    num_waiting_tokens: int
    outputs: list[Any]
    num_missing: int
    credit: int = 0
    has_had_turn: bool = False
    aim: int | None = None
    is_settled: bool = False
    future: Running = field(default_factory=Running)

    @classmethod
    def of(
        cls, sequences: Sequence[TokenSequence], max_tokens: int, max_sequences: int | None
    ) -> _Request:
        lengths = [sequence.num_tokens for sequence in sequences]
        return cls(
            sequences=sequences,
            lengths=lengths,
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            waiting=sorted(range(len(sequences)), key=lengths.__getitem__),
            num_waiting_tokens=sum(lengths),
            outputs=[None] * len(sequences),
            num_missing=len(sequences),
        )

    def answer(self) -> None:
        """Give the caller the outputs, unless they have left."""
        self.future.ended_at = time.perf_counter()
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self.outputs)

    def fail(self, error: BaseException) -> None:
        """Give the caller an error, unless they have left."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Slot(NamedTuple):
    """A sequence, and its place: the request it belongs to, and its position there."""

    request: _Request
    position: int
    sequence: TokenSequence


class _Batch:
    """What one worker takes at a time; it grows from the line until it has what it aims at."""

    def __init__(self, aim: int) -> None:
        self.slots: list[_Slot] = []
        self.num_tokens = 0
        self.aim = aim
        self._max_tokens: float = math.inf
        self._max_sequences: float = math.inf

    def admits(self, request: _Request) -> bool:
        """Say whether the next sequence of `request` may come in, and keep its limits if so."""
        max_tokens = min(self._max_tokens, request.max_tokens)
        max_sequences = min(self._max_sequences, request.max_sequences or math.inf)
        grown = self.num_tokens + request.lengths[request.waiting[-1]]
        if self.slots:
            is_nearer_without = grown - self.aim > self.aim - self.num_tokens
            if grown > max_tokens or len(self.slots) >= max_sequences or is_nearer_without:
                return False
        self._max_tokens, self._max_sequences = max_tokens, max_sequences
        return True

    def add(self, request: _Request) -> int:
        """Take the longest sequence that waits, and return its tokens."""
        position = request.waiting.pop()
        num_tokens = request.lengths[position]
        request.num_waiting_tokens -= num_tokens
        if request.future.begun_at is None:
            request.future.begun_at = time.perf_counter()
        self.slots.append(_Slot(request, position, request.sequences[position]))
        self.num_tokens += num_tokens
        return num_tokens


class Scheduler:
    """Runs batches for every caller of one model, in threads that are started by the first.

    A lone request starts at once and is split over all workers. Requests that wait share batches.
    What no batch has yet of a request whose future is cancelled, or has failed, leaves the queue at
    once.

    Args:
        open_workers: For each worker, what its thread calls, before its first batch, for a function
            that runs batches; those functions run at the same time.
        name: For threads and errors.
        min_batch_tokens: What is split over idle workers is split into parts of no less.
    """

    def __init__(
        self,
        open_workers: Sequence[Callable[[], BatchRunner]],
        *,
        name: str,
        min_batch_tokens: int = 1,
    ) -> None:
        self._open_workers = list(open_workers)
        self._name = name
        self._min_batch_tokens = min_batch_tokens
        self.reset()

    def reset(self) -> None:
        """Start afresh, as a forked child must: its parent's threads do not exist in it."""
        num_workers = len(self._open_workers)
        self._arrival = threading.Condition()
        self._line: deque[_Request] = deque()
        self._to_each: list[deque[_Request]] = [deque() for _ in range(num_workers)]
        self._num_queued_tokens = 0
        self._has_yielded = False
        self._max_tokens = 0
        self._aim = 0
        self._threads: list[threading.Thread | None] = [None] * num_workers
        self._is_stopping = False
        self._done = SchedulerStats(num_workers=num_workers)

    def submit(
        self,
        sequences: Sequence[TokenSequence],
        *,
        max_tokens: int,
        max_sequences: int | None = None,
        max_queued_tokens: int = MAX_QUEUED_TOKENS,
    ) -> Running:
        """Queue sequences and return a future of their outputs, in the order given.

        Where requests share a batch, the smallest of their limits holds for it.

        Args:
            sequences: What to score.
            max_tokens: Tokens per batch; a longer sequence runs alone.
            max_sequences: Sequences per batch; None for no bound.
            max_queued_tokens: Bound on what may wait with this request included; where nothing
                waits, a request of any size is taken.

        Raises:
            QueueFullError: Too much is waiting.
        """
        request = _Request.of(sequences, max_tokens, max_sequences)
        if not sequences:
            request.future.begun_at = request.future.queued_at
            request.answer()
            return request.future
        with self._arrival:
            self._check_room(request.num_waiting_tokens, max_queued_tokens)
            self._start_threads()
            self._enqueue(request)
            self._max_tokens = max(max_tokens, self._max_tokens if len(self._line) > 1 else 0)
            num_batches = self._plan()
            self._aim = math.ceil(self._num_queued_tokens / num_batches)
            self._arrival.notify(num_batches)
        request.future.add_done_callback(_dropping(self, request))
        return request.future

    def warm_up(self, sequences: Sequence[TokenSequence]) -> list[Future[list[Any]]]:
        """Let every worker run `sequences`, and return a future for each."""
        requests = [_Request.of(sequences, 1, None) for _ in self._open_workers]
        with self._arrival:
            self._start_threads()
            for request, mine in zip(requests, self._to_each, strict=True):
                mine.append(request)
            self._arrival.notify_all()
        return [request.future for request in requests]

    def stats(self) -> SchedulerStats:
        """Count what waits and what was done."""
        with self._arrival:
            return replace(
                self._done,
                num_queued_requests=len(self._line),
                num_queued_tokens=self._num_queued_tokens,
            )

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Finish what is queued, then end the threads.

        A call that had the model before it was released may still submit: it is served by threads
        that end with it.
        """
        with self._arrival:
            self._is_stopping = True
            self._arrival.notify_all()
            threads = [thread for thread in self._threads if thread is not None]
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(None if end is None else max(0.0, end - time.monotonic()))

    def _check_room(self, num_tokens: int, max_queued_tokens: int) -> None:
        queued = self._num_queued_tokens
        if not queued or queued + num_tokens <= max_queued_tokens:
            return
        num_calls = "1 call" if len(self._line) == 1 else f"{len(self._line)} calls"
        msg = (
            f"{queued:,} tokens of {num_calls} wait for {self._name} already, and with the "
            f"{num_tokens:,} of this call they would be more than max_queued_tokens="
            f"{max_queued_tokens:,}; try again later, make fewer calls at a time, or raise that "
            "bound on LocalClient"
        )
        raise QueueFullError(msg)

    def _enqueue(self, request: _Request) -> None:
        """Put a request at the end, or ahead of one that has had turns and has not yielded yet."""
        self._num_queued_tokens += request.num_waiting_tokens
        if not self._line or not self._line[0].has_had_turn or self._has_yielded:
            self._line.append(request)
            return
        part = math.ceil(request.num_waiting_tokens / len(self._threads))
        request.aim = max(part, self._min_batch_tokens)
        self._line.appendleft(request)
        self._has_yielded = True

    def _plan(self) -> int:
        """Return how many batches what waits should make: as many for each worker, none small."""
        num_tokens, num_workers = self._num_queued_tokens, len(self._threads)
        even = num_workers * math.ceil(num_tokens / (self._max_tokens * num_workers))
        return max(1, min(even, num_tokens // self._min_batch_tokens))

    def _start_threads(self) -> None:
        for worker, thread in enumerate(self._threads):
            if thread is None:
                name = f"sie-worker-{worker}-{self._name}"
                thread = threading.Thread(  # noqa: PLW2901
                    target=self._work, args=(worker,), name=name, daemon=True
                )
                thread.start()
                self._threads[worker] = thread

    def _drop(self, request: _Request) -> None:
        """Take from the queue what no batch has yet of a request that has its answer."""
        with self._arrival:
            request.is_settled = True
            if request in self._line:
                self._line.remove(request)
                self._num_queued_tokens -= request.num_waiting_tokens
            request.sequences = ()  # the future, and thus the caller, may keep the request

    def _work(self, worker: int) -> None:
        """Run batches, one after the other, until it is time to stop."""
        forward = _Lazy(self._open_workers[worker])
        while slots := self._take(worker):
            self._run(slots, forward)
            slots.clear()  # so that an idle worker keeps nobody's texts

    def _take(self, worker: int) -> list[_Slot]:
        """Wait for work and take a batch of it; none means that it is time to stop."""
        mine = self._to_each[worker]
        with self._arrival:
            while True:
                if mine:
                    request = mine.popleft()
                    request.future.begun_at = time.perf_counter()
                    return [
                        _Slot(request, i, sequence) for i, sequence in enumerate(request.sequences)
                    ]
                if self._line:
                    slots = self._fill().slots
                    if self._line:
                        self._arrival.notify()
                    return slots
                if self._is_stopping:
                    self._threads[worker] = None
                    return []
                self._arrival.wait()

    def _fill(self) -> _Batch:
        """Take a batch from the requests in line, each at its turn."""
        batch = _Batch(min(self._aim, self._line[0].aim or self._aim))
        may_grow = True
        while self._line:
            if self._serve(self._line[0], batch):
                continue
            rest = self._line[0].num_waiting_tokens if self._line else 0
            if not may_grow or rest > batch.aim // _SMALL_REST:
                break
            batch.aim, may_grow = batch.num_tokens + rest, False
        self._num_queued_tokens -= batch.num_tokens
        return batch

    def _serve(self, request: _Request, batch: _Batch) -> bool:
        """Take of the first in line what its turn and the batch allow; say if there is room left.

        A turn that a full batch interrupts goes on with the next batch.
        """
        if request.credit <= 0:  # its turn begins; a long sequence may have overdrawn the last one
            request.credit += request.max_tokens * len(self._threads)
        while request.waiting and request.credit > 0:
            if not batch.admits(request):
                return False
            request.credit -= batch.add(request)
        if request.has_had_turn:
            self._has_yielded = False
        request.has_had_turn = True
        self._line.popleft()
        if request.waiting:
            self._line.append(request)
        return batch.num_tokens < batch.aim

    def _run(self, slots: list[_Slot], forward: BatchRunner) -> None:
        """Run one batch; where it fails, narrow down whose fault it is."""
        slots = [slot for slot in slots if not slot.request.future.done()]
        if not slots:
            return
        begin = time.perf_counter()
        try:
            outputs = forward([slot.sequence for slot in slots])
            _check_count(outputs, len(slots))
        except Exception as exc:  # noqa: BLE001  whatever it is belongs to a caller, not to this thread
            self._recover(slots, exc, forward)
            return
        for request in self._accept(slots, outputs, time.perf_counter() - begin):
            request.answer()

    def _accept(self, slots: list[_Slot], outputs: Sequence[Any], seconds: float) -> list[_Request]:
        """Keep a batch's outputs; return the requests that these were the last of."""
        complete = []
        with self._arrival:
            for (request, position, _), output in zip(slots, outputs, strict=True):
                request.outputs[position] = output
                request.num_missing -= 1
                if not request.num_missing and not request.is_settled:
                    request.is_settled = True
                    complete.append(request)
            done, num_tokens = self._done, _num_tokens(slots)
            self._done = replace(
                done,
                num_batches=done.num_batches + 1,
                num_sequences=done.num_sequences + len(slots),
                num_tokens=done.num_tokens + num_tokens,
                max_tokens=done.max_tokens + max(_max_tokens(slots), num_tokens),
                num_requests=done.num_requests + len(complete),
                queue_seconds=done.queue_seconds
                + sum(request.future.queue_seconds for request in complete),
                busy_seconds=done.busy_seconds + seconds,
            )
        return complete

    def _recover(self, slots: list[_Slot], error: Exception, forward: BatchRunner) -> None:
        """Try halves when out of memory, else each request alone: one fails only itself."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self._count_out_of_memory(slots)
            _release_cached_memory()
            if len(slots) > 1:
                middle = len(slots) // 2
                self._run(slots[:middle], forward)
                self._run(slots[middle:], forward)
                return
        parts = list(_by_request(slots))
        if len(parts) > 1:
            for part in parts:
                self._run(part, forward)
            return
        request = slots[0].request
        with self._arrival:
            is_first, request.is_settled = not request.is_settled, True
        if is_first:
            request.fail(translate(error, num_tokens=_num_tokens(slots)))

    def _count_out_of_memory(self, slots: list[_Slot]) -> None:
        """Count it, and say it once for each model: halves cost time, and nobody sees why."""
        with self._arrival:
            is_first = not self._done.num_out_of_memory
            num_times = self._done.num_out_of_memory + 1
            self._done = replace(self._done, num_out_of_memory=num_times)
        if len(slots) == 1:
            return  # that call gets the error
        _logger.log(
            logging.WARNING if is_first else logging.DEBUG,
            "%s ran out of memory on a batch of %d sequences and %d tokens, which is tried again "
            "in halves; with a smaller max_batch_tokens on LocalClient it need not be",
            self._name,
            len(slots),
            _num_tokens(slots),
        )


def _dropping(scheduler: Scheduler, request: _Request) -> Callable[[object], None]:
    """Return what a request's future calls when it has its answer.

    A future keeps its callbacks for good. Were the request held by this one, the two would hold
    each other, and the scheduler with the model's weights, until Python's cycle collector comes.
    """
    weak_scheduler, weak_request = weakref.ref(scheduler), weakref.ref(request)

    def drop(_: object) -> None:
        alive, waiting = weak_scheduler(), weak_request()
        if alive is not None and waiting is not None:
            alive._drop(waiting)  # noqa: SLF001  it is of this module

    return drop


class _Lazy:
    """A worker's function, opened by the worker's thread at its first batch."""

    def __init__(self, open_worker: Callable[[], BatchRunner]) -> None:
        self._open_worker = open_worker
        self._forward: BatchRunner | None = None

    def __call__(self, sequences: Sequence[TokenSequence]) -> list[Any]:
        if self._forward is None:
            self._forward = self._open_worker()
        return self._forward(sequences)


def translate(error: Exception, *, num_tokens: int) -> Exception:
    """Turn what a forward pass raised into one of our errors, with its cause kept."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        msg = (
            f"the device ran out of memory on a batch of {num_tokens} tokens, the smallest there "
            "is; free memory, lower max_length, or use another device or dtype"
        )
        translated: Exception = ResourceExhaustedError(msg)
    else:
        msg = f"the forward pass failed on a batch of {num_tokens} tokens: {error}"
        translated = InferenceError(msg)
    translated.__cause__ = error
    return translated


def _check_count(outputs: Sequence[Any], num_sequences: int) -> None:
    if len(outputs) != num_sequences:
        msg = f"it gave {len(outputs)} outputs for {num_sequences} sequences"
        raise ValueError(msg)


def _by_request(slots: list[_Slot]) -> Iterator[list[_Slot]]:
    for owner in dict.fromkeys(slot.request for slot in slots):
        yield [slot for slot in slots if slot.request is owner]


def _num_tokens(slots: list[_Slot]) -> int:
    return sum(slot.sequence.num_tokens for slot in slots)


def _max_tokens(slots: list[_Slot]) -> int:
    """Return what a batch may hold: the smallest of its requests' limits."""
    return min(slot.request.max_tokens for slot in slots)


def _release_cached_memory() -> None:
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()
