"""What Prometheus reads: counts of what passed, and how the models stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sie_core.server.metrics import MAX_MODELS, OTHER, Metrics
from sie_core.server.observation import Observation
from sie_core.server.record import CallRecord
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

BODY = {
    "query": {"text": "paris"},
    "items": [{"text": "the capital of france"}, {"text": "word " * 600}],
}


class Samples:
    """What a page of metrics says."""

    def __init__(self, text: str) -> None:
        self._found = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._found[name, tuple(sorted(labels.items()))]

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels that a metric has values for."""
        return [dict(labels) for found, labels in self._found if found == name]


def read(server: Server) -> Samples:
    """Read a server's metrics."""
    reply = httpx.get(f"{server.url}/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return Samples(reply.text)


@pytest.fixture
def server(
    serve: Callable[..., Server], cold_bert: Path, cold_xlmr: Path, tmp_path: Path
) -> Server:
    """A server with a model that is loaded, one that is not, and one that cannot be."""
    (tmp_path / "broken").mkdir()
    return serve(
        models=(
            ModelSettings(name="tiny", source=str(cold_bert)),
            ModelSettings(name="later", source=str(cold_xlmr), preload=False),
            ModelSettings(name="broken", source=str(tmp_path / "broken"), preload=False),
        ),
        wait_for_load_seconds=30,
    )


def test_a_call_is_counted_with_what_it_cost(server: Server) -> None:
    """By route and model; the times are those of the reply's headers."""
    for _ in range(2):
        assert httpx.post(f"{server.url}/v1/score/tiny", json=BODY).status_code == 200
    found = read(server)
    call = {"route": "/v1/score/{model}", "model": "tiny"}
    assert found("sie_requests_total", **call, status="200", code="") == 2
    assert found("sie_items_total", **call) == 4
    assert found("sie_truncated_items_total", **call) == 2
    assert found("sie_tokens_total", **call) > 100
    assert found("sie_request_body_bytes_total", **call) > 2 * 3000
    assert found("sie_request_duration_seconds_count", **call) == 2
    assert found("sie_request_items_sum", **call) == 4
    for part in ("queue", "tokenization", "inference"):
        assert found(f"sie_{part}_seconds_count", model="tiny") == 2
    assert found("sie_inference_seconds_sum", model="tiny") > 0


def test_a_model_that_runs_says_what_it_has_done(server: Server) -> None:
    """Its batches are counted by its scheduler, warming up included."""
    before = read(server)
    httpx.post(f"{server.url}/v1/score/tiny", json=BODY)
    after = read(server)
    assert after("sie_batches_total", model="tiny") > before("sie_batches_total", model="tiny")
    more = after("sie_batch_sequences_total", model="tiny") - before(
        "sie_batch_sequences_total", model="tiny"
    )
    assert more == 2
    assert after("sie_queued_tokens", model="tiny") == 0
    assert after("sie_queued_requests", model="tiny") == 0
    assert after("sie_workers", model="tiny") >= 1
    assert after("sie_model_bytes", model="tiny") > 1000
    assert after("sie_models_loaded") == 1
    (runs,) = after.labels("sie_model_info")
    assert runs["runs"]


def test_loads_and_their_failures_are_counted(server: Server) -> None:
    """And the state that each model is in."""
    httpx.post(f"{server.url}/v1/score/later", json=BODY)
    refused = httpx.post(f"{server.url}/v1/score/broken", json=BODY)
    assert refused.status_code == 502
    found = read(server)
    states = {it["model"]: it["state"] for it in found.labels("sie_model_state")}
    assert states == {"tiny": "loaded", "later": "loaded", "broken": "failed"}
    assert found("sie_model_loads_total", model="later", outcome="loaded") == 1
    assert found("sie_model_loads_total", model="broken", outcome="failed") == 1
    assert found("sie_model_load_seconds", model="later") > 0
    failed = {"route": "/v1/score/{model}", "model": "broken"}
    assert found("sie_requests_total", **failed, status="502", code="MODEL_LOAD_FAILED") == 1


def test_the_server_and_its_process_are_described(server: Server) -> None:
    """Version, readiness, memory, open files."""
    found = read(server)
    assert found("sie_ready") == 1
    assert found("sie_draining") == 0
    assert found("sie_requests_in_progress") == 0
    assert found("process_resident_memory_bytes") > 10_000_000
    (build,) = found.labels("sie_build_info")
    assert build.keys() == {"version", "protocol", "python"}


def test_paths_and_models_that_callers_make_up_share_a_label(server: Server) -> None:
    """Or a stranger could fill Prometheus's memory."""
    for i in range(5):
        httpx.get(f"{server.url}/nowhere/{i}")
        httpx.post(f"{server.url}/v1/score/made-up-{i}", json=BODY)
    found = read(server)
    assert found("sie_requests_total", route=OTHER, model="", status="404", code="") == 5
    unknown = {"route": "/v1/score/{model}", "model": ""}
    assert found("sie_requests_total", **unknown, status="404", code="MODEL_NOT_FOUND") == 5


def test_no_more_models_than_a_number_have_labels(served: Server) -> None:
    """With --allow-any-model a server may see any number of them."""
    metrics = Metrics(served.app.state.service)
    for i in range(MAX_MODELS + 5):
        record = CallRecord(route="/v1/score/{model}", model=f"m{i}", num_items=1)
        observation: dict[str, Any] = {"method": "POST", "path": "/", "client": None}
        metrics.count(Observation(**observation, status=200, seconds=0.1, record=record))
    found = Samples(metrics.text())
    models = {labels["model"] for labels in found.labels("sie_requests_total")}
    assert models == {f"m{i}" for i in range(MAX_MODELS)} | {OTHER}
    call = {"route": "/v1/score/{model}", "model": OTHER}
    assert found("sie_requests_total", **call, status="200", code="") == 5


def test_openmetrics_is_spoken_to_who_asks(server: Server) -> None:
    """As Prometheus does."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    reply = httpx.get(f"{server.url}/metrics", headers=accept)
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert reply.text.endswith("# EOF\n")


def test_two_apps_in_a_process_count_apart(serve: Callable[..., Server], tiny_bert: Path) -> None:
    """Nothing is kept in the process's own registry."""
    models = (ModelSettings(name="tiny", source=str(tiny_bert)),)
    one, other = serve(models=models), serve(models=models)
    httpx.post(f"{one.url}/v1/score/tiny", json=BODY)
    call = {"route": "/v1/score/{model}", "model": "tiny", "status": "200", "code": ""}
    assert read(one)("sie_requests_total", **call) == 1
    assert call not in read(other).labels("sie_requests_total")
