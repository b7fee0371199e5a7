"""One dispatcher thread per loaded model: it merges what callers wait for into batches."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from sie_core.errors import InferenceError, ResourceExhaustedError
from sie_core.local.packing import plan_batches
from sie_core.local.tokenization import Pair

_logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Request:
    """One caller's pairs and the scores found for them so far."""

    pairs: Sequence[Pair]
    max_tokens: int
    max_pairs: int | None
    future: Future[list[float]] = field(default_factory=Future)
    scores: dict[int, float] = field(default_factory=dict)

    def accept(self, position: int, score: float) -> None:
        """Keep one score; the last one completes the request."""
        self.scores[position] = score
        if len(self.scores) == len(self.pairs) and self.future.set_running_or_notify_cancel():
            self.future.set_result([self.scores[i] for i in range(len(self.pairs))])

    def fail(self, error: BaseException) -> None:
        """Give the caller `error`, unless they have an answer already or have left."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


_Slot = tuple[_Request, int]
"""A pair's place: the request it belongs to and its position there."""


class Scheduler:
    """Runs batches for every caller of one model, in one thread that is started by the first.

    Requests that are waiting when a round begins are scored together, sorted by length. A request
    whose future has been cancelled is not computed any further.

    Args:
        forward: Scores one batch of pairs.
        name: For the thread.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Pair]], list[float]],
        *,
        name: str,
    ) -> None:
        self._forward = forward
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Start afresh, as a forked child must: its parent's thread does not exist in it."""
        self._arrival = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    def submit(
        self, pairs: Sequence[Pair], *, max_tokens: int, max_pairs: int | None = None
    ) -> Future[list[float]]:
        """Queue pairs and return a future of their scores, in the order given.

        Where requests are merged, the smallest of their limits hold for all.

        Args:
            pairs: What to score.
            max_tokens: Tokens per batch; a longer pair runs alone.
            max_pairs: Pairs per batch; None for no bound.
        """
        request = _Request(pairs, max_tokens, max_pairs)
        if not pairs:
            request.future.set_result([])
            return request.future
        with self._arrival:
            self._waiting.append(request)
            self._arrival.notify()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"sie-dispatch-{self._name}", daemon=True
                )
                self._thread.start()
        return request.future

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Finish what is queued, then end the thread.

        A call that had the model before it was released may still submit: it is served by a
        thread that ends with it.
        """
        with self._arrival:
            self._is_stopping = True
            self._arrival.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_seconds)

    def _run(self) -> None:
        while requests := self._admit():
            self._score(requests)

    def _admit(self) -> list[_Request]:
        """Wait for work and take all that is there; nothing means that it is time to stop."""
        with self._arrival:
            while not self._waiting and not self._is_stopping:
                self._arrival.wait()
            requests = list(self._waiting)
            self._waiting.clear()
            if not requests:
                self._thread = None
        return requests

    def _score(self, requests: list[_Request]) -> None:
        """Score one round of requests, merged."""
        slots = [(request, i) for request in requests for i in range(len(request.pairs))]
        limits = [request.max_pairs for request in requests if request.max_pairs is not None]
        batches = plan_batches(
            [len(request.pairs[i].token_ids) for request, i in slots],
            max_tokens=min(request.max_tokens for request in requests),
            max_pairs=min(limits, default=None),
        )
        for batch in batches:
            self._score_batch([slots[position] for position in batch])

    def _score_batch(self, slots: list[_Slot]) -> None:
        """Score one batch; where it fails, narrow down whose fault it is."""
        slots = [(request, i) for request, i in slots if not request.future.done()]
        if not slots:
            return
        try:
            scores = self._forward([request.pairs[i] for request, i in slots])
        except Exception as exc:  # noqa: BLE001  whatever it is belongs to a caller, not to this thread
            self._recover(slots, exc)
            return
        for (request, i), score in zip(slots, scores, strict=True):
            request.accept(i, score)

    def _recover(self, slots: list[_Slot], error: Exception) -> None:
        """Try halves when out of memory, else each request alone: one fails only itself."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            _release_cached_memory()
            if len(slots) > 1:
                middle = len(slots) // 2
                self._score_batch(slots[:middle])
                self._score_batch(slots[middle:])
                return
        parts = list(_by_request(slots))
        if len(parts) > 1:
            for part in parts:
                self._score_batch(part)
            return
        slots[0][0].fail(translate(error, num_tokens=_num_tokens(slots)))


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


def _by_request(slots: list[_Slot]) -> Iterator[list[_Slot]]:
    for owner in dict.fromkeys(request for request, _ in slots):
        yield [(request, i) for request, i in slots if request is owner]


def _num_tokens(slots: list[_Slot]) -> int:
    return sum(len(request.pairs[i].token_ids) for request, i in slots)


def _release_cached_memory() -> None:
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()
