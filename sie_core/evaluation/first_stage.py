"""The first stage: each query's candidates, by BM25, embeddings, both, or a run from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sie_core.errors import InvalidRequestError
from sie_core.evaluation.collection import Collection
from sie_core.evaluation.dense import DenseIndex, embed_queries
from sie_core.evaluation.retrieval import Bm25Index
from sie_core.evaluation.texts import TextStore
from sie_core.evaluation.trec import read_run
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.fusion import reciprocal_rank_fusion

BM25, DENSE, HYBRID = "bm25", "dense", "hybrid"
NEEDS_EMBEDDER = (DENSE, HYBRID)

Candidates = Mapping[str, Sequence[tuple[str, float]]]
"""Query id -> (document id, first stage's score), best first."""


class Embedder(Protocol):
    """Turns texts into vectors, [number of texts, dims]; better matches have a larger product."""

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed documents."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed queries."""
        ...


def retrieve(
    first_stage: str,
    collection: Collection,
    store: TextStore,
    *,
    depth: int,
    embedder: Embedder | None = None,
    vectors: Path | None = None,
    watch: Watch = unwatched,
) -> dict[str, list[tuple[str, float]]]:
    """Find the candidates of every query.

    Args:
        first_stage: `bm25`, `dense`, `hybrid` (both, merged by reciprocal rank fusion), or the
            path of a TREC run.
        collection: Whose queries.
        store: Its documents.
        depth: Candidates per query at most; BM25 gives those only that have a term of the query.
        embedder: For `dense` and `hybrid`.
        vectors: The file for its vectors; what is there already is not computed again.
        watch: Shows the progress.

    Raises:
        InvalidRequestError: `first_stage` is none of these.
        DatasetError: The run cannot be read.
        SIEError: The embedder failed.
    """
    if first_stage == BM25:
        return _bm25(collection, store, depth, watch)
    if first_stage in NEEDS_EMBEDDER:
        if embedder is None or vectors is None:
            msg = f"the first stage {first_stage!r} needs an embedder and a file for its vectors"
            raise InvalidRequestError(msg)
        with watch("embedding documents", len(store)) as advance:
            index = DenseIndex(vectors, store, embedder.embed_passages, advance=advance)
        dense = _dense(collection, store, depth, index, embedder)
        if first_stage == DENSE:
            return dense
        return _fused(dense, _bm25(collection, store, depth, watch), depth)
    check_first_stage(first_stage)
    run = read_run(Path(first_stage))
    return {query_id: run.get(query_id, [])[:depth] for query_id in collection.queries}


def check_first_stage(first_stage: str) -> None:
    """Raise InvalidRequestError unless it is known by name or is a file."""
    if first_stage not in (BM25, DENSE, HYBRID) and not Path(first_stage).is_file():
        msg = (
            "the first stage must be bm25, dense, hybrid or the file of a TREC run, but got "
            f"{first_stage!r}, and there is no such file"
        )
        raise InvalidRequestError(msg)


def _bm25(
    collection: Collection, store: TextStore, depth: int, watch: Watch
) -> dict[str, list[tuple[str, float]]]:
    with watch("indexing by BM25", len(store)) as advance:
        index = Bm25Index(_told(store, advance))
    with watch("searching by BM25", len(collection.queries)) as advance:
        candidates = {}
        for query_id, text in collection.queries.items():
            candidates[query_id] = _named(store, index.top_k(text, depth))
            advance(1)
    return candidates


def _dense(
    collection: Collection, store: TextStore, depth: int, index: DenseIndex, embedder: Embedder
) -> dict[str, list[tuple[str, float]]]:
    queries = embed_queries(embedder.embed_queries, list(collection.queries.values()))
    return {
        query_id: _named(store, numbered)
        for query_id, numbered in zip(collection.queries, index.top_k(queries, depth), strict=True)
    }


def _fused(first: Candidates, second: Candidates, depth: int) -> dict[str, list[tuple[str, float]]]:
    return {
        query_id: reciprocal_rank_fusion(
            [[document_id for document_id, _ in one[query_id]] for one in (first, second)]
        )[:depth]
        for query_id in first
    }


def _named(store: TextStore, numbered: Sequence[tuple[int, float]]) -> list[tuple[str, float]]:
    ids = store.ids([number for number, _ in numbered])
    return [(one, score) for one, (_, score) in zip(ids, numbered, strict=True)]


def _told(store: TextStore, advance: Callable[[int], None]) -> Iterator[str]:
    for text in store.read():
        yield text
        advance(1)
