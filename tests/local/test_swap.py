"""Swapping weights under load: no call fails, none uses both, and the old ones are let go."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sie_core.errors import ModelError
from sie_core.local import LocalAsyncClient, LocalClient, registry, swap
from sie_core.types import Item

QUERY = Item(text="how many people live in berlin")
ITEMS = [Item(text=text) for text in ("berlin population", "a museum", "banana", "river city")]


def variant(folder: Path, base: Path, seed: int) -> Path:
    """Write the same model with other weights."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(base / "model.safetensors")
    changed = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
    }
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


def scores(client: LocalClient, model: Path | str) -> list[float]:
    """Return the raw scores, in the order of the items."""
    result = client.score(str(model), QUERY, ITEMS, options={"score_space": "raw"})
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [found[f"item-{i}"] for i in range(len(ITEMS))]


@pytest.fixture
def client() -> Iterator[LocalClient]:
    """A client that computes in float32; what was swapped before is forgotten."""
    with LocalClient(mode="exact", device="cpu") as client:
        yield client
    registry.REGISTRY._sources.clear()


def test_calls_during_swaps_use_the_old_or_the_new_weights_and_never_both(
    tiny_bert: Path, tmp_path: Path, client: LocalClient
) -> None:
    """16 threads call while weights are swapped 20 times: no failure, no mixture."""
    name = str(tiny_bert)
    folders = [variant(tmp_path / str(i), tiny_bert, i) for i in range(4)]
    known = [scores(client, folder) for folder in [tiny_bert, *folders]]
    bad: list[Any] = []
    seen: set[int] = set()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            try:
                found = scores(client, name)
                which = [i for i, it in enumerate(known) if it == pytest.approx(found, abs=1e-4)]
            except Exception as exc:  # noqa: BLE001  every one is a failed call
                bad.append(exc)
                return
            seen.update(which)
            if len(which) != 1:
                bad.append(found)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    dice = random.Random(3)
    try:
        for _ in range(20):
            which = dice.randrange(len(folders))
            assert client.swap(name, str(folders[which])) == 1
            assert scores(client, name) == pytest.approx(known[1 + which], abs=1e-4)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert bad == []
    assert len(seen) > 1


def test_the_old_weights_are_freed_and_their_threads_end(
    tiny_bert: Path, tmp_path: Path, client: LocalClient
) -> None:
    """When the swap returns, by counting references alone."""
    new = variant(tmp_path / "new", tiny_bert, 1)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            scores(client, tiny_bert)
        [loaded] = registry.REGISTRY.loaded(client).values()
        old, old_threads = weakref.ref(loaded.model), list(loaded.scheduler._threads)
        del loaded
        client.swap(str(tiny_bert), str(new))
        assert old() is None
    finally:
        gc.enable()
    assert not any(thread.is_alive() for thread in old_threads if thread is not None)


def test_a_failed_swap_leaves_the_old_weights_serving(
    tiny_bert: Path, tmp_path: Path, client: LocalClient
) -> None:
    """Where the new ones are not there, are broken, or do not run."""
    before = scores(client, tiny_bert)
    broken = variant(tmp_path / "broken", tiny_bert, 1)
    (broken / "model.safetensors").write_bytes(b"nothing")
    for new in (str(tmp_path / "absent"), str(broken)):
        with pytest.raises(ModelError):
            client.swap(str(tiny_bert), new)
    assert scores(client, tiny_bert) == before


def test_a_name_that_is_not_loaded_can_be_swapped(
    tiny_bert: Path, tmp_path: Path, client: LocalClient
) -> None:
    """The new weights are loaded under it; clients of other settings get them as well."""
    new = variant(tmp_path / "new", tiny_bert, 1)
    assert client.swap(str(tiny_bert), str(new)) == 0
    assert list(client.loaded()) == [str(tiny_bert)]
    assert scores(client, tiny_bert) == scores(client, new)
    with LocalClient(mode="exact", num_threads=1) as other:
        assert scores(other, tiny_bert) == pytest.approx(scores(client, new), abs=1e-5)
    assert swap(str(tiny_bert), str(tiny_bert)) == 1  # and back


async def test_coroutines_swap_too(tiny_bert: Path, tmp_path: Path, client: LocalClient) -> None:
    """With the same meaning."""
    new = variant(tmp_path / "new", tiny_bert, 1)
    scores(client, tiny_bert)
    assert await LocalAsyncClient(client).swap(str(tiny_bert), str(new)) == 1
    assert scores(client, tiny_bert) == scores(client, new)


def test_files_renamed_into_place_can_be_swapped_in(
    tiny_bert: Path, tmp_path: Path, client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The old weights, mapped from the file that was there, stay as they were until then."""
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    before = scores(client, folder)
    new = variant(tmp_path / "new", tiny_bert, 1)
    (new / "model.safetensors").replace(folder / "model.safetensors")
    assert scores(client, folder) == before
    assert client.swap(str(folder), str(folder)) == 1
    assert scores(client, folder) != pytest.approx(before, abs=1e-2)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_files_that_were_written_to_in_place_are_warned_about(
    tiny_bert: Path, tmp_path: Path, client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    """What was mapped has changed under the model: nobody can undo that, but it is said."""
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    scores(client, folder)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    os.utime(path, ns=(1, 1))  # a clock may be too coarse to show it
    client.swap(str(folder), str(tiny_bert))
    [warning] = [record.getMessage() for record in caplog.records if "mapped" in record.msg]
    assert str(path) in warning


@pytest.mark.slow
def test_resident_memory_is_flat_after_the_tenth_swap() -> None:
    """In a process of its own, with weights that are large enough to be seen."""
    script = Path(__file__).parents[2] / "benchmarks" / "loading.py"
    arguments = [sys.executable, str(script), "--modes", "--swaps", "20", "--check"]
    subprocess.run(arguments, check=True, timeout=600)
