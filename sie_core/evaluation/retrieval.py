"""The first stage, which a reranker improves on: BM25 (Robertson and Zaragoza, 2009)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

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


class Bm25Index:
    """BM25 over a whole corpus, English stop words left out.

    Of the texts it keeps the terms and what each weighs in each document.

    Args:
        texts: The corpus, read once; a text's number is its place in it.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._tokenizer = bm25s.tokenization.Tokenizer(stopwords="en")
        ids, ends = array("i"), array("q")
        for tokens in self._tokenizer.streaming_tokenize(texts, allow_empty=False):
            ids.extend(tokens)
            ends.append(len(ids))
        self._num_texts = len(ends)
        self._index: bm25s.BM25 | None = None
        if ids:  # bm25s cannot index nothing
            tokenized = bm25s.tokenization.Tokenized(
                ids=_Rows(ids, ends), vocab=self._tokenizer.get_vocab_dict()
            )
            self._index = bm25s.BM25()
            self._index.index(tokenized, show_progress=False)

    def top_k(self, query: str, k: int) -> list[tuple[int, float]]:
        """Return the best `k` texts that have a term of the query, best first.

        Returns:
            Numbers and scores; equal scores keep the corpus's order.
        """
        (terms,) = self._tokenizer.streaming_tokenize(
            [query], update_vocab="never", allow_empty=False
        )
        if self._index is None or not terms:
            return []
        scores = self._index.get_scores(terms)
        return [
            (number, score)
            for number, score in zip(*best(scores, k), strict=True)
            if score > 0  # the others have none of the terms
        ]

    def __len__(self) -> int:
        return self._num_texts


def best(scores: NDArray[np.float32], k: int) -> tuple[list[int], list[float]]:
    """Return the places and values of the `k` highest of `scores` [n], best first.

    Equal scores are in the order of their places, also where `k` cuts between them.
    """
    k = min(k, len(scores))
    if k == 0:
        return [], []
    lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= lowest)
    order = places[np.lexsort((places, -scores[places]))][:k]
    return order.tolist(), scores[order].tolist()


class _Rows(Sequence[list[int]]):
    """Lists of numbers, held in one array: a list of lists takes ten times as much memory."""

    def __init__(self, values: array[int], ends: array[int]) -> None:
        self._values = values
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> list[int]:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return self._values[start : self._ends[index]].tolist()
