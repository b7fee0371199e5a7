"""The token cache: what comes back, what is dropped, and what it counts."""

from __future__ import annotations

import random
import string
import threading
from pathlib import Path

import numpy as np
import pytest

from sie_core.errors import InvalidRequestError
from sie_core.local.token_cache import TokenCache
from sie_core.local.tokenization import PairTokenizer


def ids(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Make token ids."""
    return np.array(numbers, dtype=np.int32)


def test_known_texts_come_back_and_are_counted() -> None:
    """Hits are the very arrays that were put; unknown texts are None."""
    cache, berlin = TokenCache(), ids(1, 2)
    assert cache.get_many(["berlin"]) == [None]
    cache.put_many(["berlin"], [berlin])
    known, unknown = cache.get_many(["berlin", "paris"])
    assert known is berlin
    assert unknown is None
    stats = cache.stats()
    assert (stats.num_hits, stats.num_misses, stats.num_texts) == (1, 2, 1)
    assert stats.num_bytes > berlin.nbytes + len("berlin")


def test_what_was_not_used_longest_is_dropped_first() -> None:
    """At the bound the least recently used texts go; a look-up counts as use."""
    cache = TokenCache(100_000)
    cache.put_many(["a", "b"], [ids(1), ids(2)])
    cache.get_many(["a"])
    room = cache.stats().num_bytes
    cache.resize(room)  # texts must stay below a sixteenth of it to be kept
    assert cache.stats().num_texts == 2
    cache.resize(room - 1)
    known, dropped = cache.get_many(["a", "b"])
    assert known is not None
    assert dropped is None


def test_bytes_stay_within_the_bound() -> None:
    """Ten times as much as fits, of all lengths: never more than the bound, and nearly all."""
    generator = random.Random(3)
    cache = TokenCache(200_000)
    for i in range(3000):
        text = f"{i} " + "x" * generator.randrange(800)
        cache.put_many([text], [np.zeros(generator.randrange(200), dtype=np.int32)])
        assert cache.stats().num_bytes <= 200_000
    assert cache.stats().num_bytes > 190_000


def test_the_bytes_counted_are_those_taken() -> None:
    """What 20,000 texts take in memory, as tracemalloc sees it, is the count within a tenth."""
    import tracemalloc

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache = TokenCache(2**30)
        for i in range(20_000):
            cache.put_many([f"{i}" + "x" * (i % 700)], [np.zeros(i % 150, dtype=np.int32)])
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache.stats().num_bytes == pytest.approx(taken, rel=0.1)


def test_one_huge_text_does_not_drive_out_the_others() -> None:
    """A text that takes more than a sixteenth of the cache is not kept."""
    cache = TokenCache(64_000)
    cache.put_many(["small"], [ids(1)])
    cache.put_many(["x" * 10_000], [ids(2)])
    assert cache.stats().num_texts == 1


def test_a_size_of_0_keeps_nothing() -> None:
    """The cache can be switched off, also later."""
    cache = TokenCache(0)
    cache.put_many(["a"], [ids(1)])
    assert cache.get_many(["a"]) == [None]
    assert cache.stats().num_texts == 0
    cache = TokenCache()
    cache.put_many(["a"], [ids(1)])
    cache.resize(0)
    assert cache.get_many(["a"]) == [None]


@pytest.mark.parametrize("size", [-1, 1.5, True, "64"])
def test_a_bad_size_is_named(size: object) -> None:
    """Only integers from 0 are sizes."""
    with pytest.raises(InvalidRequestError, match=f"token_cache_bytes must be .* got {size!r}"):
        TokenCache(size)  # type: ignore[arg-type]


def test_threads_share_a_cache_without_mixing_texts() -> None:
    """16 threads with overlapping texts and a bound that drops all the time get right ids only."""
    cache, wrong = TokenCache(60_000), []

    def work(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(300):
            numbers = [generator.randrange(500) for _ in range(10)]
            texts = [str(n) for n in numbers]
            wrong.extend(
                text
                for text, found in zip(texts, cache.get_many(texts), strict=True)
                if found is not None and found.tolist() != [int(text)]
            )
            cache.put_many(texts, [ids(n) for n in numbers])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.stats().num_bytes <= 60_000


def test_cached_documents_make_the_same_pairs(tiny_bert: Path) -> None:
    """With another query and another maximum length, pairs from the cache are those without it."""
    generator = random.Random(11)
    documents = [
        " ".join("".join(generator.choices(string.ascii_lowercase, k=4)) for _ in range(n))
        for n in range(40)
    ]
    cached, plain = PairTokenizer.load(tiny_bert), PairTokenizer.load(tiny_bert)
    plain.cache.resize(0)
    cached.encode_pairs("warm the cache", documents, 128)
    for query, max_length in (("berlin", 128), ("what is python", 30), ("who " * 50, 64)):
        for ours, expected in zip(
            cached.encode_pairs(query, documents, max_length),
            plain.encode_pairs(query, documents, max_length),
            strict=True,
        ):
            assert ours.token_ids.tolist() == expected.token_ids.tolist()
            assert (ours.num_first, ours.is_truncated) == (
                expected.num_first,
                expected.is_truncated,
            )
    assert cached.cache.stats().num_hits == 3 * len(documents)
    assert plain.cache.stats().num_hits == 0


def test_documents_seen_before_are_not_tokenised(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call with the same documents tokenises its query alone."""
    tokenizer = PairTokenizer.load(tiny_bert)
    tokenised: list[str] = []
    encode = tokenizer.encode

    def spy(texts: list[str]) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
        tokenised.extend(texts)
        return encode(texts)

    monkeypatch.setattr(tokenizer, "encode", spy)
    tokenizer.encode_pairs("berlin", ["a museum", "a river"], 128)
    tokenizer.encode_pairs("paris", ["a river", "a tower", "a museum"], 128)
    assert tokenised == ["berlin", "a museum", "a river", "paris", "a tower"]
