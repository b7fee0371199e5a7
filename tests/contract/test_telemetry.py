"""Every component's calls are traced, measured, counted and told of, in this process and remotely.

They come from the `Reranker` that each holds. Behaviour 13 of docs/behaviours.md.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from sie_core import RerankEvent

QUERY = "how many people live in berlin"
TEXTS = ["berlin museum", "population of the city", "", "river " * 600]


@pytest.fixture
def model(tiny_bert: Path) -> str:
    """The tiny model's folder."""
    return str(tiny_bert)


def test_13_a_call_is_one_span_one_measurement_one_event(
    subject: Any, model: str, telemetry: Any
) -> None:
    """With the scores that the component gave, and without contents."""
    events: list[RerankEvent] = []
    component = subject.make(model, on_rerank=events.append)
    ranked = subject.rerank(component, QUERY, subject.documents(TEXTS))
    stats = component.stats()
    component.close()
    views = [subject.view(document) for document in ranked]
    said = telemetry.span("RERANKER").attributes
    assert said["reranker.model_name"] == component.model
    assert said["sie.num_documents"] == len(TEXTS)
    assert said["sie.status"] == "complete"
    for place, view in enumerate(views):
        score = said.get(f"reranker.output_documents.{place}.document.score")
        assert score == pytest.approx(view.score)
    assert "berlin" not in telemetry.span("RERANKER").to_json()
    assert [point.count for point in telemetry.points("sie.rerank.duration")] == [1]
    (event,) = events
    assert (event.status, event.num_documents, event.num_scored) == ("complete", 4, 3)
    assert event.num_input_tokens > 0
    assert event.timing["total_ms"] <= event.duration_seconds * 1e3
    assert (stats.num_calls, stats.statuses) == (1, {"complete": 1})
    assert stats.num_input_tokens == event.num_input_tokens


def test_13_contents_are_traced_by_the_environment_alone(
    subject: Any, model: str, telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIE_TRACE_CONTENT=1 shows query and documents, for all components alike."""
    monkeypatch.setenv("SIE_TRACE_CONTENT", "1")
    component = subject.make(model)
    subject.rerank(component, QUERY, subject.documents(TEXTS))
    component.close()
    said = telemetry.span("RERANKER").attributes
    assert said["reranker.query"] == QUERY
    assert "berlin museum" in said["reranker.input_documents.0.document.content"]


def test_13_a_degraded_answer_is_measured_as_one(
    local_subject: Any, model: str, telemetry: Any
) -> None:
    """A dead server and `fallback="retrieval_order"`."""
    events: list[RerankEvent] = []
    component = local_subject.make(
        model,
        base_url="http://127.0.0.1:9",
        fallback="retrieval_order",
        on_rerank=events.append,
    )
    local_subject.rerank(component, QUERY, local_subject.documents(TEXTS))
    assert component.stats().statuses == {"degraded": 1}
    component.close()
    assert telemetry.span("RERANKER").attributes["sie.served_by"] == "retrieval_order"
    (point,) = telemetry.points("sie.rerank.duration")
    assert point.attributes["sie.status"] == "degraded"
    (event,) = events
    assert event.reason is not None
    assert "127.0.0.1:9" in event.reason


def test_13_a_hook_stays_in_its_process(local_subject: Any, model: str) -> None:
    """Copies tell it too; pickles and dumps leave it behind, and a hook that raises fails none."""
    num_told = 0

    def count(_: RerankEvent) -> None:
        nonlocal num_told
        num_told += 1
        msg = "hook"
        raise ValueError(msg)

    component = local_subject.make(model, on_rerank=count)
    documents = local_subject.documents(TEXTS)
    loaded = pickle.loads(pickle.dumps(component))
    for it in (component, copy.copy(component), copy.deepcopy(component), loaded):
        assert len(local_subject.rerank(it, QUERY, documents)) == len(TEXTS)
        it.close()
    assert num_told == 3
    assert "on_rerank" not in local_subject.serialised(component)
