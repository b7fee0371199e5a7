"""`LocalClient`: the calls of an SIE client, answered in this process."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from sie_core.deadline import Deadline, check_timeout_seconds
from sie_core.errors import ClientClosedError, InferenceError, InvalidRequestError
from sie_core.local.device import choose
from sie_core.local.encoder import PairEncoder, to_score_space
from sie_core.local.openmp import limit_this_thread
from sie_core.local.registry import REGISTRY, LoadedModel, ModelKey
from sie_core.local.scheduler import Scheduler
from sie_core.local.token_cache import check_token_cache_bytes
from sie_core.local.tokenization import Pair
from sie_core.local.worker import Worker
from sie_core.models import catalog, sources
from sie_core.ranking import check_score_space, check_top_k, rank
from sie_core.settings import EngineSettings, SourceSettings
from sie_core.types import Item, Mode, ScoreEntry, ScoreResult, ScoreSpace, Usage

_logger = logging.getLogger(__name__)
_OPTION_NAMES = ("max_length", "score_space", "batch_size")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """One checked `score` call: its arguments, with nothing left to doubt."""

    model: str
    query_id: str | None
    query: str
    item_ids: list[str]
    texts: list[str]
    max_length: int | None
    score_space: ScoreSpace | None
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request as token ids. Equal texts share one pair: `pair_of` leads from item to pair."""

    pairs: list[Pair]
    pair_of: list[int]


class LocalClient:
    """Score with a model that runs in this process.

    Clients are cheap: a model is loaded at its first use, once per process, whatever number of
    clients use it. Safe to share between threads; can be copied and pickled. A pickle does not
    carry the token: the process that unpickles it reads `HF_TOKEN`.

    Args:
        device: `cuda`, `cuda:1`, `cpu` or `mps`, or a list of CUDA devices, which then share the
            work; None means CUDA where there is one, else CPU.
        mode: `exact` computes in float32; `fast` in float16 on CUDA, and in bfloat16 on a CPU that
            is faster in it; `auto` is fast where that can be had. `describe` tells what it chose.
        dtype: `float32`, `float16` or `bfloat16`, instead of what the mode means.
        num_threads: Cores used on the CPU; None means `SIE_NUM_THREADS`, else all that this process
            may use. The threads of torch's own operations elsewhere in the process stay as set.
        max_batch_tokens: Tokens per forward pass; None means the device's own.
        max_queued_tokens: How many tokens may wait for a model, those of a call of this client
            included, before that call is refused with QueueFullError; where nothing waits, a call
            of any size is taken. None means 16,777,216.
        token_cache_bytes: Bound on the token ids of documents that are kept for each model, so that
            the same documents need no tokenising again; 0 keeps none. All who use the model
            share them; who names a size sets it. None leaves it as it is, 16 MiB at first.
        timeout_seconds: Bound on one whole call, loading included; None waits.
        revision: Branch, tag or commit of models on the hub.
        token: Hub token for gated models.
        cache_dir: Folder for weights; None means `SIE_CACHE_DIR`, else the platform's.
        allow_pickle: Accept pickled weights, which can run code when they are loaded.

    Raises:
        InvalidRequestError: An argument is wrong, or the device is not there.
    """

    def __init__(
        self,
        *,
        device: str | Sequence[str] | None = None,
        mode: Mode = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        max_batch_tokens: int | None = None,
        max_queued_tokens: int | None = None,
        token_cache_bytes: int | None = None,
        timeout_seconds: float | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        allow_pickle: bool = False,
    ) -> None:
        check_timeout_seconds(timeout_seconds)
        self.timeout_seconds = timeout_seconds
        self._engine = EngineSettings(
            device=device if device is None or isinstance(device, str) else tuple(device),
            mode=mode,
            dtype=dtype,
            num_threads=num_threads,
            max_batch_tokens=max_batch_tokens,
            max_queued_tokens=max_queued_tokens,
            token_cache_bytes=token_cache_bytes,
        )
        self._sources = SourceSettings(
            cache_dir=None if cache_dir is None else Path(cache_dir),
            revision=revision,
            token=token,
            allow_pickle=allow_pickle,
        )
        self._settle()

    def score(
        self,
        model: str,
        query: Item,
        items: Sequence[Item],
        *,
        instruction: str | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> ScoreResult:
        """Score `items` against `query`.

        Args:
            model: Name or folder.
            query: `Item(text=…)`; its id, if any, comes back as `query_id`.
            items: `Item(id=…, text=…)`; those without an id come back as `item-N`.
            instruction: Put before the query, with a space between.
            options: `max_length` (tokens per pair), `score_space` (`raw` or `probability`),
                `batch_size` (pairs per forward pass).
            gpu: Taken so that the call is the same as a remote client's; without meaning here.
            timeout_seconds: Instead of the client's, for this call.

        Returns:
            Scores, best first, with the tokens used and the number of items truncated.

        Raises:
            InvalidRequestError: An argument is wrong.
            ModelError: The model could not be found, is unsupported, or could not be loaded.
            QueueFullError: Too much work waits for the model.
            DeadlineExceededError: Time ran out; what is not computed yet is dropped.
            SIEError: The model failed.
        """
        del gpu
        request = check_request(model, query, items, instruction, options)
        deadline = self.deadline(timeout_seconds)
        loaded = _wait(self.load(model), deadline, f"loading {model}")
        encoded = encode(request, loaded.encoder)
        scoring = self.submit(loaded, encoded, request)
        try:
            logits = _wait(scoring, deadline, f"scoring {len(items)} items with {model}")
        finally:
            scoring.cancel()  # without effect on an answer; stops the work for one who has left
        return to_result(request, encoded, logits, loaded.encoder)

    def warm_up(self, model: str, *, timeout_seconds: float | None = None) -> None:
        """Fetch and load `model` now, and run it once in every worker: the first call need not."""
        deadline = self.deadline(timeout_seconds)
        loaded = _wait(self.load(model), deadline, f"loading {model}")
        for running in warm_up_workers(loaded):
            _wait(running, deadline, f"warming up {model}")

    def describe(self) -> str:
        """Say in one line how this client's models run, and why so: mode, format, workers."""
        return self._execution.describe()

    def loaded(self) -> dict[str, str]:
        """Return how each model runs that this client has loaded, by name."""
        models = REGISTRY.loaded(holder=self)
        return {key.model: model.description for key, model in models.items()}

    def release(self, model: str | None = None) -> int:
        """Unload a model from this process, whoever uses it; see `sie_core.local.release`."""
        return REGISTRY.release(None if model is None else model_key_name(model))

    def close(self) -> None:
        """Unload the models that no other client holds. May be called twice."""
        self._is_closed = True
        REGISTRY.drop(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Keep what was asked for, without the token; another process chooses its device anew."""
        return {
            "timeout_seconds": self.timeout_seconds,
            "_engine": self._engine,
            "_sources": replace(self._sources, token=None),
        }

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        """Make another with the same settings, the token included: it stays in this process."""
        twin = object.__new__(type(self))
        twin.__setstate__(self.__getstate__() | {"_sources": self._sources})
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._settle()

    def __repr__(self) -> str:
        execution = self._execution
        devices = ",".join(map(str, execution.devices))
        dtype = str(execution.dtype).removeprefix("torch.")
        return (
            f"LocalClient(device={devices!r}, mode={execution.mode!r}, dtype={dtype!r}, "
            f"num_workers={execution.num_workers})"
        )

    def _settle(self) -> None:
        if self._engine.token_cache_bytes is not None:
            check_token_cache_bytes(self._engine.token_cache_bytes)
        self._execution = choose(self._engine)
        self._is_closed = False

    def deadline(self, timeout_seconds: float | None) -> Deadline:
        """Start the clock of one call."""
        return Deadline.after(self.timeout_seconds if timeout_seconds is None else timeout_seconds)

    def load(self, model: str) -> Future[LoadedModel]:
        """Return the shared future of the loaded model, held until `close`."""
        if self._is_closed:
            msg = "this client is closed; make a new one"
            raise ClientClosedError(msg)
        key = ModelKey(
            model=model_key_name(model),
            revision=self._sources.revision,
            devices=self._execution.devices,
            dtype=self._execution.dtype,
            num_workers=self._execution.num_workers,
        )
        loading = REGISTRY.acquire(key, lambda: self._make(model), holder=self)
        if self._engine.token_cache_bytes is not None:
            loading.add_done_callback(self._resize_token_cache)
        return loading

    def submit(
        self, loaded: LoadedModel, encoded: EncodedRequest, request: ScoreRequest
    ) -> Future[list[float]]:
        """Queue one request's pairs; whoever does not want the scores cancels the future.

        Raises:
            QueueFullError: Too much work waits for the model.
        """
        return loaded.scheduler.submit(
            encoded.pairs,
            max_tokens=self._execution.max_batch_tokens,
            max_pairs=request.batch_size,
            max_queued_tokens=self._execution.max_queued_tokens,
        )

    def _resize_token_cache(self, loading: Future[LoadedModel]) -> None:
        max_bytes = self._engine.token_cache_bytes
        if max_bytes is not None and loading.exception() is None:
            loading.result().encoder.tokenizer.cache.resize(max_bytes)

    def _make(self, model: str) -> LoadedModel:
        execution, files = self._execution, sources.resolve(model, self._sources)
        encoders = [
            PairEncoder.load(
                files,
                device=device,
                dtype=execution.dtype,
                allow_pickle=self._sources.allow_pickle,
            )
            for device in execution.devices
        ]
        open_workers = [encoder.open_worker for encoder in encoders]
        if execution.devices[0].type == "cpu":
            open_workers = [_on_one_thread(open_workers[0])] * execution.num_workers
        description = f"{execution.describe()}, computed by {encoders[0].computed_by}"
        _logger.info("%s runs %s", model, description)
        scheduler = Scheduler(open_workers, name=model, min_batch_tokens=execution.min_batch_tokens)
        return LoadedModel(encoders[0], scheduler, description)


def _on_one_thread(open_worker: Callable[[], Worker]) -> Callable[[], Worker]:
    """Let a worker compute in its own thread alone; the application's threads are not touched."""

    def limit_and_open() -> Worker:
        limit_this_thread()
        return open_worker()

    return limit_and_open


def warm_up_workers(loaded: LoadedModel) -> list[Future[list[float]]]:
    """Let every worker of a model run once."""
    pairs = loaded.encoder.tokenizer.encode_pairs("warm up", ["warm up"], loaded.encoder.max_length)
    return loaded.scheduler.warm_up(pairs)


def model_key_name(model: str) -> str:
    """Return one name per model: a folder's full path, or the catalogue's spelling."""
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.resolve())
    spec = catalog.find(model)
    return model if spec is None else spec.name


def check_request(
    model: str,
    query: Item,
    items: Sequence[Item],
    instruction: str | None,
    options: Mapping[str, Any] | None,
) -> ScoreRequest:
    """Check a call's arguments and take them apart.

    Raises:
        InvalidRequestError: One is wrong; the message names it.
    """
    if not isinstance(model, str) or not model.strip():
        msg = f"model must be a name or a folder, but got {model!r}"
        raise InvalidRequestError(msg)
    if isinstance(items, Mapping | str) or not isinstance(items, Sequence):
        msg = f"items must be a list of Item(text=…), but got {type(items).__name__}"
        raise InvalidRequestError(msg)
    text = _check_item(query, "query")
    if instruction is not None and not isinstance(instruction, str):
        msg = f"instruction must be a string or None, but got {instruction!r}"
        raise InvalidRequestError(msg)
    chosen = _check_options(options or {})
    return ScoreRequest(
        model=model,
        query_id=query.get("id"),
        query=f"{instruction} {text}" if instruction else text,
        texts=[_check_item(item, f"items[{i}]") for i, item in enumerate(items)],
        item_ids=[item.get("id") or f"item-{i}" for i, item in enumerate(items)],
        **chosen,
    )


def _check_item(item: Item, name: str) -> str:
    if not isinstance(item, Mapping):
        msg = f"{name} must be an Item(text=…), but got {type(item).__name__}: {item!r:.80}"
        raise InvalidRequestError(msg)
    text, item_id = item.get("text"), item.get("id")
    if not isinstance(text, str):
        msg = f"{name} must have a text that is a string, but got {text!r:.80}"
        raise InvalidRequestError(msg)
    if item_id is not None and not isinstance(item_id, str):
        msg = f"the id of {name} must be a string, but got {item_id!r:.80}"
        raise InvalidRequestError(msg)
    return text


def _check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(options) - set(_OPTION_NAMES))
    if unknown:
        msg = (
            f"unknown option {unknown[0]!r}; a model in this process knows "
            f"{', '.join(_OPTION_NAMES)}"
        )
        raise InvalidRequestError(msg)
    check_score_space(options.get("score_space"))
    batch_size = options.get("batch_size")
    if batch_size is not None:
        check_top_k(batch_size, name="batch_size")
    return {name: options.get(name) for name in _OPTION_NAMES}


def encode(request: ScoreRequest, encoder: PairEncoder) -> EncodedRequest:
    """Tokenise the query once and every different text once, and put the pairs together."""
    tokenizer = encoder.tokenizer
    if request.max_length is not None:
        tokenizer.check_max_length(request.max_length, encoder.max_length)
    position_of = {text: i for i, text in enumerate(dict.fromkeys(request.texts))}
    max_length = request.max_length or encoder.max_length
    pairs = tokenizer.encode_pairs(request.query, list(position_of), max_length)
    return EncodedRequest(pairs, [position_of[text] for text in request.texts])


def to_result(
    request: ScoreRequest, encoded: EncodedRequest, logits: list[float], encoder: PairEncoder
) -> ScoreResult:
    """Give each item its score, in the score space asked for, best first.

    Raises:
        InferenceError: A score is not a finite number.
    """
    num_truncated = sum(encoded.pairs[i].is_truncated for i in encoded.pair_of)
    bad = sum(not math.isfinite(logit) for logit in logits)
    if bad:
        msg = (
            f"{request.model} gave no finite score for {bad} of {len(logits)} texts; its numbers "
            "overflow in this format: use dtype='float32' or 'bfloat16'"
        )
        raise InferenceError(msg)
    if num_truncated:
        warn_truncated(request, num_truncated, encoder)
    space = request.score_space or encoder.score_space
    scores = to_score_space(logits, space)
    entries = rank([scores[i] for i in encoded.pair_of])
    return ScoreResult(
        model=request.model,
        query_id=request.query_id,
        scores=[
            ScoreEntry(
                item_id=request.item_ids[entry.index],
                score=scores[encoded.pair_of[entry.index]],
                rank=entry.rank,
            )
            for entry in entries
        ],
        usage=Usage(
            input_tokens=sum(len(encoded.pairs[i].token_ids) for i in encoded.pair_of),
            truncated_items=num_truncated,
        ),
        score_space=space,
    )


_warned_models: set[str] = set()


def warn_truncated(request: ScoreRequest, num_truncated: int, encoder: PairEncoder) -> None:
    """Say once per model that texts were cut; every result counts them."""
    if request.model in _warned_models:
        return
    _warned_models.add(request.model)
    _logger.warning(
        "%d of %d texts were longer than the %d tokens that %s reads together with the query, and "
        "lost their end; every result counts such texts in usage['truncated_items']",
        num_truncated,
        len(request.texts),
        request.max_length or encoder.max_length,
        request.model,
    )


def _wait(future: Future[_T], deadline: Deadline, doing: str) -> _T:
    try:
        return future.result(deadline.remaining_seconds(doing))
    except FutureTimeoutError as exc:
        if future.done():  # the work itself timed out, not the waiting for it
            raise
        raise deadline.exceeded(doing) from exc
