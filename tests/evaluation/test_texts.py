"""The corpus on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from sie_core.errors import DatasetError
from sie_core.evaluation.collection import Document
from sie_core.evaluation.texts import TextStore


@pytest.fixture
def store(tmp_path: Path) -> TextStore:
    """A thousand documents and one."""
    documents = (Document(f"d{i}", f"text {i}", "title" if i % 2 else "") for i in range(1001))
    return TextStore.build(tmp_path / "corpus.sqlite", documents)


def test_passages_come_in_the_order_asked_for(store: TextStore) -> None:
    """More of them than one statement holds, by id and by number."""
    numbers = list(range(1000, -1, -1))
    ids = store.ids(numbers)
    assert ids == [f"d{i}" for i in numbers]
    assert store.passages(ids)[:2] == ["text 1000", "title text 999"]
    assert store.passages([]) == []
    assert len(store) == 1001


def test_reading_can_begin_anywhere(store: TextStore) -> None:
    """In the corpus's order."""
    assert list(store.read(999)) == ["title text 999", "text 1000"]


def test_progress_is_told_to_the_last_document(tmp_path: Path) -> None:
    """The parts add up."""
    told: list[int] = []
    documents = (Document(f"d{i}", "text") for i in range(1201))
    TextStore.build(tmp_path / "c.sqlite", documents, advance=told.append)
    assert sum(told) == 1201
    assert len(told) > 2


def test_a_document_that_is_not_there_is_named(store: TextStore) -> None:
    """A run may name documents of another corpus."""
    with pytest.raises(DatasetError, match="lacks 1 documents asked for, the first is 'nowhere'"):
        store.passages(["d1", "nowhere"])


def test_an_id_twice_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    """What was begun is made anew the next time."""
    path = tmp_path / "corpus.sqlite"
    with pytest.raises(DatasetError, match="two documents with the id 'd'"):
        TextStore.build(path, [Document("d", "a"), Document("d", "b")])
    assert not path.exists()
    assert TextStore.build(path, [Document("d", "a")]).passages(["d"]) == ["a"]


def test_no_documents_are_refused(tmp_path: Path) -> None:
    """There is nothing to search."""
    with pytest.raises(DatasetError, match="holds no document"):
        TextStore.build(tmp_path / "corpus.sqlite", [])


def test_half_a_surrogate_pair_does_no_harm(tmp_path: Path) -> None:
    """JSON can hold it, UTF-8 cannot."""
    store = TextStore.build(tmp_path / "corpus.sqlite", [Document("d", "a \ud83d b")])
    assert store.passages(["d"]) == ["a \ufffd b"]


def test_a_damaged_file_says_what_to_delete(tmp_path: Path) -> None:
    """Not sqlite's own error."""
    path = tmp_path / "corpus.sqlite"
    path.write_bytes(b"no database, but long enough to be looked at" * 10)
    with pytest.raises(DatasetError, match="delete its folder"):
        TextStore(path)
