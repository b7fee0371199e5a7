"""Every rerank call is counted, traced and told of, whichever way it is made and ends."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sie_core import Embedder, Item, LocalClient, Reranker
from sie_core.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ServerError,
    SIEConnectionError,
)
from sie_core.fallback import Backend
from sie_core.telemetry import RerankEvent, use_providers
from sie_core.telemetry.otel import MAX_TRACED_DOCUMENTS

QUERY = "secret berlin question"
DOCUMENTS = ["secret museum", "berlin has people", "", "a river"]
PATIENCE_SECONDS = 20


class Words:
    """A client that scores by common words, and says what a server says."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def score(self, model: str, query: Item, items: Sequence[Item], **_: Any) -> Mapping[str, Any]:
        if self.error is not None:
            raise self.error
        words = set(query["text"].split())
        return {
            "model": model,
            "query_id": None,
            "scores": [
                {"item_id": item["id"], "score": float(len(words & set(item["text"].split())))}
                for item in items
            ],
            "usage": {"input_tokens": 11, "truncated_items": 1},
            "timing": {"total_ms": 4.0, "queue_ms": 1.5},
        }


class Held(Words):
    """The same, which answers when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:
        self.has_begun.set()
        assert self.may_end.wait(PATIENCE_SECONDS)
        return super().score(*positional, **named)


async def rerank(reranker: Reranker, way: str, **named: Any) -> Any:
    """Call in one of two ways."""
    if way == "sync":
        return await asyncio.to_thread(reranker.rerank, QUERY, DOCUMENTS, **named)
    return await reranker.arerank(QUERY, DOCUMENTS, **named)


BOTH_WAYS = pytest.mark.parametrize("way", ["sync", "async"])


# --- spans ---------------------------------------------------------------------------------------


def test_a_span_counts_what_became_of_the_documents(telemetry: Any) -> None:
    """Given, left, scored, scored from the cache, and left out because the text stood before."""
    reranker = Reranker("m", client=Words(), drop_duplicates=True)
    reranker.rerank("a river", ["one", "two words", None, "one", "one"], top_k=2)
    said = telemetry.span("RERANKER").attributes
    names = ("documents", "ranked", "scored", "cached", "duplicates")
    assert [said[f"sie.num_{name}"] for name in names] == [5, 2, 2, 0, 2]


@BOTH_WAYS
async def test_a_call_is_a_reranker_span_without_contents(way: str, telemetry: Any) -> None:
    """OpenInference's names; places and scores of what came out; no query, no text."""
    ranking = await rerank(Reranker("m", client=Words()), way, top_k=3)
    span = telemetry.span("RERANKER")
    assert span.name == "rerank m"
    assert span.status.is_ok
    said = dict(span.attributes)
    assert said["reranker.model_name"] == "m"
    assert said["reranker.top_k"] == 3
    assert said["sie.num_documents"] == 4
    assert said["sie.status"] == "complete"
    assert said["sie.served_by"] == "Words"
    assert said["sie.num_input_tokens"] == 11
    assert said["sie.num_truncated"] == 1
    assert said["sie.timing.queue_ms"] == 1.5
    for place, entry in enumerate(ranking):
        prefix = f"reranker.output_documents.{place}.document"
        assert said[f"{prefix}.id"] == str(entry.index)
        assert said.get(f"{prefix}.score") == entry.score
    assert "secret" not in span.to_json()


@BOTH_WAYS
@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_contents_stand_on_spans_where_someone_says_so(
    way: str, how: str, telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query, documents as given and as ranked: by `trace_content`, or SIE_TRACE_CONTENT=1."""
    if how == "environment":
        monkeypatch.setenv("SIE_TRACE_CONTENT", "1")
    choice = True if how == "argument" else None
    reranker = Reranker("m", client=Words(), trace_content=choice)
    await rerank(reranker, way)
    said = telemetry.span("RERANKER").attributes
    assert said["reranker.query"] == QUERY
    for place, text in enumerate(DOCUMENTS):
        assert said[f"reranker.input_documents.{place}.document.content"] == text
    assert said["reranker.output_documents.0.document.content"] == DOCUMENTS[0]
    assert "reranker.top_k" not in said


def test_an_argument_forbids_what_the_environment_allows(
    telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trace_content=False` wins."""
    monkeypatch.setenv("SIE_TRACE_CONTENT", "1")
    Reranker("m", client=Words(), trace_content=False).rerank(QUERY, DOCUMENTS)
    assert "secret" not in telemetry.span("RERANKER").to_json()


def test_large_calls_write_as_much_on_a_span_as_it_holds(telemetry: Any) -> None:
    """Of OpenTelemetry's 128 attributes none is lost to the documents of a call."""
    documents = [f"text {i}" for i in range(300)]
    Reranker("m", client=Words(), trace_content=True).rerank("text", documents)
    said = telemetry.span("RERANKER").attributes
    assert len(said) < 128
    assert said["sie.num_documents"] == 300
    assert f"reranker.output_documents.{MAX_TRACED_DOCUMENTS - 1}.document.id" in said
    assert f"reranker.output_documents.{MAX_TRACED_DOCUMENTS}.document.id" not in said


@BOTH_WAYS
async def test_a_failure_is_named_on_the_span_and_quoted_only_with_contents(
    way: str, telemetry: Any
) -> None:
    """The class of an error is always there; what it says may quote a text."""
    for may_show in (False, True):
        client = Words(error=ServerError("the server said: secret"))
        with pytest.raises(ServerError):
            await rerank(Reranker("m", client=client, trace_content=may_show), way)
    hidden, shown = telemetry.spans("RERANKER")
    for span in (hidden, shown):
        assert not span.status.is_ok
        assert span.attributes["error.type"] == "ServerError"
        assert span.attributes["sie.status"] == "failed"
    assert "secret" not in hidden.to_json()
    assert shown.status.description == "the server said: secret"
    assert shown.events[0].name == "exception"


@BOTH_WAYS
async def test_a_degraded_answer_says_so(way: str, telemetry: Any) -> None:
    """In retrieval order after a failure: a span that is no error, and who served."""
    client = Words(error=SIEConnectionError("secret: refused"))
    ranking = await rerank(Reranker("m", client=client, fallback="retrieval_order"), way)
    assert ranking.status == "degraded"
    span = telemetry.span("RERANKER")
    assert span.status.is_ok
    assert span.attributes["sie.status"] == "degraded"
    assert span.attributes["sie.served_by"] == "retrieval_order"
    assert "secret" not in span.to_json()


async def test_a_call_that_nobody_waits_for_is_cancelled(telemetry: Any) -> None:
    """Its span ends, it is counted as such, and is no failure."""
    client = Held()
    events: list[RerankEvent] = []
    reranker = Reranker("m", client=client, on_rerank=events.append)
    task = asyncio.create_task(reranker.arerank(QUERY, DOCUMENTS))
    assert await asyncio.to_thread(client.has_begun.wait, PATIENCE_SECONDS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    client.may_end.set()
    assert telemetry.span("RERANKER").attributes["sie.status"] == "cancelled"
    assert [event.status for event in events] == ["cancelled"]
    stats = reranker.stats()
    assert (stats.statuses, stats.failures, stats.latency) == ({"cancelled": 1}, {}, None)


def test_what_stops_a_client_from_being_made_is_a_failure(telemetry: Any) -> None:
    """An error outside of the plan is its error too, even while another is being handled."""
    reranker = Reranker("m", async_client=Words())
    try:
        msg = "of the caller's own"
        raise KeyError(msg)  # noqa: TRY301
    except KeyError:
        with pytest.raises(InvalidRequestError, match="call arerank"):
            reranker.rerank(QUERY, DOCUMENTS)
    assert reranker.stats().failures == {"InvalidRequestError": 1}
    assert telemetry.span("RERANKER").attributes["error.type"] == "InvalidRequestError"


@BOTH_WAYS
async def test_spans_nest(way: str, telemetry: Any) -> None:
    """Under what the program does; and what a client does in its turn is under the call."""
    tracer = telemetry.tracer_provider.get_tracer("program")

    class Tracing(Words):
        def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:
            with tracer.start_as_current_span("client"):
                return super().score(*positional, **named)

    for hedge_after_ms in (None, 50_000):
        reranker = Reranker(
            "m", client=Tracing(), fallback="retrieval_order", hedge_after_ms=hedge_after_ms
        )
        with tracer.start_as_current_span("program"):
            await rerank(reranker, way)
        client, call, program = telemetry.spans()[-3:]
        assert [span.name for span in (client, call, program)] == ["client", "rerank m", "program"]
        assert client.parent.span_id == call.context.span_id
        assert call.parent.span_id == program.context.span_id


def test_a_span_that_is_not_sampled_costs_no_attributes(telemetry: Any) -> None:
    """Whoever samples none gets none, and calls go on."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    use_providers(tracer_provider=TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    asked: list[int] = []

    class Documents(list[str]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    Reranker("m", client=Words(), trace_content=True).rerank(QUERY, Documents(DOCUMENTS))
    assert not any(isinstance(index, slice) for index in asked)
    assert telemetry.spans() == []


@pytest.mark.parametrize("broken", ["on_start", "on_end"])
def test_broken_telemetry_fails_no_call_and_is_logged_once(
    broken: str, telemetry: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span processor that raises is the program's trouble, not the caller's."""
    from opentelemetry.sdk.trace import SpanProcessor

    from sie_core.telemetry import otel

    def break_down(*_: Any, **__: Any) -> None:
        msg = "broken"
        raise RuntimeError(msg)

    monkeypatch.setattr(otel._state, "has_warned", False)
    processor = SpanProcessor()
    monkeypatch.setattr(processor, broken, break_down)
    telemetry.tracer_provider.add_span_processor(processor)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert len(Reranker("m", client=Words()).rerank(QUERY, DOCUMENTS)) == 4
    assert [record.message for record in caplog.records] == [
        "telemetry failed: RuntimeError: broken"
    ]


def test_many_queries_are_a_span_each_and_share_none(telemetry: Any, tiny_bert: Path) -> None:
    """Each of `rank_many` is traced, counted and told of; what a client does is under its own."""
    tracer = telemetry.tracer_provider.get_tracer("program")

    class Tracing(Words):
        def score(self, *positional: Any, **named: Any) -> Mapping[str, Any]:
            with tracer.start_as_current_span(positional[1]["text"]):
                return super().score(*positional, **named)

    events: list[RerankEvent] = []
    reranker = Reranker("m", client=Tracing(), on_rerank=events.append, trace_content=True)
    reranker.rank_many([(f"query {i}", DOCUMENTS) for i in range(5)])
    calls = {it.attributes["reranker.query"]: it for it in telemetry.spans("RERANKER")}
    asked = {it.name: it for it in telemetry.spans() if it.name.startswith("query")}
    assert set(calls) == set(asked) == {f"query {i}" for i in range(5)}
    for query, span in asked.items():
        assert span.parent.span_id == calls[query].context.span_id
    assert len(events) == reranker.stats().num_calls == 5
    with Reranker(str(tiny_bert)) as local:
        local.rank_many([(QUERY, DOCUMENTS)] * 3)
        assert local.stats().statuses == {"complete": 3}
        assert len(telemetry.spans("RERANKER")) == 8


@BOTH_WAYS
async def test_a_partial_answer_says_so(way: str, telemetry: Any) -> None:
    """Time was up: the status, why, and how many were scored; to span, metrics, hook and counts."""

    class Late(Words):
        def score(self, *_: Any, **named: Any) -> Mapping[str, Any]:
            msg = f"{named['timeout_seconds']} s passed"
            raise DeadlineExceededError(msg)

    events: list[RerankEvent] = []
    reranker = Reranker("m", client=Late(), max_latency_ms=30, on_rerank=events.append)
    ranking = await rerank(reranker, way)
    assert ranking.status == "partial"
    said = telemetry.span("RERANKER").attributes
    assert (said["sie.status"], said["sie.num_scored"]) == ("partial", 0)
    (point,) = telemetry.points("sie.rerank.duration")
    assert point.attributes["sie.status"] == "partial"
    assert [event.status for event in events] == ["partial"]
    assert reranker.stats().statuses == {"partial": 1}
    assert reranker.stats().failures == {}


def test_scores_from_the_cache_are_counted(telemetry: Any, tiny_bert: Path) -> None:
    """On the second call all of them; in metrics, hook, span, and the cache's own stats."""
    events: list[RerankEvent] = []
    with Reranker(str(tiny_bert), score_cache=100_000, on_rerank=events.append) as reranker:
        reranker.rerank(QUERY, DOCUMENTS)
        reranker.rerank(QUERY, DOCUMENTS)
        stats = reranker.stats()
    assert [(event.num_scored, event.num_cached) for event in events] == [(3, 0), (3, 3)]
    assert stats.cache is not None
    assert (stats.cache.num_hits, stats.cache.num_entries) == (3, 3)
    assert [point.value for point in telemetry.points("sie.rerank.scored")] == [6]
    assert [point.value for point in telemetry.points("sie.rerank.cached")] == [3]
    assert telemetry.spans("RERANKER")[1].attributes["sie.num_cached"] == 3


# --- metrics -------------------------------------------------------------------------------------


@BOTH_WAYS
async def test_calls_are_measured(way: str, telemetry: Any) -> None:
    """Latency by status, documents, tokens, truncation, time in the queue; failures by class."""
    await rerank(Reranker("m", client=Words()), way)
    await rerank(Reranker("m", client=Words()), way)
    with pytest.raises(ServerError):
        await rerank(Reranker("m", client=Words(error=ServerError("no"))), way)
    points = {
        (point.attributes["sie.status"], point.attributes.get("error.type")): point
        for point in telemetry.points("sie.rerank.duration")
    }
    assert set(points) == {("complete", None), ("failed", "ServerError")}
    done = points["complete", None]
    assert done.count == 2
    assert done.sum > 0
    assert dict(done.attributes) == {
        "sie.model": "m",
        "sie.status": "complete",
        "sie.served_by": "Words",
    }
    values = {
        name: [point.value for point in telemetry.points(f"sie.rerank.{name}")]
        for name in ("documents", "tokens", "truncated")
    }
    assert values == {"documents": [12], "tokens": [22], "truncated": [2]}
    (queue,) = telemetry.points("sie.rerank.queue.duration")
    assert (queue.count, queue.sum) == (2, pytest.approx(0.003))


@pytest.mark.usefixtures("released")
def test_the_engine_is_observed(telemetry: Any, tiny_bert: Path) -> None:
    """Tokens, batches and their fill, and what waits, for each loaded model."""
    with Reranker(str(tiny_bert), num_threads=1) as reranker:
        reranker.rerank(QUERY, DOCUMENTS)
        (fill,) = telemetry.points("sie.engine.batch.fill")
        stats = reranker.stats().engine
        assert fill.value == stats.batch_fill
        assert 0 < fill.value <= 1
        assert fill.attributes["sie.model"] == str(tiny_bert)
        assert fill.attributes["sie.dtype"] in ("float32", "bfloat16")
        (tokens,) = telemetry.points("sie.engine.tokens")
        assert tokens.value == stats.num_tokens > 0
        (waiting,) = telemetry.points("sie.engine.queue.tokens")
        assert waiting.value == 0
        assert stats.num_requests > 0
        (queue,) = telemetry.points("sie.rerank.queue.duration")
        assert queue.count == 1


# --- stats and the hook --------------------------------------------------------------------------


@BOTH_WAYS
async def test_stats_count_what_calls_came_to(way: str) -> None:
    """Calls, documents, tokens, truncation, statuses, failures by class, latency."""
    reranker = Reranker("m", client=Words(), fallback=Backend(client=Words(), model="other"))
    for _ in range(3):
        await rerank(reranker, way)
    stats = reranker.stats()
    assert (stats.num_calls, stats.num_documents, stats.num_input_tokens) == (3, 12, 33)
    assert stats.num_truncated == 3
    assert stats.statuses == {"complete": 3}
    assert stats.failures == {}
    assert stats.latency is not None
    assert 0 < stats.latency.p50_ms <= stats.latency.max_ms
    assert (stats.engine, stats.cache) == (None, None)
    json.dumps(dataclasses.asdict(stats))


def test_failed_calls_are_counted_by_class_and_kept_out_of_the_latency() -> None:
    """How long a failure took says nothing of how long answers take."""
    reranker = Reranker("m", client=Words(error=ServerError("no")))
    for _ in range(2):
        with pytest.raises(ServerError):
            reranker.rerank(QUERY, DOCUMENTS)
    stats = reranker.stats()
    assert stats.failures == {"ServerError": 2}
    assert stats.statuses == {"failed": 2}
    assert stats.latency is None


def test_a_call_with_nothing_to_score_is_a_call() -> None:
    """It is counted, and asks nobody."""
    reranker = Reranker("m", client=Words(error=ServerError("asked")))
    reranker.rerank(QUERY, ["", None])
    assert reranker.stats().statuses == {"complete": 1}


def test_calls_of_many_threads_are_all_counted() -> None:
    """None is lost."""
    reranker = Reranker("m", client=Words())

    def call() -> None:
        for _ in range(50):
            reranker.rerank(QUERY, DOCUMENTS)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reranker.stats().num_calls == 400
    assert reranker.stats().num_documents == 1600


@BOTH_WAYS
async def test_a_hook_is_told_of_each_call(way: str) -> None:
    """With what became of it, and without its contents."""
    events: list[RerankEvent] = []
    await rerank(Reranker("m", client=Words(), on_rerank=events.append), way, top_k=2)
    (event,) = events
    assert (event.model, event.status, event.served_by) == ("m", "complete", "Words")
    assert (event.num_documents, event.num_ranked) == (4, 2)
    assert (event.num_input_tokens, event.num_truncated) == (11, 1)
    assert event.timing == {"total_ms": 4.0, "queue_ms": 1.5}
    assert event.duration_seconds > 0
    assert event.error is None
    assert "secret" not in repr(event)


@BOTH_WAYS
async def test_a_hook_that_raises_fails_no_call(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither an answer nor the error of a call that failed; it is logged once."""

    def break_down(_: RerankEvent) -> None:
        msg = "hook"
        raise ValueError(msg)

    client = Words()
    reranker = Reranker("m", client=client, on_rerank=break_down)
    with caplog.at_level(logging.WARNING):
        assert len(await rerank(reranker, way)) == 4
        assert len(await rerank(reranker, way)) == 4
        client.error = ServerError("no")
        with pytest.raises(ServerError):
            await rerank(reranker, way)
    assert len(caplog.records) == 1
    assert "on_rerank failed" in caplog.text


def test_copies_keep_the_hook_and_pickles_do_not() -> None:
    """A function need not be picklable; counts are each object's own."""
    events: list[RerankEvent] = []

    def keep(event: RerankEvent) -> None:
        events.append(event)

    reranker = Reranker("m", client=OVERLAP, on_rerank=keep)
    reranker.rerank(QUERY, DOCUMENTS)
    twin = copy.deepcopy(reranker)
    twin.rerank(QUERY, DOCUMENTS)
    assert len(events) == 2
    loaded = pickle.loads(pickle.dumps(reranker))
    loaded.rerank(QUERY, DOCUMENTS)
    assert len(events) == 2
    assert loaded.on_rerank is None
    assert [it.stats().num_calls for it in (reranker, twin, loaded)] == [1, 1, 1]


OVERLAP = Words()


def test_a_hook_that_cannot_be_called_is_refused() -> None:
    """At once, not at the first call."""

    async def awaited(_: RerankEvent) -> None:
        pass

    for wrong in ("print", awaited):
        with pytest.raises(InvalidRequestError, match="on_rerank must be a plain function"):
            Reranker("m", on_rerank=wrong)  # type: ignore[arg-type]


def test_stats_of_a_local_model_have_its_scheduler(tiny_bert: Path) -> None:
    """Also behind a chain; a client that was given has its own `scheduler_stats`."""
    with Reranker(str(tiny_bert)) as plain:
        assert plain.stats().engine is None
        plain.rerank(QUERY, DOCUMENTS)
        assert plain.stats().engine.num_sequences >= 3
    with Reranker(str(tiny_bert), fallback="retrieval_order") as chained:
        chained.rerank(QUERY, DOCUMENTS)
        assert chained.stats().engine.num_sequences >= 3
    assert LocalClient().scheduler_stats("never/loaded") is None


# --- embeddings ----------------------------------------------------------------------------------


class Vectors:
    """A client that gives each text a vector."""

    error: BaseException | None = None

    def encode(self, model: str, items: Sequence[Item], **_: Any) -> list[dict[str, Any]]:
        del model
        if self.error is not None:
            raise self.error
        return [{"dense": [1.0, float(len(item["text"]))]} for item in items]


async def embed(embedder: Embedder, way: str) -> Any:
    """Call in one of two ways."""
    if way == "sync":
        return await asyncio.to_thread(embedder.embed, ["secret", "b"], is_query=True)
    return await embedder.aembed(["secret", "b"], is_query=True)


@BOTH_WAYS
async def test_an_embedding_call_is_an_embedding_span(way: str, telemetry: Any) -> None:
    """Model, arguments and number of texts; the texts where someone says so; never vectors."""
    await embed(Embedder("e", client=Vectors()), way)
    span = telemetry.span("EMBEDDING")
    assert span.name == "embed e"
    assert span.attributes["embedding.model_name"] == "e"
    arguments = json.loads(span.attributes["embedding.invocation_parameters"])
    assert arguments == {"output_types": ["dense"], "is_query": True}
    assert span.attributes["sie.num_texts"] == 2
    assert "secret" not in span.to_json()
    await embed(Embedder("e", client=Vectors(), trace_content=True), way)
    said = telemetry.spans("EMBEDDING")[1].attributes
    assert said["embedding.embeddings.0.embedding.text"] == "secret"
    assert not any(name.endswith("vector") for name in said)
    (duration,) = telemetry.points("sie.embed.duration")
    assert duration.count == 2
    assert [point.value for point in telemetry.points("sie.embed.texts")] == [4]


@BOTH_WAYS
async def test_a_failed_embedding_call_is_named(way: str, telemetry: Any) -> None:
    """By the class of its error."""
    client = Vectors()
    client.error = ServerError("secret")
    with pytest.raises(ServerError):
        await embed(Embedder("e", client=client), way)
    span = telemetry.span("EMBEDDING")
    assert not span.status.is_ok
    assert span.attributes["error.type"] == "ServerError"
    assert "secret" not in span.to_json()
    (duration,) = telemetry.points("sie.embed.duration")
    assert duration.attributes["sie.status"] == "failed"


# --- without the package -------------------------------------------------------------------------

_BLOCKED = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

_CALLS = """
from sie_core import Embedder, Reranker, SIEClient

class Client:
    def score(self, model, query, items, **_):
        scores = [{"item_id": item["id"], "score": 1.0} for item in items]
        return {"model": model, "query_id": None, "scores": scores}
    def encode(self, model, items, **_):
        return [{"dense": [1.0]} for _ in items]

events = []
reranker = Reranker("m", client=Client(), on_rerank=events.append)
reranker.rerank("q", ["a", "b"])
Embedder("m", client=Client()).embed(["a"])
try:
    SIEClient("http://127.0.0.1:9", timeout_seconds=0.2).score("m", {"text": "q"}, [{"text": "a"}])
except Exception as exc:
    print(type(exc).__name__)
print(events[0].status, reranker.stats().num_calls, "opentelemetry" in sys.modules)
"""


@pytest.mark.parametrize("setup", ["import sys\n", _BLOCKED])
def test_nothing_needs_or_imports_opentelemetry(setup: str) -> None:
    """Without the package calls are made, counted and told of; with it, it is not imported."""
    done = subprocess.run(
        [sys.executable, "-c", setup + _CALLS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == "complete 1 False"
