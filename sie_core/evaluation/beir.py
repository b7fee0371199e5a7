"""BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (Thakur et al., 2021).

The files may be compressed (`.gz`). The readers of single files also serve data that lies
elsewhere, beside a TREC run.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.evaluation.collection import Collection, Document
from sie_core.evaluation.trec import read_qrels

_ID_KEYS = ("_id", "id", "doc_id", "query_id")


def load_beir(folder: Path, *, split: str = "test") -> Collection:
    """Open a folder in BEIR's layout.

    Raises:
        InvalidRequestError: The folder has not got that split.
        DatasetError: A file is missing or malformed.
    """
    qrels = folder / "qrels" / f"{split}.tsv"
    if not qrels.is_file():
        found = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
        there = f"the splits there are: {', '.join(found)}" if found else "it has no qrels/*.tsv"
        msg = f"{folder} has no judgements for the split {split!r}; {there}"
        raise InvalidRequestError(msg)
    return load_files(
        corpus=_either(folder / "corpus.jsonl"),
        queries=_either(folder / "queries.jsonl"),
        qrels=qrels,
        name=f"{folder.name or folder.resolve().name} ({split})",
    )


def load_files(*, corpus: Path, queries: Path, qrels: Path, name: str | None = None) -> Collection:
    """Make a collection of three files.

    Args:
        corpus: JSONL with `_id`, `text` and, if there is one, `title`.
        queries: JSONL with `_id` and `text`, or TSV with an id and a text.
        qrels: As BEIR or as TREC has it.
        name: For people; None is the corpus file's.

    Raises:
        DatasetError: A file is missing or malformed; of the corpus this shows only in reading it.
    """
    return Collection(
        name=name or corpus.name,
        read_documents=lambda: read_corpus(corpus),
        queries=read_queries(queries),
        qrels=read_qrels(qrels),
        identity={
            role: file_identity(path)
            for role, path in (("corpus", corpus), ("queries", queries), ("qrels", qrels))
        },
    )


def file_identity(path: Path) -> dict[str, Any]:
    """Tell a file from another, and from itself after a change, without reading it."""
    try:
        status = path.stat()
    except OSError as exc:
        msg = f"cannot read {path}: {exc.strerror}"
        raise DatasetError(msg) from exc
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified": status.st_mtime_ns}


def read_corpus(path: Path) -> Iterator[Document]:
    """Read documents one by one."""
    for line, record in _read_jsonl(path):
        yield Document(
            id=_id(record, path, line),
            text=_text(record, "text", path, line),
            title=_text(record, "title", path, line, is_optional=True),
        )


def read_queries(path: Path) -> dict[str, str]:
    """Read queries: JSONL, or TSV with an id and a text in each line."""
    queries: dict[str, str] = {}
    is_tsv = ".tsv" in path.suffixes
    for line, query_id, text in _tsv_queries(path) if is_tsv else _jsonl_queries(path):
        if query_id in queries:
            msg = f"{path} line {line}: the query id {query_id!r} is there already"
            raise DatasetError(msg)
        queries[query_id] = text
    return queries


def _jsonl_queries(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, record in _read_jsonl(path):
        yield line, _id(record, path, line), _text(record, "text", path, line)


def _tsv_queries(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, content in _read_lines(path):
        query_id, tab, text = content.partition("\t")
        if not tab:
            msg = f"{path} line {line}: expected an id, a tab and a text, but got {content[:80]!r}"
            raise DatasetError(msg)
        yield line, query_id.strip(), text.strip()


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in _read_lines(path):
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as exc:
            msg = f"{path} line {line}: not valid JSON: {exc}"
            raise DatasetError(msg) from exc
        if not isinstance(record, dict):
            msg = f"{path} line {line}: expected a JSON object, but got {content[:80]!r}"
            raise DatasetError(msg)
        yield line, record


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read lines that are not blank, with their numbers."""
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, EOFError) as exc:
        msg = f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}"
        raise DatasetError(msg) from exc
    except UnicodeDecodeError as exc:
        msg = f"{path} is not UTF-8 ({exc.reason}); convert it to UTF-8"
        raise DatasetError(msg) from exc


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


def _either(path: Path) -> Path:
    """Return the file, or its compressed form where only that is there."""
    compressed = path.with_name(f"{path.name}.gz")
    return compressed if compressed.is_file() and not path.is_file() else path


def _id(record: dict[str, Any], path: Path, line: int) -> str:
    for key in _ID_KEYS:
        value = record.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            return str(value)
    msg = f"{path} line {line}: no id; one of {', '.join(_ID_KEYS)} must hold it"
    raise DatasetError(msg)


def _text(
    record: dict[str, Any], key: str, path: Path, line: int, *, is_optional: bool = False
) -> str:
    value = record.get(key)
    if isinstance(value, str):
        return value
    if value is None and is_optional:
        return ""
    msg = f"{path} line {line}: {key!r} must hold a text, but holds {value!r}"
    raise DatasetError(msg)
