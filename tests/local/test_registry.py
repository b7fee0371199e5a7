"""One model per key and process: loaded once, shared, released, retried after a failure."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sie_core.errors import InvalidRequestError, ResourceExhaustedError
from sie_core.local.registry import Limits, Load, LoadedModel, ModelKey, Registry
from sie_core.local.scheduler import Scheduler

PATIENCE_SECONDS = 20


class Holder:
    """Someone who wants a model kept."""


class FakeModel:
    """A model of a given size."""

    def __init__(self, num_bytes: int = 0) -> None:
        self.num_bytes = num_bytes

    def warm_up_sequences(self) -> list[Any]:
        """Give nothing to run."""
        return []


def key(model: str = "m") -> ModelKey:
    """Make a key."""
    cpu = torch.device("cpu")
    return ModelKey(model, revision=None, devices=(cpu,), dtype=torch.float32, num_workers=1)


def model(name: str | None = None) -> LoadedModel:
    """Make a loaded model around a scheduler that does nothing; the encoder is not looked at."""
    encoder: Any = FakeModel()
    scheduler = Scheduler([lambda: lambda pairs: [0.0] * len(pairs)], name=name or "m")
    return LoadedModel(encoder, scheduler, name or "does nothing")


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


def of_size(num_bytes: int) -> Load:
    """Make a function that loads a model of that size."""

    def load(source: str | None = None) -> LoadedModel:
        loaded: Any = FakeModel(num_bytes)
        return LoadedModel(loaded, Scheduler([lambda: list], name="m"), source or "own")

    return load


def take(registry: Registry, name: str, num_bytes: int, holder: object) -> LoadedModel:
    """Load a model of a size that its files tell, and wait for it."""
    estimate = {"estimate": lambda _: num_bytes} if num_bytes else {}
    return registry.acquire(key(name), of_size(num_bytes), holder, **estimate).result(  # type: ignore[arg-type]
        PATIENCE_SECONDS
    )


def names(registry: Registry) -> list[str]:
    """Return what is loaded, the least recently used first."""
    return [k.model for k in registry.loaded()]


def test_the_least_recently_used_model_leaves_over_the_number() -> None:
    """A use is a call, not the load; what leaves is loaded again when it is asked for."""
    registry, holder = Registry(), Holder()
    registry.limit(holder, Limits(max_loaded_models=2))
    for name in ("a", "b", "a", "c"):
        take(registry, name, 0, holder)
    assert names(registry) == ["a", "c"]
    take(registry, "b", 0, holder)
    assert names(registry) == ["c", "b"]


def test_the_least_recently_used_models_leave_over_the_budget() -> None:
    """As many as need be, before the new one is loaded."""
    registry, holder = Registry(), Holder()
    registry.limit(holder, Limits(memory_budget_bytes=100))
    for name, num_bytes in (("a", 30), ("b", 30), ("c", 30), ("d", 60)):
        take(registry, name, num_bytes, holder)
    assert names(registry) == ["c", "d"]


def test_a_model_above_the_budget_is_refused_and_nothing_leaves_for_it() -> None:
    """The error names both numbers, before it is loaded."""
    registry, holder = Registry(), Holder()
    registry.limit(holder, Limits(memory_budget_bytes=1000))
    take(registry, "a", 900, holder)
    with pytest.raises(ResourceExhaustedError, match=r"1,001 bytes.*memory_budget_bytes=1,000"):
        take(registry, "b", 1001, holder)
    assert names(registry) == ["a"]


def test_a_model_that_is_larger_than_its_files_said_is_refused_too() -> None:
    """Where the estimate was too low, its own count decides."""
    registry, holder = Registry(), Holder()
    registry.limit(holder, Limits(memory_budget_bytes=1000))
    with pytest.raises(ResourceExhaustedError, match="takes 2,000 bytes"):
        registry.acquire(key("a"), of_size(2000), holder, estimate=lambda _: 10).result(
            PATIENCE_SECONDS
        )
    assert names(registry) == []


def test_a_model_in_use_leaves_after_those_that_are_not() -> None:
    """However long ago its call began."""
    registry, holder = Registry(), Holder()
    registry.limit(holder, Limits(max_loaded_models=2))
    with take(registry, "a", 0, holder).calls:
        take(registry, "b", 0, holder)
        take(registry, "c", 0, holder)
        assert names(registry) == ["a", "c"]


def test_where_all_are_in_use_their_calls_are_waited_for() -> None:
    """The oldest takes no new calls; the new model is loaded when its last one has ended."""
    registry, holder = Registry(), Holder()
    registry.limit(holder, Limits(max_loaded_models=1))
    with take(registry, "a", 0, holder).calls:
        loading = registry.acquire(key("b"), of_size(0), holder)
        wait_until(lambda: names(registry) == [])
        assert not loading.done()
    assert loading.result(PATIENCE_SECONDS)
    assert names(registry) == ["b"]


def test_the_smallest_bound_of_all_holders_holds_while_they_are_there() -> None:
    """A client's bound goes with it."""
    registry, strict, lax = Registry(), Holder(), Holder()
    registry.limit(lax, Limits(max_loaded_models=3))
    registry.limit(strict, Limits(max_loaded_models=1))
    take(registry, "a", 0, lax)
    take(registry, "b", 0, lax)
    assert names(registry) == ["b"]
    registry.drop(strict)
    take(registry, "c", 0, lax)
    assert names(registry) == ["b", "c"]


def test_a_swap_replaces_every_loaded_variant_and_what_is_loaded_later() -> None:
    """Holders stay; who loads the name after the last release gets the new weights too."""
    registry, holder = Registry(), Holder()
    other = replace(key("a"), dtype=torch.bfloat16)
    old = take(registry, "a", 0, holder)
    registry.acquire(other, of_size(0), holder).result(PATIENCE_SECONDS)
    take(registry, "b", 0, holder)
    assert registry.swap("a", "new") == 2
    loaded = registry.loaded(holder)
    assert loaded[key("a")].description == loaded[other].description == "new"
    assert loaded[key("b")].description == "own"
    assert take(registry, "a", 0, holder) is not old
    registry.release()
    assert take(registry, "a", 0, holder).description == "new"


def test_a_swap_that_fails_leaves_the_old_serving() -> None:
    """The error reaches who swaps, and nothing else has changed."""
    registry, holder = Registry(), Holder()

    def load(source: str | None = None) -> LoadedModel:
        if source is not None:
            msg = f"no {source}"
            raise OSError(msg)
        return model("old")

    old = registry.acquire(key(), load, holder).result(PATIENCE_SECONDS)
    with pytest.raises(OSError, match="no new"):
        registry.swap("m", "new")
    assert registry.acquire(key(), load, holder).result(PATIENCE_SECONDS) is old
    assert registry.source_of("m") is None
    with pytest.raises(InvalidRequestError, match="no model 'x' is loaded"):
        registry.swap("x", "new")


def test_a_swap_needs_room_for_both_but_counts_as_one_model() -> None:
    """A budget that holds only one of them is an error, and the old one serves on."""
    registry, holder = Registry(), Holder()
    registry.limit(holder, Limits(max_loaded_models=1, memory_budget_bytes=150))
    old = take(registry, "a", 100, holder)
    with pytest.raises(ResourceExhaustedError, match=r"100 bytes.*100: more than.*=150"):
        registry.swap("a", "new")
    assert registry.loaded()[key("a")] is old
    registry.limit(holder, Limits(max_loaded_models=1, memory_budget_bytes=200))
    assert registry.swap("a", "new") == 1
    assert names(registry) == ["a"]


def wait_until(is_true: Callable[[], bool]) -> None:
    """Give other threads the processor until something holds."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0)
