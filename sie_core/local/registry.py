"""Which models are loaded in this process: one per key, loaded once, shared by everyone.

A model leaves when its last holder drops it, when someone releases it, when room is needed for
another (least recently used first, see `Limits`), or when it is swapped for another. It goes out
of the table at once, so that no new call finds it; calls that have it finish on it, and then its
threads end and its memory is given back.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from sie_core.errors import InvalidRequestError, ResourceExhaustedError
from sie_core.local import memory
from sie_core.local.model import CountsBytes, Model
from sie_core.local.scheduler import Scheduler
from sie_core.telemetry import otel

_logger = logging.getLogger(__name__)

_EXIT_PATIENCE_SECONDS = 2.0
"""How long the end of the process waits for a batch that is being computed."""


_SWAP_PATIENCE_SECONDS = 5.0
"""How long a swap waits for calls on the old weights; later ones let go of them by themselves.

Not without end: who swaps from an event loop's own thread would wait for its own coroutines.
"""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """What makes two loaded models the same.

    Attributes:
        model: Its name.
        revision: On the hub.
        devices: Where it runs.
        dtype: The number format.
        num_workers: Threads that run batches.
        is_dtype_named: Whether float16 was asked for by name, so that no model takes another format
            in its place.
        allow_pickle: Whether parts of it may come from pickles.
    """

    model: str
    revision: str | None
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    num_workers: int
    is_dtype_named: bool = False
    allow_pickle: bool = False


class Calls:
    """The calls that use a model at this time; a call is counted from `with calls` on."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start afresh, as a forked child must."""
        self._end = threading.Condition()
        self._count = 0

    def __enter__(self) -> None:
        with self._end:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._end:
            self._count -= 1
            self._end.notify_all()

    def __len__(self) -> int:
        return self._count

    def wait_for_end(self, timeout_seconds: float | None = None) -> None:
        """Wait until there are none, or until the time is up."""
        with self._end:
            self._end.wait_for(lambda: not self._count, timeout_seconds)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory and the threads that run it.

    Attributes:
        model: Makes what is run; on several GPUs it is the first one's.
        scheduler: Runs it.
        description: How it runs, and why so.
        copies: The same model on the other GPUs.
        estimated_bytes: What its files say that it holds.
        stamps: Of the files that its weights may be mapped from.
        identity: Names what it computes; see `memory.identify`.
        calls: Those that use it.
    """

    model: Model
    scheduler: Scheduler
    description: str
    copies: tuple[Model, ...] = ()
    estimated_bytes: int = 0
    stamps: tuple[memory.FileStamp, ...] = ()
    identity: str = ""
    calls: Calls = field(default_factory=Calls)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of weights that it holds, on all devices together."""
        counts = [it.num_bytes for it in (self.model, *self.copies) if isinstance(it, CountsBytes)]
        return sum(counts) if counts else self.estimated_bytes

    def warm_up(self) -> list[Future[list[Any]]]:
        """Let every worker run once."""
        sequences = self.model.warm_up_sequences()
        return self.scheduler.warm_up(sequences) if sequences else []


class Load(Protocol):
    """Makes a loaded model; it knows the model's name and how it is to run."""

    def __call__(self, source: str | None = None) -> LoadedModel:
        """Load it, from another model's name or folder where that is given."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a holder bounds. Of several holders' bounds the smallest holds, for all models.

    Attributes:
        max_loaded_models: Models kept loaded.
        memory_budget_bytes: Weights kept loaded.
    """

    max_loaded_models: int | None = None
    memory_budget_bytes: int | None = None


Estimate = Callable[[str | None], int]
"""Tells from its files what a model will hold, before it is loaded."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A model, loaded or on its way, and who holds it.

    Attributes:
        load: Makes it, and makes others in its place.
        estimate: See `Estimate`; None where it cannot be known before.
        awaited_bytes: What it is expected to hold while it is being loaded.
    """

    load: Load
    estimate: Estimate | None
    loading: Future[LoadedModel] = field(default_factory=Future)
    holders: weakref.WeakSet[object] = field(default_factory=weakref.WeakSet)
    awaited_bytes: int = 0

    @property
    def loaded(self) -> LoadedModel | None:
        is_ready = self.loading.done() and self.loading.exception() is None
        return self.loading.result() if is_ready else None

    @property
    def num_bytes(self) -> int:
        model = self.loaded
        return self.awaited_bytes if model is None else model.num_bytes

    def expect(self, source: str | None, limits: Limits) -> int:
        """Estimate its bytes, where they are bounded."""
        if limits.memory_budget_bytes is None or self.estimate is None:
            return 0
        return self.estimate(source)


class Registry:
    """Loaded models by key. `acquire` loads, `drop` and `release` unload, `swap` replaces."""

    def __init__(self) -> None:
        self._entries: dict[ModelKey, _Entry] = {}  # least recently used first
        self._limits: weakref.WeakKeyDictionary[Any, Limits] = weakref.WeakKeyDictionary()
        self._sources: dict[str, str] = {}
        self._make_locks()

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        self._swapping = threading.Lock()
        self._making_room = threading.Lock()

    def acquire(
        self,
        key: ModelKey,
        load: Load,
        holder: object,
        *,
        estimate: Estimate | None = None,
    ) -> Future[LoadedModel]:
        """Return the future of a loaded model; the first caller's `load` runs, in a thread.

        A load that fails fails for everyone who waits for it; the next call tries again. The
        future is shared: wait for it, never cancel it.

        Args:
            key: Which model.
            load: Makes it. It is kept as long as the model is, so it must not hold `holder`.
            holder: Who wants it kept, until `drop`; held weakly.
            estimate: What it will hold, for a memory budget.
        """
        with self._lock:
            entry = self._entries.pop(key, None)
            is_new = entry is None
            if entry is None:
                entry = _Entry(load, estimate)
            self._entries[key] = entry  # at the end: it is the one used last
            entry.holders.add(holder)
        if is_new:
            # A thread, so that a caller whose time is up can leave while loading goes on.
            threading.Thread(
                target=self._load, args=(key, entry), name=f"sie-load-{key.model}", daemon=True
            ).start()
        return entry.loading

    def limit(self, holder: object, limits: Limits) -> None:
        """Keep to a holder's limits from now on, as long as that holder is there."""
        with self._lock:
            self._limits[holder] = limits

    def swap(
        self,
        name: str,
        new: str,
        *,
        also: tuple[ModelKey, Load, object] | None = None,
    ) -> int:
        """Let `name` mean the weights of `new` from now on, in this process.

        Those are loaded and run once beside the old ones. Then calls under way finish on the old
        weights, and the next use the new ones. Returns when the old ones are let go.

        Args:
            name: As in `ModelKey.model`.
            new: A model's name or folder.
            also: A key that is to be loaded if it is not yet, how, and its holder.

        Returns:
            How many loaded models were replaced: one for each device and number format.

        Raises:
            InvalidRequestError: Nothing is loaded by that name, and `also` names nothing.
            SIEError: `new` could not be loaded, or did not run. The old ones serve on.
        """
        with self._swapping:
            fresh: dict[ModelKey, _Entry] = {}
            try:
                while (old := self._commit(name, new, fresh)) is None:
                    self._load_beside(name, new, also, fresh)
            except BaseException:
                _unload(list(fresh.values()))
                raise
        num_replaced = len(old)
        _warn_overwritten(old)
        _drain(old, _SWAP_PATIENCE_SECONDS)
        _unload(old)
        return num_replaced

    def source_of(self, name: str) -> str | None:
        """Return what `name` was swapped for, None if it was not."""
        with self._lock:
            return self._sources.get(name)

    def find(self, key: ModelKey) -> LoadedModel | None:
        """Return a model that is in memory by now, and that nobody is waited for."""
        with self._lock:
            entry = self._entries.get(key)
        return None if entry is None else entry.loaded

    def drop(self, holder: object) -> None:
        """Unload the models that `holder` was the last to hold, and forget its limits."""
        with self._lock:
            self._limits.pop(holder, None)
            for entry in self._entries.values():
                entry.holders.discard(holder)
            unheld = [key for key, entry in self._entries.items() if not entry.holders]
            entries = [self._entries.pop(key) for key in unheld]
        _unload(entries)

    def release(self, model: str | None = None) -> int:
        """Unload a model, whoever holds it; None means all. Work under way is finished first.

        Returns:
            How many were unloaded. The next call that needs one loads it again.
        """
        with self._lock:
            keys = [key for key in self._entries if model is None or key.model == model]
            entries = [self._entries.pop(key) for key in keys]
        num_unloaded = len(entries)
        _unload(entries)
        return num_unloaded

    def loaded(self, holder: object | None = None) -> dict[ModelKey, LoadedModel]:
        """Return the models that are in memory: all, or those that `holder` holds."""
        with self._lock:
            entries = [
                (key, entry.loaded)
                for key, entry in self._entries.items()
                if holder is None or holder in entry.holders
            ]
        return {key: model for key, model in entries if model is not None}

    def reset_after_fork(self) -> None:
        """Keep in a forked child what it can use: weights on the CPU, with threads of its own."""
        self._make_locks()
        kept: dict[ModelKey, _Entry] = {}
        for key, entry in self._entries.items():
            model = entry.loaded
            if model is not None and key.devices[0].type == "cpu":
                model.scheduler.reset()
                model.model.reset_after_fork()
                model.calls.reset()
                kept[key] = entry
        self._entries = kept

    def stop(self) -> None:
        """End all threads at the end of the process."""
        with self._lock:
            entries = list(self._entries.values())
        for entry in entries:
            model = entry.loaded
            if model is not None:
                model.scheduler.stop(_EXIT_PATIENCE_SECONDS)

    def _load(self, key: ModelKey, entry: _Entry) -> None:
        try:
            model = self._load_within_limits(entry, self.source_of(key.model), spared=[])
        except BaseException as exc:  # noqa: BLE001  it belongs to the callers who wait
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.loading.set_exception(exc)
            return
        entry.loading.set_result(model)

    def _load_beside(
        self,
        name: str,
        new: str,
        also: tuple[ModelKey, Load, object] | None,
        fresh: dict[ModelKey, _Entry],
    ) -> None:
        """Load `new` for every key of `name` that `fresh` does not have yet, and run it once."""
        with self._lock:
            spared = [entry for key, entry in self._entries.items() if key.model == name]
            wanted = {
                key: _Entry(entry.load, entry.estimate)
                for key, entry in self._entries.items()
                if key.model == name
            }
        if also is not None and also[0] not in wanted:
            key, load, holder = also
            wanted[key] = _Entry(load, None)
            wanted[key].holders.add(holder)
        if not wanted:
            msg = (
                f"no model {name!r} is loaded in this process, so nothing can be swapped for "
                f"{new!r}; use LocalClient.swap, which loads it"
            )
            raise InvalidRequestError(msg)
        for key in wanted.keys() - fresh.keys():
            entry = wanted[key]
            model = self._load_within_limits(entry, new, spared=spared)
            entry.loading.set_result(model)
            fresh[key] = entry
            for running in model.warm_up():
                running.result()

    def _commit(self, name: str, new: str, fresh: dict[ModelKey, _Entry]) -> list[_Entry] | None:
        """Let all keys of `name` have their entries in `fresh` at once.

        Returns:
            The entries replaced; None where some key has nothing to replace its entry by.
        """
        with self._lock:
            old = {key: entry for key, entry in self._entries.items() if key.model == name}
            if not fresh or not old.keys() <= fresh.keys():
                return None
            for key, entry in old.items():
                fresh[key].holders.update(entry.holders)
            self._entries.update(fresh)
            self._sources[name] = new
        return list(old.values())

    def _load_within_limits(
        self, entry: _Entry, source: str | None, *, spared: list[_Entry]
    ) -> LoadedModel:
        """Load a model when there is room for it; loads that are bounded go one by one."""
        limits = self._smallest_limits()
        if limits == Limits():
            return entry.load(source)
        with self._making_room:
            entry.awaited_bytes = entry.expect(source, limits)
            _check_budget(entry.awaited_bytes, limits, "would take")
            self._make_room(entry, limits, spared)
            model = entry.load(source)
            try:
                _check_budget(model.num_bytes, limits, "takes")
                entry.awaited_bytes = model.num_bytes  # it may be more than its files told
                self._make_room(entry, limits, spared)
            except BaseException:
                model.scheduler.stop()
                raise
        return model

    def _smallest_limits(self) -> Limits:
        with self._lock:
            limits = list(self._limits.values())
        counts = [it.max_loaded_models for it in limits if it.max_loaded_models is not None]
        budgets = [it.memory_budget_bytes for it in limits if it.memory_budget_bytes is not None]
        return Limits(
            max_loaded_models=min(counts, default=None),
            memory_budget_bytes=min(budgets, default=None),
        )

    def _make_room(self, coming: _Entry, limits: Limits, spared: list[_Entry]) -> None:
        """Unload models until `coming` fits, the least recently used first.

        Those without a call go before those with one, whose calls are waited for.

        Raises:
            ResourceExhaustedError: What must stay leaves too little of the budget.
        """
        while True:
            with self._lock:
                others = [it for it in self._entries.values() if it is not coming]
                if not _is_over(coming, others, limits, spared):
                    return
                victim = self._pop_victim(coming, spared)
            if victim is None:
                _refuse(coming, others, limits)
                return
            leaving = [victim]
            del victim, others  # the last to know it
            _drain(leaving)
            _unload(leaving)

    def _pop_victim(self, coming: _Entry, spared: list[_Entry]) -> _Entry | None:
        """Take the entry that goes next out of the table. The registry is locked."""
        loaded = [
            (key, entry)
            for key, entry in self._entries.items()
            if entry is not coming and entry not in spared and entry.loaded is not None
        ]
        for key, entry in sorted(
            loaded, key=lambda pair: _is_busy(pair[1])
        ):  # stable: oldest first
            del self._entries[key]
            return entry
        return None


def _is_busy(entry: _Entry) -> bool:
    return entry.loaded is not None and len(entry.loaded.calls) > 0


def _is_over(coming: _Entry, others: list[_Entry], limits: Limits, spared: list[_Entry]) -> bool:
    """Tell whether `coming` is too much. What a swap replaces is not counted as a model."""
    num_models = 1 + sum(other not in spared for other in others)
    is_over_count = limits.max_loaded_models is not None and num_models > limits.max_loaded_models
    num_bytes = coming.awaited_bytes + sum(other.num_bytes for other in others)
    budget = limits.memory_budget_bytes
    return is_over_count or (budget is not None and num_bytes > budget)


def _refuse(coming: _Entry, others: list[_Entry], limits: Limits) -> None:
    """Raise if what cannot be unloaded leaves no room in the budget."""
    held, budget = sum(other.num_bytes for other in others), limits.memory_budget_bytes
    if budget is not None and coming.awaited_bytes + held > budget:
        msg = (
            f"the model takes {coming.awaited_bytes:,} bytes, and those that stay loaded beside it "
            f"{held:,}: more than memory_budget_bytes={budget:,}; raise that bound on LocalClient, "
            "or release models first"
        )
        raise ResourceExhaustedError(msg)


def _check_budget(num_bytes: int, limits: Limits, verb: str) -> None:
    budget = limits.memory_budget_bytes
    if budget is not None and num_bytes > budget:
        msg = (
            f"the model alone {verb} {num_bytes:,} bytes, more than memory_budget_bytes="
            f"{budget:,}; raise that bound on LocalClient, or use a smaller model or mode='fast'"
        )
        raise ResourceExhaustedError(msg)


def _drain(entries: list[_Entry], timeout_seconds: float | None = None) -> None:
    """Wait for the calls that use models; out of the table, these get no new ones."""
    for entry in entries:
        if entry.loaded is not None:
            entry.loaded.calls.wait_for_end(timeout_seconds)


def _unload(entries: list[_Entry]) -> None:
    """Stop models' threads, also if they are still being loaded, and give memory back.

    Empties the list: who called may not keep them.
    """
    if not entries:
        return

    def stop(loading: Future[LoadedModel]) -> None:
        if loading.exception() is None:
            loading.result().scheduler.stop()

    while entries:
        entries.pop().loading.add_done_callback(stop)
    memory.give_back()


def _warn_overwritten(entries: list[_Entry]) -> None:
    stamps = [stamp for it in entries if it.loaded is not None for stamp in it.loaded.stamps]
    for path in memory.overwritten(stamps):
        _logger.warning(
            "%s was written to while a loaded model had it mapped, so answers may have come from a "
            "mixture of its old and new content; write new weights to a new folder, or rename them "
            "into place",
            path,
        )


REGISTRY = Registry()
"""The process's one registry."""


def _read_engines() -> list[otel.Reading]:
    """Return the counters of each model, for whoever collects metrics."""
    return [
        (
            {
                "sie.model": key.model,
                "sie.device": ",".join(map(str, key.devices)),
                "sie.dtype": str(key.dtype).removeprefix("torch."),
            },
            loaded.scheduler.stats().as_counters(),
        )
        for key, loaded in REGISTRY.loaded().items()
    ]


otel.observe_engines(_read_engines)
os.register_at_fork(after_in_child=REGISTRY.reset_after_fork)
atexit.register(REGISTRY.stop)


def release(model: str | None = None) -> int:
    """Unload a model from this process's memory, whoever uses it; None means all.

    Calls under way are finished first; the next call that needs the model loads it again.

    Args:
        model: The name it was loaded by.

    Returns:
        How many loaded models were unloaded.
    """
    return REGISTRY.release(model)


def swap(name: str, new: str) -> int:
    """Let a loaded model's name mean other weights from now on; see `LocalClient.swap`.

    Args:
        name: The name it was loaded by.
        new: A model's name or folder.

    Returns:
        How many loaded models were replaced: one for each device and number format.
    """
    return REGISTRY.swap(name, new)
