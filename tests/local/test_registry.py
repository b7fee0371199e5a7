"""One model per key and process: loaded once, shared, released, retried after a failure."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch

from sie_core.local.registry import LoadedModel, ModelKey, Registry
from sie_core.local.scheduler import Scheduler

PATIENCE_SECONDS = 20


class Holder:
    """Someone who wants a model kept."""


def key(model: str = "m") -> ModelKey:
    """Make a key."""
    cpu = torch.device("cpu")
    return ModelKey(model, revision=None, devices=(cpu,), dtype=torch.float32, num_workers=1)


def model(name: str = "m") -> LoadedModel:
    """Make a loaded model around a scheduler that does nothing; the encoder is not looked at."""
    encoder: Any = None
    scheduler = Scheduler([lambda: lambda pairs: [0.0] * len(pairs)], name=name)
    return LoadedModel(encoder, scheduler, "does nothing")


def test_callers_who_arrive_together_load_once() -> None:
    """32 threads ask at the same moment: one load, one object for all."""
    registry, loads, start = Registry(), [], threading.Barrier(32)
    holder, got = Holder(), []

    def load(source: str | None = None) -> LoadedModel:
        del source
        loads.append(1)
        return model()

    def ask() -> None:
        start.wait(PATIENCE_SECONDS)
        got.append(registry.acquire(key(), load, holder).result(PATIENCE_SECONDS))

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(loaded) for loaded in got}) == 1


def test_a_failed_load_fails_all_who_wait_and_is_tried_again() -> None:
    """The error reaches every waiter; the next call loads afresh."""
    registry, holder = Registry(), Holder()

    def fail(source: str | None = None) -> LoadedModel:
        del source
        msg = "no weights"
        raise OSError(msg)

    with pytest.raises(OSError, match="no weights"):
        registry.acquire(key(), fail, holder).result(PATIENCE_SECONDS)
    assert registry.acquire(key(), model, holder).result(PATIENCE_SECONDS)


def test_a_model_stays_until_its_last_holder_drops_it() -> None:
    """One client's close does not take the model from another."""
    registry, first, second = Registry(), Holder(), Holder()
    loaded = registry.acquire(key(), model, first).result(PATIENCE_SECONDS)
    registry.acquire(key(), model, second).result(PATIENCE_SECONDS)
    registry.drop(first)
    assert registry.acquire(key(), model, second).result(PATIENCE_SECONDS) is loaded
    registry.drop(second)
    assert registry.loaded() == {}


def test_a_holder_that_was_forgotten_does_not_keep_a_model() -> None:
    """Clients that were never closed but are gone hold nothing once someone else closes."""
    registry, gone, closing = Registry(), Holder(), Holder()
    registry.acquire(key("kept-by-nobody"), model, gone).result(PATIENCE_SECONDS)
    del gone
    gc.collect()
    registry.drop(closing)
    assert registry.loaded() == {}


def test_release_unloads_one_model_or_all() -> None:
    """`release` ignores holders, names one model or none, and counts."""
    registry, holder = Registry(), Holder()
    for name in ("a", "b", "c"):
        registry.acquire(key(name), model, holder).result(PATIENCE_SECONDS)
    assert registry.release("b") == 1
    assert [k.model for k in registry.loaded()] == ["a", "c"]
    assert registry.release() == 2
    assert registry.loaded() == {}


def test_release_while_loading_stops_the_model_when_it_is_there() -> None:
    """A model released on its way still reaches who waits for it, and is then let go."""
    registry, holder, may_load = Registry(), Holder(), threading.Event()

    def load(source: str | None = None) -> LoadedModel:
        del source
        may_load.wait(PATIENCE_SECONDS)
        return model()

    loading = registry.acquire(key(), load, holder)
    assert registry.release() == 1
    may_load.set()
    assert loading.result(PATIENCE_SECONDS)
    assert registry.loaded() == {}
