"""`Embedder`: the one object that all the frameworks' embedding components hold.

It turns texts into items, asks a client to encode them, and checks what comes back. What is pure
stands in `_prepare` and `_to_vectors`; `embed` and `aembed` differ only in how they call. Whose
client that is, and its life, is in `ClientHolder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sie_core.client_holder import ClientHolder, check_text
from sie_core.deadline import Deadline
from sie_core.errors import InvalidRequestError, InvalidResponseError, UnsupportedModelError
from sie_core.settings import DEFAULT_EMBEDDING_MODEL, EMBEDDING_STEP_TEXTS
from sie_core.telemetry.embedding_span import EmbeddingSpan
from sie_core.types import AsyncEncodingClient, EncodingClient, Item, Mode, encodable

Progress = Callable[[int], object]
"""Told, after each step of a large call, how many texts that step encoded."""

_PACKED = ("binary", "ubinary")
"""Formats with eight dimensions to the byte, which are no vectors of floats."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One checked call: the steps in which it is made, and what goes with each."""

    steps: list[list[Item]]
    arguments: dict[str, Any]
    deadline: Deadline | None

    def __iter__(self) -> Iterator[tuple[list[Item], dict[str, Any]]]:
        """Give each step's items and arguments; the time that is left shrinks."""
        for items in self.steps:
            left = {}
            if self.deadline is not None:
                left["timeout_seconds"] = self.deadline.remaining_seconds("encoding texts")
            yield items, self.arguments | left


class Embedder(ClientHolder):
    """Turn texts into dense vectors, for the first stage of retrieval.

    With no `base_url` (and no `SIE_BASE_URL`) the model runs in this process and is shared with
    everything else here that uses the same one. Objects are safe to share between threads and
    event loops, can be copied and pickled, and load nothing before the first call. After `close()`
    the next call opens everything again. A pickle carries neither `api_key` nor `token`: the
    process that unpickles it reads `SIE_API_KEY` and `HF_TOKEN`.

    Args:
        model: Model name or folder.
        base_url: Address of an SIE server; None means `SIE_BASE_URL`, else in-process.
        api_key: Sent to that server only; None means `SIE_API_KEY`.
        client: A client to use instead, such as `LocalClient`; it stays the caller's to close.
        async_client: The same for `aembed`; without one, a given `client` runs in a thread.
        instruction: Sent with queries, for models trained with instructions; what a model's own
            files say of queries and documents needs none.
        output_dtype: The format in which vectors travel, such as `float16`; None means the
            model's own. Those that come back are Python floats in any case.
        options: Passed on to the client's `encode`, such as `{"profile": "…"}`.
        gpu: Machine profile on a remote cluster, such as `l4`; without meaning in-process.
        wait_for_capacity: Remote: wait while the cluster starts a machine.
        timeout_seconds: Bound on one whole call, loading and retries included; None means 180 on
            a server, and no bound in-process.
        device: In-process: `cuda`, `cuda:1`, `cpu`, `mps`, or a list of CUDA devices that share
            the work; None means CUDA if there, else CPU.
        mode: In-process: `exact` computes in float32, `fast` in half precision where that is
            faster; `auto` is fast where that can be had.
        dtype: In-process: `float32`, `float16`, `bfloat16`, instead of what the mode means.
        num_threads: In-process: cores used on the CPU; None means `SIE_NUM_THREADS`, else all that
            this process may use.
        max_length: Tokens per text; None means the model's own maximum.
        batch_size: In-process: texts per forward pass; None lets the token budget alone decide.
        revision: In-process: branch, tag or commit of the model on the hub.
        token: In-process: hub token for gated models.
        cache_dir: In-process: folder for weights; None means `SIE_CACHE_DIR`, else the platform's.
        trace_content: Whether texts are written on OpenTelemetry's spans, if the program traces;
            None means `SIE_TRACE_CONTENT`, else no.

    Raises:
        InvalidRequestError: An argument is wrong, or two exclude each other.
    """

    _client_method = "encode"
    _async_method = "aembed"

    def __init__(
        self,
        model: str = DEFAULT_EMBEDDING_MODEL,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: EncodingClient | None = None,
        async_client: AsyncEncodingClient | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool = False,
        timeout_seconds: float | None = None,
        device: str | Sequence[str] | None = None,
        mode: Mode = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        trace_content: bool | None = None,
    ) -> None:
        check_text(output_dtype=output_dtype)
        if output_dtype in _PACKED:
            msg = f"output_dtype={output_dtype!r} packs vectors into bits: take float32 or float16"
            raise InvalidRequestError(msg)
        super().__init__(
            model,
            base_url=base_url,
            api_key=api_key,
            client=client,
            async_client=async_client,
            instruction=instruction,
            options=options,
            gpu=gpu,
            wait_for_capacity=wait_for_capacity,
            timeout_seconds=timeout_seconds,
            device=device,
            mode=mode,
            dtype=dtype,
            num_threads=num_threads,
            max_length=max_length,
            batch_size=batch_size,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
        )
        self.output_dtype = output_dtype
        self.trace_content = trace_content
        if self.base_url is not None:
            self._open(is_async=False)  # connects to nothing, but refuses a wrong address now

    def embed(
        self, texts: Sequence[str], *, is_query: bool = False, on_progress: Progress | None = None
    ) -> list[list[float]]:
        """Turn each of `texts` into a vector.

        Args:
            texts: In any number and of any length; what is too long for the model loses its end.
            is_query: Whether the texts are queries, which many models tell from documents.
            on_progress: Called with the number of texts done since the last time.

        Returns:
            One vector per text, in the order of `texts`.

        Raises:
            InvalidRequestError: An argument is wrong.
            UnsupportedModelError: The model gives no dense vectors.
            SIEError: The model could not be had, loaded or run, or time ran out.
        """
        call = self._prepare(texts, is_query=is_query, has_steps=on_progress is not None)
        vectors: list[list[float]] = []
        with self._span(texts, call):
            for items, arguments in call:
                reply = self._open(is_async=False).encode(self.model, items, **arguments)
                vectors += self._to_vectors(reply, len(items))
                if on_progress is not None:
                    on_progress(len(items))
            return _checked_dimensions(vectors)

    async def aembed(
        self, texts: Sequence[str], *, is_query: bool = False, on_progress: Progress | None = None
    ) -> list[list[float]]:
        """Do what `embed` does, without blocking the event loop."""
        call = self._prepare(texts, is_query=is_query, has_steps=on_progress is not None)
        vectors: list[list[float]] = []
        with self._span(texts, call):
            for items, arguments in call:
                reply = await self._open(is_async=True).encode(self.model, items, **arguments)
                vectors += self._to_vectors(reply, len(items))
                if on_progress is not None:
                    on_progress(len(items))
            return _checked_dimensions(vectors)

    def _span(self, texts: Sequence[str], call: _Call) -> EmbeddingSpan:
        return EmbeddingSpan(
            self.model,
            call.arguments,
            lambda: texts,
            num_texts=len(texts),
            trace_content=self.trace_content,
        )

    def _prepare(self, texts: Sequence[str], *, is_query: bool, has_steps: bool) -> _Call:
        """Check one call's arguments, and cut it into steps if its progress is to be told."""
        _check_texts(texts)
        items = [Item(text=encodable(text)) for text in texts]
        arguments = self._arguments(self.instruction if is_query else None)
        arguments |= {"output_types": ["dense"], "is_query": is_query}
        if self.output_dtype is not None:
            arguments["output_dtype"] = self.output_dtype
        if len(items) <= EMBEDDING_STEP_TEXTS or not has_steps:
            return _Call([items] if items else [], arguments, None)
        steps = range(0, len(items), EMBEDDING_STEP_TEXTS)
        return _Call(
            [items[start : start + EMBEDDING_STEP_TEXTS] for start in steps],
            arguments,
            self._deadline(),
        )

    def _deadline(self) -> Deadline | None:
        """Return what bounds the steps of one call together; a client that was given has its own.

        One request is bounded by the client itself.
        """
        seconds = self._whole_timeout_seconds
        return None if seconds is None else Deadline.after(seconds)

    def _to_vectors(self, reply: object, count: int) -> list[list[float]]:
        """Take the dense vectors out of a reply, and trust none that is not one of numbers."""
        if not isinstance(reply, Sequence) or len(reply) != count:
            got = f"{len(reply)} results" if isinstance(reply, Sequence) else type(reply).__name__
            msg = f"the backend gave {got} for {count} texts"
            raise InvalidResponseError(msg)
        try:
            vectors = np.array([self._dense(result) for result in reply], np.float64)
        except (TypeError, ValueError) as exc:
            msg = f"the dense vectors from {self.model} are not all numbers of one length: {exc}"
            raise InvalidResponseError(msg) from exc
        if vectors.ndim != 2 or not vectors.shape[1]:  # noqa: PLR2004 -- texts by dimensions
            msg = f"the dense vectors from {self.model} have the shape {vectors.shape[1:]}"
            raise InvalidResponseError(msg)
        if not np.isfinite(vectors).all():
            bad = int((~np.isfinite(vectors)).any(axis=1).sum())
            msg = f"{self.model} gave numbers that are not finite for {bad} of {count} texts"
            raise InvalidResponseError(msg)
        rows: list[list[float]] = vectors.tolist()
        return rows

    def _dense(self, result: object) -> Any:
        dense = result.get("dense") if isinstance(result, Mapping) else None
        if dense is None:
            kinds = sorted(set(result) - {"id"}) if isinstance(result, Mapping) else []
            msg = (
                f"{self.model} gives no dense vectors, only {', '.join(kinds) or 'nothing'}; "
                f"choose a dense encoder, such as {DEFAULT_EMBEDDING_MODEL}"
            )
            raise UnsupportedModelError(msg)
        return dense


def _checked_dimensions(vectors: list[list[float]]) -> list[list[float]]:
    """Return the vectors if those of all steps have the same length."""
    lengths = {len(vector) for vector in vectors}
    if len(lengths) > 1:
        msg = f"the vectors of one call must have one length, but have {sorted(lengths)}"
        raise InvalidResponseError(msg)
    return vectors


def _check_texts(texts: object) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        msg = f"texts must be a list of strings, but got {type(texts).__name__}"
        raise InvalidRequestError(msg)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            msg = f"texts[{index}] must be a string, but got {type(text).__name__}"
            raise InvalidRequestError(msg)
