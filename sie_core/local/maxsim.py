"""MaxSim, the score of late interaction, and the vectors that callers keep and pass back.

For each vector of the query the largest product with any vector of the document, summed over the
query (Khattab and Zaharia 2020, arXiv:2004.12832).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sie_core.errors import InvalidRequestError

Vectors = NDArray[np.float32] | NDArray[np.float16]
"""A text's token vectors; [tokens, dims]."""

_MAX_PRODUCTS = 1 << 24
"""Products kept at a time: 64 MiB of them."""

_MAX_NUMBERS = 1 << 24
"""Numbers of documents' vectors packed at a time."""


def maxsim(query: Vectors, documents: Sequence[Vectors]) -> NDArray[np.float32]:
    """Score documents against a query, in float32 whatever the vectors' format.

    Documents are packed one behind the other and multiplied by the query at once, as many as fit
    into a bound on memory.

    Args:
        query: [query tokens, dims].
        documents: [tokens, dims] each, at least one token.

    Returns:
        One score for each document.
    """
    transposed = np.ascontiguousarray(query.T, dtype=np.float32)
    scores = np.empty(len(documents), np.float32)
    done = 0
    for part in _parts(documents, query.shape[0]):
        packed = np.concatenate(part, dtype=np.float32)
        lengths = np.fromiter(map(len, part), np.intp, len(part))
        products = packed @ transposed
        best = np.maximum.reduceat(products, np.cumsum(lengths) - lengths, axis=0)
        scores[done : done + len(part)] = best.sum(1)
        done += len(part)
    return scores


def _parts(documents: Sequence[Vectors], num_query: int) -> Iterator[list[Vectors]]:
    """Cut a list so that each part's vectors and products stay within bounds."""
    part: list[Vectors] = []
    rows = 0
    for document in documents:
        num_rows, num_dims = document.shape
        is_full = (rows + num_rows) * num_query > _MAX_PRODUCTS or (
            (rows + num_rows) * num_dims > _MAX_NUMBERS
        )
        if part and is_full:
            yield part
            part, rows = [], 0
        part.append(document)
        rows += num_rows
    if part:
        yield part


def check_vectors(vectors: Any, name: str, dims: int) -> Vectors:
    """Return vectors that a caller kept.

    Args:
        vectors: What was passed back.
        name: How an error names it.
        dims: Numbers per token of the model.

    Raises:
        InvalidRequestError: They are not [tokens, dims] in float32 or float16, or not finite.
    """
    is_array = isinstance(vectors, np.ndarray)
    if not is_array or vectors.dtype not in (np.float32, np.float16):
        found = vectors.dtype if is_array else type(vectors).__name__
        msg = f"the multivector of {name} must be float32 or float16 in a numpy array, not {found}"
        raise InvalidRequestError(msg)
    if vectors.ndim != 2 or vectors.shape[1] != dims or not len(vectors):  # noqa: PLR2004
        msg = (
            f"the multivector of {name} must have the shape [tokens, {dims}] with at least one "
            f"token, as this model gives, but has {list(vectors.shape)}"
        )
        raise InvalidRequestError(msg)
    if not np.isfinite(vectors).all():
        msg = f"the multivector of {name} holds numbers that are not finite"
        raise InvalidRequestError(msg)
    checked: Vectors = vectors
    return checked
