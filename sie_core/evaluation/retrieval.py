"""The first stage, which a reranker improves on: BM25 (Robertson and Zaragoza, 2009)."""

from __future__ import annotations

from collections.abc import Sequence

from sie_core.errors import MissingDependencyError
from sie_core.ranking import rank

try:
    import bm25s  # type: ignore[import-untyped] # bm25s ships no type information
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[evaluation]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc


def bm25_order(query: str, passages: Sequence[str]) -> list[int]:
    """Order `passages` by BM25, English stop words left out, over themselves as the collection.

    Returns:
        Indices into `passages`, best first; equal scores keep the order given.
    """
    tokenized = bm25s.tokenize(
        [query, *passages], stopwords="en", return_ids=False, show_progress=False
    )
    query_tokens, passage_tokens = tokenized[0], tokenized[1:]
    if not query_tokens or not any(passage_tokens):  # bm25s cannot index or ask for nothing
        return list(range(len(passages)))
    index = bm25s.BM25()
    index.index(passage_tokens, show_progress=False)
    scores = index.get_scores(query_tokens)
    return [entry.index for entry in rank([float(score) for score in scores])]
