"""`ScoreCache`: what it keeps, how much of it, where, and whose scores are never mixed up."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diskcache
import pytest

from sie_core import LocalClient, Reranker, score_folder
from sie_core.errors import InvalidRequestError, SIEError
from sie_core.score_cache import CachedScore, ScoreCache, score_keys
from sie_core.types import Item

DOCUMENTS = ["museum of berlin", "paris", "a river", "language of the tower"]


def _score(number: float) -> CachedScore:
    return CachedScore(number, "raw", {})


def test_a_hundred_thousand_scores_stay_within_the_bytes_allowed() -> None:
    """What Python really takes for them is measured; the least recently used have left."""
    keys = score_keys("here", "m", Item(text="q"), map(str, range(100_000)), {})
    max_bytes = 16 * 2**20
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        cache = ScoreCache(max_bytes)
        for start in range(0, len(keys), 1000):
            part = keys[start : start + 1000]
            cache.put_many({key: _score(i * 1.1) for i, key in enumerate(part)})
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stats = cache.stats()
    assert now - before < max_bytes
    assert peak - before < max_bytes
    assert stats.num_bytes <= stats.max_bytes
    assert 35_000 < stats.num_entries < 100_000
    assert cache.get_many([keys[0], keys[-1]]) == [None, _score(999 * 1.1)]


def test_what_does_not_fit_is_not_kept() -> None:
    """A bound below a single score keeps none, and raises nothing."""
    cache = ScoreCache(100)
    cache.put_many({b"key": _score(1.0)})
    assert cache.get_many([b"key"]) == [None]


def test_what_else_a_reply_says_of_an_item_is_kept() -> None:
    """Such as the passage that its score is of."""
    entry = {"item_id": "3", "score": 0.1 + 0.2, "rank": 7, "passage": {"start": 3, "end": 9}}
    written = CachedScore.of(entry, "probability").written()
    assert written is not None
    kept = CachedScore.read(written)
    assert kept == CachedScore(0.1 + 0.2, "probability", {"passage": {"start": 3, "end": 9}})


def test_everything_that_decides_a_score_is_in_its_key() -> None:
    """Any other source, model, query, text, instruction or option is another key."""
    query = Item(text="q")
    keys = [
        score_keys("here", "m", query, ["text"], {}),
        score_keys("there", "m", query, ["text"], {}),
        score_keys("here", "n", query, ["text"], {}),
        score_keys("here", "m", Item(text="r"), ["text"], {}),
        score_keys("here", "m", query, ["texts"], {}),
        score_keys("here", "m", query, ["text"], {"instruction": "find"}),
        score_keys("here", "m", query, ["text"], {"options": {"max_length": 64}}),
        score_keys("here", "m", query, ["text"], {"options": {"lora": "a"}}),
    ]
    assert len({key for [key] in keys}) == len(keys)
    without_effect = score_keys("here", "m", query, ["text"], {"options": {"batch_size": 4}})
    assert without_effect == keys[0]


def test_scores_outlive_the_process_on_disk(tmp_path: Path) -> None:
    """Another cache of the same folder has them, and counts them as hits."""
    first = ScoreCache(10**6, folder=tmp_path)
    first.put_many({b"a": _score(1 / 3)})
    first.close()
    second = ScoreCache(10**6, folder=tmp_path)
    assert second.get_many([b"a", b"b"]) == [_score(1 / 3), None]
    stats = second.stats()
    assert (stats.num_hits, stats.num_misses, stats.num_disk_entries) == (1, 1, 1)
    assert stats.hit_rate == 0.5
    second.clear()
    assert second.get_many([b"a"]) == [None]
    second.close()


@contextlib.contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Hold a folder as another process does that writes to it."""
    with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def _read_anew(folder: Path, *keys: bytes) -> list[CachedScore | None]:
    """Read as another process would."""
    with contextlib.closing(ScoreCache(10**6, folder=folder)) as other:
        return other.get_many(keys)


def _writers() -> set[threading.Thread]:
    return {it for it in threading.enumerate() if it.name.startswith("sie-score-cache")}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_no_call_waits_for_others_that_write_to_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Any, is_async: bool
) -> None:
    """It ends while they do, and its scores are written once they let go of it."""
    monkeypatch.setattr(score_folder, "_MAX_WAIT_SECONDS", 10)
    cache = ScoreCache(10**6, folder=tmp_path)
    reranker = Reranker("m", client=client, score_cache=cache)
    with _written_to(tmp_path):  # a call that waited would give its scores up
        if is_async:
            asyncio.run(reranker.arerank("berlin", DOCUMENTS, max_latency_ms=5000))
        else:
            reranker.rerank("berlin", DOCUMENTS, max_latency_ms=5000)
    cache.close()
    assert cache.stats().num_disk_entries == len(DOCUMENTS)
    cache.close()


def test_a_folder_that_another_holds_costs_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores are kept in memory then, and it is said."""
    monkeypatch.setattr(score_folder, "_MAX_WAIT_SECONDS", 0.01)
    cache = ScoreCache(10**6, folder=tmp_path)
    with _written_to(tmp_path):
        cache.put_many({b"a": _score(1.0)})
        cache.close()
    assert cache.get_many([b"a"]) == [_score(1.0)]
    assert cache.stats().num_disk_entries == 0
    assert "could not be written: Timeout" in caplog.text
    cache.close()


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    """With what to do, when the cache is made: not an error of SQLite's or the system's."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError, match=r"folder '.*/file/scores' cannot be used"):
        ScoreCache(10**6, folder=tmp_path / "file" / "scores")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cache.db").write_bytes(b"no database, but long enough to look like one")
    with pytest.raises(InvalidRequestError, match="cannot be used: file is not a database"):
        ScoreCache(10**6, folder=tmp_path / "broken")


def test_no_more_waits_than_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes on top of it is kept in memory only, and it is said once."""
    monkeypatch.setattr(score_folder, "_MAX_WAITING", 2)
    cache = ScoreCache(10**6, folder=tmp_path)
    with score_folder._writing:  # the thread cannot begin
        cache.put_many({b"a": _score(1.0), b"b": _score(2.0)})
        cache.put_many({b"c": _score(3.0)})
        cache.put_many({b"d": _score(4.0)})
    cache.close()
    assert caplog.text.count("could not be written: '2 wait already'") == 1
    assert cache.get_many([b"c"]) == [_score(3.0)]
    assert _read_anew(tmp_path, b"a", b"b", b"c") == [_score(1.0), _score(2.0), None]
    cache.close()


def test_closing_ends_the_thread_and_the_files_and_a_write_opens_them_again(tmp_path: Path) -> None:
    """Reading needs no thread. SQLite removes its log with the last connection."""
    before = _writers()
    cache = ScoreCache(10**6, folder=tmp_path)
    assert cache.get_many([b"a"]) == [None]
    assert _writers() == before
    cache.put_many({b"a": _score(1.0)})
    [writer] = _writers() - before
    cache.close()
    assert not writer.is_alive()
    assert not (tmp_path / "cache.db-wal").exists()
    cache.put_many({b"b": _score(2.0)})
    cache.close()
    assert _read_anew(tmp_path, b"a", b"b") == [_score(1.0), _score(2.0)]


def test_a_cache_that_is_not_closed_leaves_no_thread_behind(tmp_path: Path) -> None:
    """It ends with the cache, after what was still to be written."""
    before = _writers()
    cache = ScoreCache(10**6, folder=tmp_path)
    cache.put_many({b"a": _score(1.0)})
    [writer] = _writers() - before
    del cache
    gc.collect()
    writer.join(20)
    assert not writer.is_alive()
    assert _read_anew(tmp_path, b"a") == [_score(1.0)]


def test_a_program_that_ends_loses_no_score(tmp_path: Path) -> None:
    """Though it closes nothing."""
    code = (
        "import sys; from sie_core.score_cache import CachedScore, ScoreCache; "
        "cache = ScoreCache(10**6, folder=sys.argv[1]); "
        "cache.put_many({b'a': CachedScore(1.0, 'raw', {})})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert _read_anew(tmp_path, b"a") == [_score(1.0)]


def test_what_waits_to_be_written_is_cleared_as_well(tmp_path: Path) -> None:
    """Nothing old appears after `clear`."""
    cache = ScoreCache(10**6, folder=tmp_path)
    with score_folder._writing:
        cache.put_many({b"a": _score(1.0)})
        clearing = threading.Thread(target=cache.clear)
        clearing.start()
    clearing.join()
    assert cache.get_many([b"a"]) == [None]
    cache.close()
    assert _read_anew(tmp_path, b"a") == [None]


def test_what_was_read_before_a_clear_is_not_kept_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's `clear` comes between the disk and the memory."""
    cache = ScoreCache(10**6, folder=tmp_path)
    cache.put_many({b"a": _score(1.0)})
    cache.close()
    reading = ScoreCache(10**6, folder=tmp_path)
    assert reading._disk is not None
    get = reading._disk._cache.get

    def get_before_clear(key: bytes) -> Any:
        value = get(key)
        reading.clear()
        return value

    with monkeypatch.context() as patched:
        patched.setattr(reading._disk._cache, "get", get_before_clear)
        assert reading.get_many([b"a"]) == [_score(1.0)]
    assert reading.get_many([b"a"]) == [None]
    reading.close()


def test_a_clear_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old scores would be found otherwise by somebody who thinks that they are gone."""
    monkeypatch.setattr(score_folder, "_MAX_WAIT_SECONDS", 0.01)
    cache = ScoreCache(10**6, folder=tmp_path)
    with _written_to(tmp_path), pytest.raises(SIEError, match="could not be cleared: Timeout"):
        cache.clear()
    cache.clear()
    cache.close()


def test_a_folder_that_is_gone_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`stats` counts no score there, and it is said."""
    cache = ScoreCache(10**6, folder=tmp_path / "scores")
    cache.close()
    shutil.rmtree(tmp_path / "scores")
    assert cache.stats().num_disk_entries == 0
    assert "could not be counted: OperationalError" in caplog.text


def test_a_value_of_a_later_version_is_a_miss(tmp_path: Path) -> None:
    """Such as a score in a space that is not known here."""
    with diskcache.Cache(str(tmp_path)) as later:
        later.set(b"a", struct.pack("<dB", 1.0, 200))
        later.set(b"b", b"short")
    cache = ScoreCache(10**6, folder=tmp_path)
    assert cache.get_many([b"a", b"b"]) == [None, None]
    assert cache.stats().num_misses == 2
    cache.close()


@pytest.mark.parametrize(
    "odd",
    [
        CachedScore(1.0, "logits", {}),  # type: ignore[arg-type]
        CachedScore(1.0, "raw", {"why": object()}),
    ],
    ids=["space", "more"],
)
def test_what_cannot_be_written_down_is_not_kept(odd: CachedScore, tmp_path: Path) -> None:
    """A given client may say what it likes, with a cache as without one."""
    cache = ScoreCache(10**6, folder=tmp_path)
    cache.put_many({b"odd": odd, b"a": _score(1.0)})
    assert cache.get_many([b"odd", b"a"]) == [None, _score(1.0)]
    cache.close()


def test_scores_in_an_unknown_space_are_ranked_with_a_cache_too(client: Any) -> None:
    """They are computed each time."""

    class Logits:
        def score(self, *positional: Any, **named: Any) -> Any:
            return client.score(*positional, **named) | {"score_space": "logits"}

    reranker = Reranker("m", client=Logits(), score_cache=10**6)
    for _ in range(2):
        ranking = reranker.rerank("berlin", DOCUMENTS)
        assert (ranking.entries[0].index, ranking.num_cached) == (0, 0)


def test_a_pickle_in_the_folder_is_not_read(tmp_path: Path) -> None:
    """Whoever can write there can change scores, but runs no code here."""
    with diskcache.Cache(str(tmp_path)) as planted:
        planted.set(b"a", {"any": "object"})
    cache = ScoreCache(10**6, folder=tmp_path)
    assert cache.get_many([b"a"]) == [None]
    cache.close()


def test_copies_share_the_scores_and_pickles_carry_none() -> None:
    """A deep copy of a component goes on with the same cache; another process gets an empty one."""
    cache = ScoreCache(10**6)
    cache.put_many({b"a": _score(1.0)})
    reranker = Reranker("m", score_cache=cache)
    assert copy.deepcopy(reranker).score_cache is cache
    unpickled = pickle.loads(pickle.dumps(reranker)).score_cache
    assert (unpickled.max_bytes, unpickled.stats().num_entries) == (10**6, 0)


def test_a_forked_child_begins_anew() -> None:
    """Even where a thread of its parent held the lock at that moment."""
    cache = ScoreCache(10**6)
    cache.put_many({b"a": _score(1.0)})
    cache._lock.acquire()
    child = os.fork()
    if child == 0:  # a wrong answer, or none, must not run the other tests twice
        signal.alarm(20)
        os._exit(0 if cache.get_many([b"a"]) == [None] else 1)
    cache._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.get_many([b"a"]) == [_score(1.0)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 and later
def test_a_child_that_is_forked_amid_a_write_has_a_cache_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It inherits no lock that is held, and writes what is its own; its parent does the same."""
    monkeypatch.setattr(score_folder, "_MAX_WAIT_SECONDS", 10)
    cache = ScoreCache(10**6, folder=tmp_path)
    for number in range(10):
        mine, its = b"mine %d" % number, b"its %d" % number
        cache.put_many({mine: _score(1.0)})
        child = os.fork()
        if child == 0:
            is_well = False
            signal.alarm(20)
            try:
                cache.put_many({its: _score(2.0)})
                cache.close()
                is_well = _read_anew(tmp_path, its) == [_score(2.0)]
            finally:
                os._exit(0 if is_well else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.close()
    assert cache.stats().num_disk_entries == 20
    cache.close()


def test_threads_share_a_cache() -> None:
    """Eight threads write and read at once: no error, no lost count, the bound holds."""
    cache = ScoreCache(420 * 500)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(300):
                keys = [b"%d" % ((seed * 31 + i * 7 + j) % 900) for j in range(10)]
                cache.put_many({key: _score(float(key)) for key in keys})
                for key, found in zip(keys, cache.get_many(keys), strict=True):
                    assert found is None or found.score == float(key)
        except BaseException as exc:  # noqa: BLE001
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    assert errors == []
    assert stats.num_hits + stats.num_misses == 8 * 300 * 10
    assert stats.num_entries <= 500


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "64MB"])
def test_a_wrong_size_is_refused(wrong: object) -> None:
    """The error names the value."""
    with pytest.raises(InvalidRequestError, match="integer of 1 or more, but got"):
        Reranker(score_cache=wrong)  # type: ignore[arg-type]


def test_a_repeated_call_gives_the_same_ranking_without_computing(tiny_bert: Path) -> None:
    """Bit for bit; rerankers of the same weights share, and those of other settings do not."""
    cache = ScoreCache(10**6)
    one = Reranker(str(tiny_bert), score_cache=cache)
    first, second = (one.rerank("berlin", DOCUMENTS) for _ in range(2))
    assert second.entries == first.entries
    assert (first.num_cached, second.num_cached) == (0, 4)
    assert second.usage.get("input_tokens", 0) == 0
    assert second.score_space == first.score_space
    other = Reranker(str(tiny_bert), score_cache=cache)
    assert other.rerank("berlin", DOCUMENTS).num_cached == 4
    exact = Reranker(str(tiny_bert), score_cache=cache, max_length=5)
    assert exact.rerank("berlin", DOCUMENTS).num_cached == 0
    assert one.rerank("berlin", DOCUMENTS, score_space="probability").num_cached == 0


@pytest.mark.weights
def test_a_repeated_call_is_at_least_fifty_times_faster() -> None:
    """With the default model and 60 passages; hundreds of times, where nothing else runs."""
    passages = [f"Berlin museum {i}: " + "the river and the tower " * 20 for i in range(60)]
    with Reranker(score_cache=10**6) as reranker:
        reranker.warm_up()
        began = time.perf_counter()
        first = reranker.rerank("how old is the tower", passages)
        computed = time.perf_counter() - began
        repeats = []
        for _ in range(3):
            began = time.perf_counter()
            again = reranker.rerank("how old is the tower", passages)
            repeats.append(time.perf_counter() - began)
            assert again.entries == first.entries
    assert computed > 50 * min(repeats)


def test_the_best_passage_of_a_long_document_is_kept(tiny_bert: Path) -> None:
    """What a reply says of an item beside its score comes from the cache as well."""
    long = "the band of the year " * 60 + "population of berlin " + "the band of the year " * 60
    reranker = Reranker(str(tiny_bert), score_cache=10**6, long_documents="max_passage")
    first, second = (reranker.rerank("berlin", [long, "museum"]) for _ in range(2))
    assert second.num_cached == 2
    assert second.entries == first.entries
    assert any(entry.span is not None for entry in second)


@pytest.mark.usefixtures("released")
def test_swapped_weights_give_no_stale_scores(tiny_bert: Path, tmp_path: Path) -> None:
    """After a swap, and after files were exchanged and loaded anew, scores are the new ones."""
    from safetensors.torch import load_file, save_file

    here, new = tmp_path / "here", tmp_path / "new"
    shutil.copytree(tiny_bert, here)
    shutil.copytree(tiny_bert, new)
    tensors = load_file(new / "model.safetensors")
    save_file({name: 1.5 * it for name, it in tensors.items()}, new / "model.safetensors")
    plain = Reranker(str(new)).rerank("berlin", DOCUMENTS)
    with LocalClient() as client:
        reranker = Reranker(str(here), client=client, score_cache=10**6)
        old = reranker.rerank("berlin", DOCUMENTS)
        assert reranker.rerank("berlin", DOCUMENTS).num_cached == 4
        client.swap(str(here), str(new))
        swapped = reranker.rerank("berlin", DOCUMENTS)
        assert swapped.num_cached == 0
        assert swapped.entries == plain.entries != old.entries
        assert reranker.rerank("berlin", DOCUMENTS).num_cached == 4
