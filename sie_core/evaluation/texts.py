"""The corpus on disk: passages in an SQLite file, numbered in the corpus's order.

Whatever a corpus's size, nothing of it stays in memory but what is asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from sie_core.errors import DatasetError
from sie_core.evaluation.collection import Document
from sie_core.types import encodable

_BATCH_SIZE = 500
"""Rows per statement; SQLite takes at least 999 values in one."""


class TextStore:
    """Passages by number and by document id. One thread at a time may use it.

    Args:
        path: A file made by `build`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _errors_named(path):
            self._connection = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
            (self._num_documents,) = self._connection.execute(
                "SELECT count(*) FROM documents"
            ).fetchone()

    @classmethod
    def build(
        cls,
        path: Path,
        documents: Iterable[Document],
        *,
        with_title: bool = True,
        advance: Callable[[int], None] = lambda _: None,
    ) -> TextStore:
        """Write `documents` to `path` and open it; the file is there when it is complete.

        Args:
            path: The file.
            documents: Read once, and not held.
            with_title: Put titles before the texts.
            advance: Told how many more were written.

        Raises:
            DatasetError: There is no document, or an id is there twice.
        """
        staged = path.with_name(f"{path.name}.part")
        staged.unlink(missing_ok=True)
        with _errors_named(path), closing(sqlite3.connect(staged)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")  # what is not finished is made anew
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(
                "CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT)"
            )
            num_documents = 0
            for number, document in enumerate(documents):
                _insert(connection, number, document, with_title=with_title)
                num_documents = number + 1
                if num_documents % _BATCH_SIZE == 0:
                    advance(_BATCH_SIZE)
            advance(num_documents % _BATCH_SIZE)
            connection.commit()
        if num_documents == 0:
            staged.unlink()
            msg = "the corpus holds no document"
            raise DatasetError(msg)
        staged.replace(path)
        return cls(path)

    def ids(self, numbers: Sequence[int]) -> list[str]:
        """Return the ids of numbered documents, in the order asked for."""
        found: dict[int, str] = {}
        for batch in _batches(numbers):
            query = f"SELECT number, id FROM documents WHERE number IN ({_marks(batch)})"  # noqa: S608 -- question marks only
            with _errors_named(self.path):
                found.update(self._connection.execute(query, batch).fetchall())
        return [found[number] for number in numbers]

    def passages(self, ids: Sequence[str]) -> list[str]:
        """Return the passages of documents by id, in the order asked for.

        Raises:
            DatasetError: The corpus lacks one of them.
        """
        found: dict[str, str] = {}
        for batch in _batches([encodable(document_id) for document_id in ids]):
            query = f"SELECT id, text FROM documents WHERE id IN ({_marks(batch)})"  # noqa: S608 -- question marks only
            with _errors_named(self.path):
                found.update(self._connection.execute(query, batch).fetchall())
        missing = [document_id for document_id in ids if encodable(document_id) not in found]
        if missing:
            msg = (
                f"the corpus lacks {len(missing)} documents asked for, the first is {missing[0]!r}"
            )
            raise DatasetError(msg)
        return [found[encodable(document_id)] for document_id in ids]

    def read(self, start: int = 0) -> Iterator[str]:
        """Read passages one after the other, from number `start` on."""
        query = "SELECT text FROM documents WHERE number >= ? ORDER BY number"
        with _errors_named(self.path):
            for (text,) in self._connection.execute(query, (start,)):
                yield text

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._connection.close()

    def __len__(self) -> int:
        return int(self._num_documents)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _insert(
    connection: sqlite3.Connection, number: int, document: Document, *, with_title: bool
) -> None:
    row = (
        number,
        encodable(document.id),
        encodable(document.passage(with_title=with_title)),
    )
    try:
        connection.execute("INSERT INTO documents VALUES (?, ?, ?)", row)
    except sqlite3.IntegrityError as exc:
        msg = f"the corpus has two documents with the id {document.id!r}"
        raise DatasetError(msg) from exc


def _batches(values: Sequence[object]) -> Iterator[Sequence[object]]:
    for start in range(0, len(values), _BATCH_SIZE):
        yield values[start : start + _BATCH_SIZE]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        msg = f"{path} cannot be used ({exc}); delete its folder and run the command again"
        raise DatasetError(msg) from exc
