"""`LocalClient`: the calls of an SIE client, answered in this process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from sie_core.deadline import Deadline, check_timeout_seconds
from sie_core.errors import (
    ClientClosedError,
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
)
from sie_core.local import families
from sie_core.local.adapters import AdapterStore
from sie_core.local.device import Execution, check_at_least_1, choose
from sie_core.local.lora import Adapter
from sie_core.local.memory import estimate_bytes, identify, stamp_weights
from sie_core.local.model import BatchRunner, Job, TakesAdapters
from sie_core.local.openmp import limit_this_thread
from sie_core.local.passages import Scored
from sie_core.local.registry import REGISTRY, Limits, LoadedModel, ModelKey
from sie_core.local.requests import (
    EncodeRequest,
    ScoreRequest,
    check_encode_request,
    check_score_request,
)
from sie_core.local.results import put_timing, to_encode_results, to_score_result
from sie_core.local.scheduler import Running, Scheduler, SchedulerStats
from sie_core.local.stopwatch import Stopwatch
from sie_core.local.token_cache import check_token_cache_bytes
from sie_core.models import catalog, sources
from sie_core.settings import EngineSettings, SourceSettings
from sie_core.steps import Outcome, Step
from sie_core.types import EncodeResult, Item, Mode, ScoreResult

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

LOCAL_CONCURRENT_STEPS = 64
"""Queries that a coroutine queues at a time: enough for full batches, whatever their size."""


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
        max_loras: LoRA adapters kept for each model, the least recently used leaving first. All
            who use the model share them; who names a number sets it. None leaves it as it is, 8
            at first.
        max_loaded_models: Models that this process keeps loaded; for another one the least recently
            used leaves. Of all open clients' bounds the smallest holds. None for no bound.
        memory_budget_bytes: The same for the weights of all loaded models together. A model that
            alone takes more is refused with ResourceExhaustedError.
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
        max_loras: int | None = None,
        max_loaded_models: int | None = None,
        memory_budget_bytes: int | None = None,
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
            max_loras=max_loras,
            max_loaded_models=max_loaded_models,
            memory_budget_bytes=memory_budget_bytes,
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
            items: `Item(id=…, text=…)`; those without an id come back as `item-N`. Late-interaction
                models also take `Item(multivector=…)`, as the query too: what `encode` gave.
            instruction: For models whose prompt has a place for one: stands there, instead of the
                model's own. For others: put before the query, with a space between.
            options: `max_length` (tokens per pair), `max_document_length` (tokens of an item's text
                by itself), `score_space` (`raw` or `probability`), `batch_size` (pairs per forward
                pass), `lora` (name or folder of an adapter).
            gpu: Taken so that the call is the same as a remote client's; without meaning here.
            timeout_seconds: Instead of the client's, for this call.

        Returns:
            Scores, best first, with the tokens used, the number of items truncated, and where the
            time went.

        Raises:
            InvalidRequestError: An argument is wrong.
            ModelError: The model could not be found, is unsupported, or could not be loaded.
            QueueFullError: Too much work waits for the model.
            DeadlineExceededError: Time ran out; what is not computed yet is dropped.
            SIEError: The model failed.
        """
        del gpu
        watch = Stopwatch()
        request = check_score_request(model, query, items, instruction, options)
        deadline = self.deadline(timeout_seconds)
        loaded = _wait(self.load(model), deadline, f"loading {model}")
        with loaded.calls:
            loading = self.load_adapter(loaded, request)
            if loading is not None:
                adapter = _wait(loading, deadline, f"loading the adapter {request.lora}")
                request = replace(request, adapter=adapter)
            with watch:
                job = loaded.model.score_job(request)
            running = self._run(loaded, job, request, deadline)
        result = to_score_result(request, job, running.result(), loaded.model)
        result["timing"] = watch.read(running)
        result["source"] = source_with(loaded, request.adapter)
        return result

    def score_many(self, steps: Sequence[Step]) -> list[Outcome]:
        """Score several queries, or with several models, at once.

        All are queued before the first is waited for, so that they share batches.

        Args:
            steps: What is asked, as the arguments of `score`.

        Returns:
            For each step what `score` returns, or the error that it raises.
        """
        with ExitStack() as calls:
            begun: list[_Begun | Exception] = []
            for step in steps:
                begun.append(self._begin(step, calls, begun))
            return [it if isinstance(it, Exception) else it.finish() for it in begun]

    @overload
    def encode(
        self,
        model: str,
        items: Item,
        *,
        output_types: Sequence[str] | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        is_query: bool | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> EncodeResult: ...

    @overload
    def encode(
        self,
        model: str,
        items: Sequence[Item],
        *,
        output_types: Sequence[str] | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        is_query: bool | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> list[EncodeResult]: ...

    def encode(
        self,
        model: str,
        items: Item | Sequence[Item],
        *,
        output_types: Sequence[str] | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        is_query: bool | None = None,
        options: Mapping[str, Any] | None = None,
        gpu: str | None = None,
        timeout_seconds: float | None = None,
    ) -> EncodeResult | list[EncodeResult]:
        """Turn items into embeddings.

        Args:
            model: Name or folder.
            items: One `Item(text=…)`, or a list of them.
            output_types: `dense`, `multivector`; None means the model's own.
            instruction: Put before each text, behind the model's own prompt, with a space between.
            output_dtype: `float32` or `float16`; None means float32.
            is_query: Whether the texts are queries, where the model tells them from documents.
            options: `max_length` (tokens per text), `batch_size` (texts per forward pass).
            gpu: As for `score`.
            timeout_seconds: Instead of the client's, for this call.

        Returns:
            For one item a map with `dense` ([dims]) and `multivector` ([num_tokens, token_dims])
            as numpy arrays, as far as asked for; for a list a list of them, in its order.

        Raises:
            InvalidRequestError: An argument is wrong.
            SIEError: As for `score`.
        """
        del gpu
        watch = Stopwatch()
        request = check_encode_request(
            model,
            items,
            is_query=is_query,
            output_types=output_types,
            output_dtype=output_dtype,
            instruction=instruction,
            options=options,
        )
        deadline = self.deadline(timeout_seconds)
        loaded = _wait(self.load(model), deadline, f"loading {model}")
        with loaded.calls:
            with watch:
                job = loaded.model.encode_job(request)
            running = self._run(loaded, job, request, deadline)
        results = to_encode_results(request, job, running.result(), loaded.model)
        put_timing(results, watch.read(running))
        return results[0] if request.is_single else results

    def warm_up(self, model: str, *, timeout_seconds: float | None = None) -> None:
        """Fetch and load `model` now, and run it once in every worker: the first call need not."""
        deadline = self.deadline(timeout_seconds)
        loaded = _wait(self.load(model), deadline, f"loading {model}")
        for running in loaded.warm_up():
            _wait(running, deadline, f"warming up {model}")

    def describe(self) -> str:
        """Say in one line how this client's models run, and why so: mode, format, workers."""
        return self._execution.describe()

    def loaded(self) -> dict[str, str]:
        """Return how each model runs that this client has loaded, by name."""
        models = REGISTRY.loaded(holder=self)
        return {key.model: model.description for key, model in models.items()}

    def loaded_model(self, model: str) -> LoadedModel | None:
        """Return a model as this client runs it, if it is in memory; it stays unused by that."""
        return REGISTRY.find(self._key(model))

    def swapped_for(self, name: str) -> str | None:
        """Return what `name` was swapped for, None if it was not."""
        return REGISTRY.source_of(model_key_name(name))

    def scheduler_stats(self, model: str) -> SchedulerStats | None:
        """Count what waits for a model and what it did since it was loaded; None if it is not.

        Whoever uses the model in this process is counted.
        """
        loaded = REGISTRY.loaded().get(self._key(model))
        return None if loaded is None else loaded.scheduler.stats()

    def release(self, model: str | None = None) -> int:
        """Unload a model from this process, whoever uses it; see `sie_core.local.release`."""
        return REGISTRY.release(None if model is None else model_key_name(model))

    def swap(self, name: str, new: str) -> int:
        """Let `name` mean the weights of `new` from now on, for everyone in this process.

        They are loaded and run once beside the old ones, which serve meanwhile. Calls under way
        finish on the old weights, the next ones use the new ones, and no call uses both; then the
        old memory is given back. Write new weights to a new folder: files that are mapped must not
        be written to (renaming new ones into their place is fine).

        Args:
            name: The name by which the model is and will be used.
            new: A model's name or folder.

        Returns:
            How many loaded models were replaced: one for each device and number format.

        Raises:
            SIEError: `new` could not be loaded, or did not run; the old weights serve on.
        """
        self._check_open()
        key = self._key(name)
        return REGISTRY.swap(key.model, new, also=(key, self._loader(name), self))

    def load_lora(self, model: str, lora: str, *, timeout_seconds: float | None = None) -> None:
        """Load an adapter onto a model now, so that the first call with it need not.

        Args:
            model: Name or folder; it is loaded too, if it is not yet.
            lora: Name or folder of the adapter.
            timeout_seconds: Instead of the client's, for this call.

        Raises:
            InvalidRequestError: The model takes no adapters.
            ModelError: The adapter could not be found, is unsupported, or does not fit the model.
        """
        request = check_score_request(model, Item(text=""), [], None, {"lora": lora})
        deadline = self.deadline(timeout_seconds)
        loaded = _wait(self.load(model), deadline, f"loading {model}")
        with loaded.calls:
            loading = self.load_adapter(loaded, request)
            if loading is not None:
                _wait(loading, deadline, f"loading the adapter {lora}")

    def source_of(self, model: str, lora: str | None = None) -> str | None:
        """Name the weights that a call would use now; None where they are not in memory yet.

        The name is another after a swap, or after a folder's files have changed and the model was
        loaded anew; of the same files, run in the same way, it is the same in every process.
        """
        loaded = REGISTRY.find(self._key(model))
        if loaded is None:
            return None
        if lora is None:
            return loaded.identity
        if not isinstance(loaded.model, TakesAdapters):
            return None
        adapter = loaded.model.adapters.find(adapter_key_name(lora))
        return None if adapter is None else source_with(loaded, adapter)

    def loras(self, model: str) -> dict[str, int]:
        """Return the adapters that are loaded onto a model, and the bytes of each."""
        return {
            name: num_bytes
            for store in self._adapter_stores(model)
            for name, num_bytes in store.loaded().items()
        }

    def unload_lora(self, model: str, lora: str | None = None) -> int:
        """Unload an adapter from a model, or all of them; calls under way finish with it.

        Returns:
            How many were unloaded.
        """
        name = None if lora is None else adapter_key_name(lora)
        return sum(store.unload(name) for store in self._adapter_stores(model))

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
        limits = Limits(
            max_loaded_models=_at_least_1(self._engine.max_loaded_models, "max_loaded_models"),
            memory_budget_bytes=_at_least_1(
                self._engine.memory_budget_bytes, "memory_budget_bytes"
            ),
        )
        _at_least_1(self._engine.max_loras, "max_loras")
        self._execution = choose(self._engine)
        self._is_closed = False
        if limits != Limits():
            REGISTRY.limit(self, limits)

    def deadline(self, timeout_seconds: float | None) -> Deadline:
        """Start the clock of one call."""
        return Deadline.after(self.timeout_seconds if timeout_seconds is None else timeout_seconds)

    def load(self, model: str) -> Future[LoadedModel]:
        """Return the shared future of the loaded model, held until `close`."""
        self._check_open()
        loader = self._loader(model)
        loading = REGISTRY.acquire(
            self._key(model), loader, holder=self, estimate=loader.estimate_bytes
        )
        if self._engine.token_cache_bytes is not None:
            loading.add_done_callback(self._resize_token_cache)
        return loading

    def load_adapter(self, loaded: LoadedModel, request: ScoreRequest) -> Future[Adapter] | None:
        """Return the shared future of the adapter that a request names; None if it names none.

        Raises:
            InvalidRequestError: The model takes no adapters.
        """
        if request.lora is None:
            return None
        if not isinstance(loaded.model, TakesAdapters):
            msg = (
                f"lora={request.lora!r} was asked for, but {request.model} takes no adapters; "
                "cross-encoders do"
            )
            raise InvalidRequestError(msg)
        store, lora = loaded.model.adapters, request.lora
        if self._engine.max_loras is not None:
            store.resize(self._engine.max_loras)
        settings = self._sources
        return store.acquire(
            adapter_key_name(lora), lambda: sources.resolve_adapter(lora, settings)
        )

    def submit(
        self, loaded: LoadedModel, job: Job[Any], request: ScoreRequest | EncodeRequest
    ) -> Running:
        """Queue one request's job; whoever does not want the outputs cancels the future.

        Raises:
            QueueFullError: Too much work waits for the model.
        """
        return loaded.scheduler.submit(
            job.sequences,
            max_tokens=self._execution.max_batch_tokens,
            max_sequences=request.batch_size,
            max_queued_tokens=self._execution.max_queued_tokens,
        )

    def _run(
        self,
        loaded: LoadedModel,
        job: Job[Any],
        request: ScoreRequest | EncodeRequest,
        deadline: Deadline,
    ) -> Running:
        """Run a job to its end."""
        running = self.submit(loaded, job, request)
        try:
            _wait(running, deadline, doing(request))
        finally:
            running.cancel()  # without effect on an answer; stops the work for one who has left
        return running

    def _begin(
        self, step: Step, calls: ExitStack, before: Sequence[_Begun | Exception]
    ) -> _Begun | Exception:
        """Queue one of several steps; where there is no room, those before it are waited for."""
        instruction, options = step.arguments.get("instruction"), step.arguments.get("options")
        watch = Stopwatch()
        try:
            request = check_score_request(step.model, step.query, step.items, instruction, options)
            deadline = self.deadline(step.timeout_seconds)
            loaded = _wait(self.load(step.model), deadline, f"loading {step.model}")
            calls.enter_context(loaded.calls)
            loading = self.load_adapter(loaded, request)
            if loading is not None:
                adapter = _wait(loading, deadline, f"loading the adapter {request.lora}")
                request = replace(request, adapter=adapter)
            with watch:
                job = loaded.model.score_job(request)
            running = self._submit_in_turn(loaded, job, request, before)
        except Exception as exc:  # noqa: BLE001  it stands in the place of the step's answer
            return exc
        calls.callback(running.cancel)
        return _Begun(loaded, job, request, deadline, running, watch)

    def _submit_in_turn(
        self,
        loaded: LoadedModel,
        job: Job[Scored],
        request: ScoreRequest,
        before: Sequence[_Begun | Exception],
    ) -> Running:
        for earlier in before:
            try:
                return self.submit(loaded, job, request)
            except QueueFullError:
                if not isinstance(earlier, Exception):
                    earlier.settle()
        return self.submit(loaded, job, request)

    def _resize_token_cache(self, loading: Future[LoadedModel]) -> None:
        max_bytes = self._engine.token_cache_bytes
        if max_bytes is not None and loading.exception() is None:
            loading.result().model.resize_token_cache(max_bytes)

    def _check_open(self) -> None:
        if self._is_closed:
            msg = "this client is closed; make a new one"
            raise ClientClosedError(msg)

    def _key(self, model: str) -> ModelKey:
        return ModelKey(
            model=model_key_name(model),
            revision=self._sources.revision,
            devices=self._execution.devices,
            dtype=self._execution.dtype,
            num_workers=self._execution.num_workers,
            is_dtype_named=self._engine.dtype == "float16",
            allow_pickle=self._sources.allow_pickle,
        )

    def _loader(self, model: str) -> _Loader:
        is_dtype_named = self._engine.dtype is not None
        return _Loader(model, self._execution, self._sources, is_dtype_named)

    def _adapter_stores(self, model: str) -> list[AdapterStore]:
        """Return where the adapters of this client's loaded model are; of none if it is not."""
        loaded = self.loaded_model(model)
        if loaded is None or not isinstance(loaded.model, TakesAdapters):
            return []
        return [loaded.model.adapters]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A call whose work is queued."""

    loaded: LoadedModel
    job: Job[Scored]
    request: ScoreRequest
    deadline: Deadline
    running: Running
    watch: Stopwatch

    def settle(self) -> None:
        """Wait until its work is done, or its time is up."""
        with contextlib.suppress(DeadlineExceededError):
            futures.wait([self.running], self.deadline.remaining_seconds(doing(self.request)))

    def finish(self) -> ScoreResult | Exception:
        """Wait for its scores."""
        try:
            # What was ready in time counts, though those before it were waited for beyond that.
            if not self.running.done():
                _wait(self.running, self.deadline, doing(self.request))
            outputs = self.running.result()
            result = to_score_result(self.request, self.job, outputs, self.loaded.model)
        except Exception as exc:  # noqa: BLE001  it stands in the place of the step's answer
            return exc
        finally:
            self.running.cancel()  # without effect on an answer
        result["source"] = source_with(self.loaded, self.request.adapter)
        result["timing"] = self.watch.read(self.running)
        return result


@dataclass(frozen=True, slots=True)
class _Loader:
    """Loads a model by its name, or other weights in its place; holds no client."""

    model: str
    execution: Execution
    settings: SourceSettings
    is_dtype_named: bool

    def __call__(self, source: str | None = None) -> LoadedModel:
        """See `registry.Load`."""
        execution, files = self.execution, self._resolve(source)
        if not self.is_dtype_named:
            execution = families.suit(execution, files)
        stamps = stamp_weights(files.folder)  # before reading: what is changed later shows
        identity = identify(files.folder)
        models = [
            families.load(
                files,
                device=device,
                dtype=execution.dtype,
                allow_pickle=self.settings.allow_pickle,
            )
            for device in execution.devices
        ]
        open_workers = [loaded.open_worker for loaded in models]
        if execution.devices[0].type == "cpu":
            open_workers = [_on_one_thread(open_workers[0])] * execution.num_workers
        description = f"{execution.describe()}, computed by {models[0].computed_by}"
        _logger.info("%s runs %s", source or self.model, description)
        scheduler = Scheduler(
            open_workers, name=self.model, min_batch_tokens=execution.min_batch_tokens
        )
        return LoadedModel(
            models[0],
            scheduler,
            description,
            copies=tuple(models[1:]),
            estimated_bytes=self._estimate_bytes(files),
            stamps=stamps,
            identity=f"{identity} {execution.dtype} {models[0].computed_by}",
        )

    def estimate_bytes(self, source: str | None = None) -> int:
        """Tell from the files what the model will hold, on all devices together."""
        return self._estimate_bytes(self._resolve(source))

    def _estimate_bytes(self, files: sources.ModelFiles) -> int:
        return len(self.execution.devices) * estimate_bytes(files.folder, self.execution.dtype)

    def _resolve(self, source: str | None) -> sources.ModelFiles:
        if source is None:
            return sources.resolve(self.model, self.settings)
        return sources.resolve(source, replace(self.settings, revision=None))


def _at_least_1(number: int | None, name: str) -> int | None:
    return None if number is None else check_at_least_1(number, name)


def _on_one_thread(open_worker: Callable[[], BatchRunner]) -> Callable[[], BatchRunner]:
    """Let a worker compute in its own thread alone; the application's threads are not touched."""

    def limit_and_open() -> BatchRunner:
        limit_this_thread()
        return open_worker()

    return limit_and_open


def model_key_name(model: str) -> str:
    """Return one name per model: a folder's full path, or the catalogue's spelling."""
    path = os.path.expanduser(model)  # noqa: PTH111  every call comes by: Path takes 4 times as long
    if os.path.isdir(path):  # noqa: PTH112
        return os.path.realpath(path)
    spec = catalog.find(model)
    return model if spec is None else spec.name


def adapter_key_name(lora: str) -> str:
    """Return one name per adapter: a folder's full path, or its name on the hub."""
    path = Path(lora).expanduser()
    return str(path.resolve()) if path.is_dir() else lora.strip()


def source_with(loaded: LoadedModel, adapter: Adapter | None) -> str:
    """Name a model's weights, and an adapter's with them."""
    return loaded.identity if adapter is None else f"{loaded.identity} {adapter.identity}"


def _wait(future: Future[_T], deadline: Deadline, what: str) -> _T:
    try:
        return future.result(deadline.remaining_seconds(what))
    except FutureTimeoutError as exc:
        if future.done():  # the work itself timed out, not the waiting for it
            raise
        raise deadline.exceeded(what) from exc


def doing(request: ScoreRequest | EncodeRequest) -> str:
    """Say what a call is about, for an error."""
    verb = "scoring" if isinstance(request, ScoreRequest) else "encoding"
    return f"{verb} {len(request.items)} items with {request.model}"
