"""Which models are loaded in this process: one per key, loaded once, shared by everyone."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from sie_core.local.model import Model
from sie_core.local.scheduler import Scheduler

_EXIT_PATIENCE_SECONDS = 2.0
"""How long the end of the process waits for a batch that is being computed."""


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
    """

    model: str
    revision: str | None
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    num_workers: int
    is_dtype_named: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory and the threads that run it.

    Attributes:
        model: Makes what is run; on several GPUs it is the first one's.
        scheduler: Runs it.
        description: How it runs, and why so.
    """

    model: Model
    scheduler: Scheduler
    description: str


@dataclass(slots=True)
class _Entry:
    """A model, loaded or on its way, and who holds it."""

    loading: Future[LoadedModel] = field(default_factory=Future)
    holders: weakref.WeakSet[object] = field(default_factory=weakref.WeakSet)


class Registry:
    """Loaded models by key. `acquire` loads, `drop` and `release` unload."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[ModelKey, _Entry] = {}

    def acquire(
        self, key: ModelKey, load: Callable[[], LoadedModel], holder: object
    ) -> Future[LoadedModel]:
        """Return the future of a loaded model; the first caller's `load` runs, in a thread.

        A load that fails fails for everyone who waits for it; the next call tries again. The
        future is shared: wait for it, never cancel it.

        Args:
            key: Which model.
            load: Makes it.
            holder: Who wants it kept, until `drop`; held weakly.
        """
        with self._lock:
            entry = self._entries.get(key)
            is_new = entry is None
            if entry is None:
                entry = self._entries[key] = _Entry()
            entry.holders.add(holder)
        if is_new:
            # A thread, so that a caller whose time is up can leave while loading goes on.
            threading.Thread(
                target=self._load,
                args=(key, entry, load),
                name=f"sie-load-{key.model}",
                daemon=True,
            ).start()
        return entry.loading

    def drop(self, holder: object) -> None:
        """Unload the models that `holder` was the last to hold."""
        with self._lock:
            for entry in self._entries.values():
                entry.holders.discard(holder)
            unheld = [key for key, entry in self._entries.items() if not entry.holders]
            entries = [self._entries.pop(key) for key in unheld]
        for entry in entries:
            _unload(entry)

    def release(self, model: str | None = None) -> int:
        """Unload a model, whoever holds it; None means all. Work under way is finished first.

        Returns:
            How many were unloaded. The next call that needs one loads it again.
        """
        with self._lock:
            keys = [key for key in self._entries if model is None or key.model == model]
            entries = [self._entries.pop(key) for key in keys]
        for entry in entries:
            _unload(entry)
        return len(entries)

    def loaded(self, holder: object | None = None) -> dict[ModelKey, LoadedModel]:
        """Return the models that are in memory: all, or those that `holder` holds."""
        with self._lock:
            entries = [
                (key, _loaded(entry))
                for key, entry in self._entries.items()
                if holder is None or holder in entry.holders
            ]
        return {key: model for key, model in entries if model is not None}

    def reset_after_fork(self) -> None:
        """Keep in a forked child what it can use: weights on the CPU, with threads of its own."""
        self._lock = threading.Lock()
        kept: dict[ModelKey, _Entry] = {}
        for key, entry in self._entries.items():
            model = _loaded(entry)
            if model is not None and key.devices[0].type == "cpu":
                model.scheduler.reset()
                model.model.reset_after_fork()
                kept[key] = entry
        self._entries = kept

    def stop(self) -> None:
        """End all threads at the end of the process."""
        with self._lock:
            entries = list(self._entries.values())
        for entry in entries:
            model = _loaded(entry)
            if model is not None:
                model.scheduler.stop(_EXIT_PATIENCE_SECONDS)

    def _load(self, key: ModelKey, entry: _Entry, load: Callable[[], LoadedModel]) -> None:
        try:
            model = load()
        except BaseException as exc:  # noqa: BLE001  it belongs to the callers who wait
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.loading.set_exception(exc)
            return
        entry.loading.set_result(model)


def _loaded(entry: _Entry) -> LoadedModel | None:
    is_ready = entry.loading.done() and entry.loading.exception() is None
    return entry.loading.result() if is_ready else None


def _unload(entry: _Entry) -> None:
    """Stop a model's thread, also if it is still being loaded, and give memory back."""

    def stop(loading: Future[LoadedModel]) -> None:
        if loading.exception() is None:
            loading.result().scheduler.stop()
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()

    entry.loading.add_done_callback(stop)


REGISTRY = Registry()
"""The process's one registry."""

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
