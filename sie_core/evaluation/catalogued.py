"""Any data set that ir_datasets knows by name (MacAvaney et al., 2021), which it downloads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sie_core.errors import DatasetError, InvalidRequestError, MissingDependencyError
from sie_core.evaluation.collection import Collection, Document

try:
    import ir_datasets
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[evaluation]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc


def load_catalogued(name: str) -> Collection:
    """Open a data set by its name in ir_datasets, such as `beir/scifact/test`.

    Raises:
        InvalidRequestError: There is none of that name, or it lacks documents, queries or
            judgements.
        DatasetError: It could not be downloaded or read.
    """
    try:
        dataset = ir_datasets.load(name)
    except KeyError as exc:
        msg = (
            f"{name!r} is no folder, and ir_datasets knows no data set of that name; names look "
            "like beir/scifact/test (https://ir-datasets.com lists them)"
        )
        raise InvalidRequestError(msg) from exc
    lacking = [
        part for part in ("docs", "queries", "qrels") if not getattr(dataset, f"has_{part}")()
    ]
    if lacking:
        msg = f"{name!r} has no {' and no '.join(lacking)}; one of its parts may: {name}/…"
        raise InvalidRequestError(msg)
    try:
        return _collection(name, dataset)
    except Exception as exc:  # it raises whatever requests, zipfile or its parsers raise
        msg = f"ir_datasets could not provide {name!r}: {type(exc).__name__}: {exc}"
        raise DatasetError(msg) from exc


def _collection(name: str, dataset: Any) -> Collection:
    qrels: dict[str, dict[str, int]] = {}
    for qrel in dataset.qrels_iter():
        qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
    return Collection(
        name=name,
        read_documents=lambda: _documents(name, dataset),
        queries={query.query_id: query.default_text() for query in dataset.queries_iter()},
        qrels=qrels,
        identity={"ir_datasets": name},
        num_documents=dataset.docs_count(),
    )


def _documents(name: str, dataset: Any) -> Iterator[Document]:
    try:
        for record in dataset.docs_iter():
            yield _document(record)
    except Exception as exc:  # as above
        msg = (
            f"ir_datasets could not provide the documents of {name!r}: {type(exc).__name__}: {exc}"
        )
        raise DatasetError(msg) from exc


def _document(record: Any) -> Document:
    """Keep title and text apart where the data set does; else take what it calls the text."""
    title = getattr(record, "title", None)
    text = getattr(record, "text", None)
    if isinstance(title, str) and isinstance(text, str):
        return Document(record.doc_id, text, title)
    return Document(record.doc_id, record.default_text())
