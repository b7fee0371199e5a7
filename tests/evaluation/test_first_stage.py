"""First stages: BM25 over a corpus, embeddings in a file, both, and runs from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sie_core.errors import DatasetError, InvalidRequestError, InvalidResponseError
from sie_core.evaluation import dense
from sie_core.evaluation.collection import Collection, Document
from sie_core.evaluation.dense import ClientEmbedder, DenseIndex
from sie_core.evaluation.first_stage import retrieve
from sie_core.evaluation.retrieval import Bm25Index, best, bm25_order
from sie_core.evaluation.texts import TextStore
from sie_core.types import Item

TEXTS = [
    "berlin has many museums",
    "the population of berlin is large",
    "bananas are yellow",
    "berlin population berlin population",
    "",
]


class LetterClient:
    """Embeds a text as how often each letter stands in it."""

    def __init__(self, num_calls: int | None = None) -> None:
        self.num_calls = num_calls
        self.asked: list[tuple[list[str], bool | None]] = []

    def encode(
        self, model: str, items: Sequence[Item], *, is_query: bool | None = None, **_: Any
    ) -> list[dict[str, Any]]:
        """Answer as a real client does, until the calls are used up."""
        assert model == "letters"
        if self.num_calls is not None and len(self.asked) == self.num_calls:
            raise KeyboardInterrupt
        texts = [item["text"] for item in items]
        self.asked.append((texts, is_query))
        return [{"dense": letters(text)} for text in texts]


def letters(text: str) -> NDArray[np.float32]:
    """Count letters."""
    return np.array([text.count(chr(97 + i)) for i in range(26)], np.float32)


@pytest.fixture
def store(tmp_path: Path) -> TextStore:
    """The texts above."""
    documents = (Document(f"d{i}", text) for i, text in enumerate(TEXTS))
    return TextStore.build(tmp_path / "corpus.sqlite", documents)


@pytest.fixture
def collection() -> Collection:
    """Two queries over them."""
    return Collection(
        name="tiny",
        read_documents=lambda: iter(()),
        queries={"q1": "population of berlin", "q2": "zebra"},
        qrels={},
        identity={},
    )


def test_bm25_over_a_corpus_orders_as_over_a_list() -> None:
    """The same terms and weights; those without a term of the query are no candidates."""
    found = Bm25Index(iter(TEXTS)).top_k("population of berlin", 10)
    assert [number for number, _ in found] == bm25_order("population of berlin", TEXTS)[:3]
    assert all(score > 0 for _, score in found)


def test_bm25_asked_for_less_gives_the_beginning() -> None:
    """And nothing for a query without a known term, or of stop words only."""
    index = Bm25Index(TEXTS)
    assert index.top_k("berlin population", 2) == index.top_k("berlin population", 5)[:2]
    assert index.top_k("zebra", 5) == []
    assert index.top_k("the", 5) == []
    assert Bm25Index(["", "the"]).top_k("berlin", 5) == []


def test_asking_does_not_teach_bm25_words() -> None:
    """A word of one query is as unknown to the next."""
    index = Bm25Index(TEXTS)
    index.top_k("zebra crossing", 5)
    assert index.top_k("zebra", 5) == []


def test_the_best_are_those_of_a_stable_sort() -> None:
    """Equal values keep their order, also where the cut is between them."""
    random = np.random.default_rng(3)
    for k in (1, 7, 50, 80):
        values = random.integers(0, 5, 50).astype(np.float32)
        expected = np.argsort(-values, kind="stable")[:k]
        places, scores = best(values, k)
        assert places == expected.tolist()
        assert scores == values[expected].tolist()


def test_dense_search_is_exact(
    store: TextStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of two rows as in one; documents and queries are told apart."""
    client = LetterClient()
    embedder = ClientEmbedder(client, "letters")
    index = DenseIndex(tmp_path / "vectors", store, embedder.embed_passages)
    queries = embedder.embed_queries(["berlin", "bananas"])
    assert [is_query for _, is_query in client.asked] == [False, True]
    vectors = np.stack([letters(text) for text in TEXTS])
    for block_bytes in (2 * 26 * 4, 2**20):
        monkeypatch.setattr(dense, "_BLOCK_BYTES", block_bytes)
        for row, found in enumerate(index.top_k(queries, 3)):
            products = vectors @ queries[row]
            expected = np.argsort(-products, kind="stable")[:3]
            assert found == [(int(i), float(products[i])) for i in expected]


def test_blank_documents_are_not_sent(store: TextStore, tmp_path: Path) -> None:
    """Their vector is zero."""
    client = LetterClient()
    DenseIndex(tmp_path / "vectors", store, ClientEmbedder(client, "letters").embed_passages)
    assert [texts for texts, _ in client.asked] == [TEXTS[:4]]
    assert not np.fromfile(tmp_path / "vectors", np.float32).reshape(5, 26)[4].any()


def test_an_interrupted_embedding_continues(
    store: TextStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is embedded twice, a batch written in part is taken off, vectors are the same."""
    monkeypatch.setattr(dense, "BATCH_SIZE", 2)
    path = tmp_path / "vectors"
    first = LetterClient(num_calls=1)
    with pytest.raises(KeyboardInterrupt):
        DenseIndex(path, store, ClientEmbedder(first, "letters").embed_passages)
    with path.open("ab") as stream:
        stream.write(b"half a batch")
    second = LetterClient()
    told: list[int] = []
    DenseIndex(path, store, ClientEmbedder(second, "letters").embed_passages, advance=told.append)
    assert [texts for texts, _ in first.asked + second.asked] == [TEXTS[:2], TEXTS[2:4]]
    assert sum(told) == len(TEXTS)
    vectors = np.fromfile(path, np.float32).reshape(5, 26)
    assert np.array_equal(vectors, np.stack([letters(text) for text in TEXTS]))


def test_vectors_that_cannot_be_used_are_refused(store: TextStore, tmp_path: Path) -> None:
    """Too few, or not finite."""
    for wrong in (np.zeros((1, 3)), np.full((4, 3), np.nan)):
        with pytest.raises(InvalidResponseError, match="4 texts were embedded"):
            DenseIndex(tmp_path / "v", store, lambda _, wrong=wrong: wrong)


def test_hybrid_merges_both_lists(store: TextStore, collection: Collection, tmp_path: Path) -> None:
    """By reciprocal rank fusion of what each finds alone."""
    embedder = ClientEmbedder(LetterClient(), "letters")
    found = {
        name: retrieve(
            name, collection, store, depth=4, embedder=embedder, vectors=tmp_path / "vectors"
        )
        for name in ("bm25", "dense", "hybrid")
    }
    assert found["bm25"]["q2"] == []
    assert [one for one, _ in found["hybrid"]["q2"]] == [one for one, _ in found["dense"]["q2"]]
    scores: dict[str, float] = {}
    for name in ("dense", "bm25"):
        for rank, (one, _) in enumerate(found[name]["q1"], start=1):
            scores[one] = scores.get(one, 0.0) + 1 / (60 + rank)
    expected = sorted(scores, key=lambda one: -scores[one])[:4]
    assert [one for one, _ in found["hybrid"]["q1"]] == expected


def test_dense_without_an_embedder_is_refused(store: TextStore, collection: Collection) -> None:
    """It says what it needs."""
    with pytest.raises(InvalidRequestError, match="'dense' needs an embedder"):
        retrieve("dense", collection, store, depth=4)


def test_a_run_file_is_a_first_stage(
    store: TextStore, collection: Collection, tmp_path: Path
) -> None:
    """Cut to the depth; a query that it lacks has no candidates, and others are not taken."""
    run = tmp_path / "run.trec"
    run.write_text(
        "q1 Q0 d3 1 9 t\nq1 Q0 d0 2 8 t\nq1 Q0 d1 3 7 t\nother Q0 d1 1 1 t\n", encoding="utf-8"
    )
    assert retrieve(str(run), collection, store, depth=2) == {
        "q1": [("d3", 9.0), ("d0", 8.0)],
        "q2": [],
    }
    run.write_text("q1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="six fields"):
        retrieve(str(run), collection, store, depth=2)


def test_an_unknown_first_stage_is_refused(store: TextStore, collection: Collection) -> None:
    """It names those there are."""
    with pytest.raises(InvalidRequestError, match=r"hybrid or the file .* 'splade'"):
        retrieve("splade", collection, store, depth=2)
