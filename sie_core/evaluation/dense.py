"""A dense first stage: every passage's embedding in a file, and exact search by inner product.

The file is mapped into memory and searched block by block, so that neither needs to fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sie_core.errors import DatasetError, InvalidResponseError
from sie_core.evaluation.retrieval import best
from sie_core.evaluation.texts import TextStore
from sie_core.types import Item

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors [number of texts, dims]."""

BATCH_SIZE = 64
"""Passages per call, and what an interruption loses at most."""

_BLOCK_BYTES = 64 * 2**20
"""How much of the file one matrix product reads."""

_QUERY_BATCH_SIZE = 256


class ClientEmbedder:
    """Embeds through a client's `encode`: a model in this process, or on a server.

    Args:
        client: `LocalClient`, `SIEClient`, or anything with the same call.
        model: The embedding model.
    """

    def __init__(self, client: Any, model: str) -> None:
        self._client = client
        self._model = model

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed documents: [number of texts, dims]."""
        return self._embed(texts, is_query=False)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed queries: [number of texts, dims]."""
        return self._embed(texts, is_query=True)

    def _embed(self, texts: Sequence[str], *, is_query: bool) -> NDArray[np.float32]:
        items = [Item(text=text) for text in texts]
        results = self._client.encode(self._model, items, output_types=["dense"], is_query=is_query)
        if len(results) != len(items) or not all("dense" in result for result in results):
            msg = f"{self._model} gave no dense embedding for each of {len(items)} texts"
            raise InvalidResponseError(msg)
        return np.stack([np.asarray(result["dense"], np.float32) for result in results])


class DenseIndex:
    """Embeddings of a corpus, in a file that a run can continue to write after an interruption.

    Args:
        path: The file of vectors, float32, one row after the other; `path.json` says how many.
        store: The passages.
        embed: Turns passages into vectors.
        advance: Told how many more passages were embedded; of those in the file already too.
    """

    def __init__(
        self,
        path: Path,
        store: TextStore,
        embed: Embed,
        *,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._progress_path = path.with_name(f"{path.name}.json")
        num_done, dims = self._read_progress()
        advance(num_done)
        with path.open("r+b" if path.exists() else "w+b") as stream:
            stream.seek(num_done * dims * 4)
            stream.truncate()  # a batch that was written in part
            for batch in _batches(store.read(num_done), BATCH_SIZE):
                vectors = _embed_passages(embed, batch, dims)
                if num_done and vectors.shape[1] != dims:
                    msg = f"embeddings had {dims} dimensions, and now have {vectors.shape[1]}"
                    raise InvalidResponseError(msg)
                dims = vectors.shape[1]
                stream.write(vectors.tobytes())
                stream.flush()
                os.fsync(stream.fileno())
                num_done += len(batch)
                self._write_progress(num_done, dims)
                advance(len(batch))
        self._vectors: NDArray[np.float32] = np.memmap(
            path, np.float32, mode="r", shape=(num_done, dims)
        )

    def top_k(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
        """Return the numbers and scores of the best `k` passages for each query, best first.

        Args:
            queries: Vectors, [number of queries, dims].
            k: How many; equal scores keep the corpus's order.
        """
        return [
            found
            for start in range(0, len(queries), _QUERY_BATCH_SIZE)
            for found in self._search(queries[start : start + _QUERY_BATCH_SIZE], k)
        ]

    def _search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
        """Keep the best `k` of what was seen so far, block by block of the file."""
        numbers = [np.empty(0, np.int64) for _ in queries]
        scores = [np.empty(0, np.float32) for _ in queries]
        num_rows = max(1, _BLOCK_BYTES // (4 * self._vectors.shape[1]))
        for start in range(0, len(self._vectors), num_rows):
            block = np.ascontiguousarray(self._vectors[start : start + num_rows])
            products = queries @ block.T
            for row, found in enumerate(products):
                places, values = best(found, k)
                numbers[row] = np.concatenate([numbers[row], np.asarray(places, np.int64) + start])
                scores[row] = np.concatenate([scores[row], np.asarray(values, np.float32)])
                kept, _ = best(scores[row], k)
                numbers[row], scores[row] = numbers[row][kept], scores[row][kept]
        return [
            list(zip(found.tolist(), values.tolist(), strict=True))
            for found, values in zip(numbers, scores, strict=True)
        ]

    def _read_progress(self) -> tuple[int, int]:
        if not self._path.exists() or not self._progress_path.exists():
            return 0, 0
        try:
            progress = json.loads(self._progress_path.read_bytes())
            return int(progress["num_done"]), int(progress["dims"])
        except (OSError, ValueError, LookupError, TypeError) as exc:
            msg = f"{self._progress_path} cannot be read ({exc}); delete it to embed anew"
            raise DatasetError(msg) from exc

    def _write_progress(self, num_done: int, dims: int) -> None:
        staged = self._progress_path.with_name(f"{self._progress_path.name}.part")
        staged.write_text(json.dumps({"num_done": num_done, "dims": dims}), encoding="utf-8")
        staged.replace(self._progress_path)


def embed_queries(embed: Embed, queries: Sequence[str]) -> NDArray[np.float32]:
    """Embed queries, a batch at a time: [number of queries, dims]."""
    return np.concatenate(
        [_checked(embed(batch), batch) for batch in _batches(queries, BATCH_SIZE)]
    )


def _embed_passages(embed: Embed, batch: Sequence[str], dims: int) -> NDArray[np.float32]:
    """Embed passages; a blank one is not sent and has the vector zero."""
    filled = [i for i, text in enumerate(batch) if text.strip()]
    if not filled:
        return np.zeros((len(batch), max(dims, 1)), np.float32)
    sent = [batch[i] for i in filled]
    found = _checked(embed(sent), sent)
    vectors = np.zeros((len(batch), found.shape[1]), np.float32)
    vectors[filled] = found
    return vectors


def _checked(vectors: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    made = np.asarray(vectors, np.float32)
    if made.ndim != 2 or len(made) != len(texts) or not np.isfinite(made).all():  # noqa: PLR2004
        msg = (
            f"{len(texts)} texts were embedded, and what came back is not as many vectors of "
            f"finite numbers: its shape is {made.shape}"
        )
        raise InvalidResponseError(msg)
    return made


def _batches(texts: Sequence[str] | Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
