"""`sie serve` on a Ray cluster: what callers get is what one process gives them, and goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

REASON = "Ray is not installed: the extra distributed brings it"
ray = pytest.importorskip("ray", reason=REASON)
serve = pytest.importorskip("ray.serve", reason=REASON)  # silences what pydantic says of Ray

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from sie_core import SIEClient  # noqa: E402
from sie_core.distributed.cluster_settings import (  # noqa: E402
    ClusterSettings,
    Deployment,
    ReplicaEngine,
)
from sie_core.distributed.serving import Cluster, application  # noqa: E402
from sie_core.local import LocalClient  # noqa: E402
from sie_core.server.keys import make_key  # noqa: E402
from sie_core.server.run import Server  # noqa: E402
from sie_core.server.settings import ModelSettings, ServerSettings  # noqa: E402
from sie_core.settings import RemoteSettings  # noqa: E402
from sie_core.types import Item  # noqa: E402

pytestmark = [
    # Ray leaves sockets and loops of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]

PATIENCE_SECONDS = 60
QUERY = Item(text="river")
ITEMS = [Item(id="a", text="the river"), Item(id="b", text="a banana is yellow fruit")]
BODY = {"query": {"text": "river"}, "items": [{"text": "the river"}, {"text": "a banana"}]}
KEY, KEY_LINE = make_key("tester")


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    """Look again and again until something is so; a cluster tells nobody when."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > end:
            pytest.fail(f"not within {PATIENCE_SECONDS} s: {what}")
        threading.Event().wait(0.05)


@pytest.fixture(scope="module")
def proxy_url() -> Iterator[str]:
    """A Ray instance of four cores that need not exist, and the address of its HTTP proxy."""
    folder = tempfile.mkdtemp(prefix="sie-ray-", dir="/tmp")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _temp_dir=folder,
        configure_logging=False,
        log_to_driver=False,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(server: Server) -> Iterator[str]:
    """Run a server in a thread, and give its address when it is ready."""
    thread = threading.Thread(target=server.run, name="sie-test-front")
    thread.start()
    try:
        with httpx.Client() as client:
            wait_for(
                lambda: (
                    client.get(f"{server.url}/readyz").status_code == 200 or not thread.is_alive()
                ),
                "readiness",
            )
        assert thread.is_alive()
        yield server.url
    finally:
        server.stop()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


@contextlib.contextmanager
def deployed(settings: ServerSettings, **cluster: Any) -> Iterator[str]:
    """Run a server whose replicas are on the cluster, and give its address."""
    deployment = Deployment(
        server=settings,
        cluster=ClusterSettings(cores_per_replica=0.5, **cluster),
        engine=ReplicaEngine(mode="exact", num_threads=1, log_level="warning"),
    )
    with Cluster(deployment) as replicas:
        server = Server(settings, port=0, make_app=replicas.make_app)
        with running(server) as url:
            yield url


@pytest.fixture(scope="module")
def settings(
    tiny_bert: Path, tiny_xlmr: Path, tmp_path_factory: pytest.TempPathFactory
) -> ServerSettings:
    """Two models, a key, and limits that a test can reach."""
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(f"{KEY_LINE}\n")
    keys.chmod(0o600)
    return ServerSettings(
        models=(
            ModelSettings(name="one", source=str(tiny_bert)),
            ModelSettings(name="other", source=str(tiny_xlmr), preload=False),
        ),
        api_key_file=str(keys),
        wait_for_load_seconds=PATIENCE_SECONDS,
        max_body_bytes=100_000,
        max_items=200,
        allow_reload=True,
        drain_seconds=5,
    )


@pytest.fixture(scope="module")
def url(proxy_url: str, settings: ServerSettings) -> Iterator[str]:
    """A server with two replicas, each of which holds one model."""
    del proxy_url
    with deployed(settings, min_replicas=2, max_replicas=2, max_loaded_models=1) as address:
        yield address


@pytest.fixture(scope="module")
def deployed_url(proxy_url: str, settings: ServerSettings) -> Iterator[str]:
    """An application that Ray itself deploys, of one replica, or two where there is load."""
    arguments = {
        "server": {
            "models": [{"name": "one", "source": settings.models[0].source}],
            "api_key_file": settings.api_key_file,
            "max_body_bytes": settings.max_body_bytes,
        },
        "cluster": {
            "cores_per_replica": 0.5,
            "max_replicas": 2,
            "target_ongoing_requests": 1,
            "upscale_delay_seconds": 0.5,
        },
        "engine": {"mode": "exact", "num_threads": 1},
    }
    serve.run(application(arguments), name="manifest", route_prefix="/")
    yield proxy_url
    serve.delete("manifest")


@pytest.fixture(scope="module")
def single_url(settings: ServerSettings) -> Iterator[str]:
    """The same in one process."""
    with running(Server(settings, port=0, client=LocalClient(mode="exact"))) as address:
        yield address


@pytest.fixture
def caller() -> Iterator[httpx.Client]:
    """Sends requests with the key."""
    with httpx.Client(
        headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_SECONDS
    ) as client:
        yield client


@pytest.mark.parametrize("model", ["one", "other"])
@pytest.mark.parametrize("content_format", ["msgpack", "json"])
def test_scores_are_those_of_this_process(
    url: str, settings: ServerSettings, model: str, content_format: Any
) -> None:
    """To the last digit, under the ids that were given."""
    (source,) = (str(it.source) for it in settings.models if it.name == model)
    with LocalClient(mode="exact", num_threads=1) as local:
        expected = local.score(source, QUERY, ITEMS)["scores"]
    with SIEClient(url, api_key=KEY, content_format=content_format) as client:
        assert client.score(model, QUERY, ITEMS)["scores"] == expected


def samples(url: str, caller: httpx.Client, name: str) -> list[Any]:
    """The samples of a metric that have a replica's name."""
    text = caller.get(f"{url}/metrics").text
    return [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and "replica" in sample.labels
    ]


def loaded(url: str, caller: httpx.Client) -> list[tuple[str, str]]:
    """Which replica has which model in memory."""
    return sorted(
        (it.labels["replica"], it.labels["model"])
        for it in samples(url, caller, "sie_model_state")
        if it.labels["state"] == "loaded" and it.value
    )


def test_a_request_goes_where_its_model_is_and_a_model_leaves_for_another(
    url: str, caller: httpx.Client
) -> None:
    """With room for one each, both replicas hold one, and nothing is loaded again and again."""

    def call(model: str) -> None:
        assert caller.post(f"{url}/v1/score/{model}", json=BODY).status_code == 200

    def num_loads() -> float:
        return sum(it.value for it in samples(url, caller, "sie_model_loads_total"))

    def nothing_moves() -> bool:
        before = num_loads()
        for model in ["one", "other"] * 10:
            call(model)
        return num_loads() == before

    wait_for(nothing_moves, "every model has its replica")
    found = loaded(url, caller)
    assert [model for _, model in found] in (["one", "other"], ["other", "one"])
    assert len({replica for replica, _ in found}) == 2
    unloaded = samples(url, caller, "sie_models_loaded")
    assert [it.value for it in unloaded] == [1, 1]


def answers(address: str, method: str, path: str, **given: Any) -> tuple[int, Any, str | None]:
    """What a server answers, without what differs between any two replies."""
    reply = httpx.request(method, f"{address}{path}", timeout=PATIENCE_SECONDS, **given)
    return reply.status_code, reply.content, reply.headers.get("x-sie-error-code")


BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/v1/score/none", {"json": BODY, "headers": BEARER}, 404),
        ("/v2/rerank", {"json": {"model": "n", "query": "q", "documents": ["d"]}}, 401),
        ("/v1/score/one", {"json": BODY, "headers": {"Authorization": "Bearer no"}}, 401),
        ("/v1/score/one", {"content": b"x" * 100_001, "headers": BEARER}, 413),
        ("/v1/score/one", {"content": b"{", "headers": BEARER}, 400),
        ("/v1/rerank", {"json": {"query": "q", "documents": []}, "headers": BEARER}, 400),
        ("/v2/rerank", {"json": {"model": "none"}, "headers": BEARER}, 400),
        ("/v1/embeddings", {"json": {"model": "one", "input": ["a"]}, "headers": BEARER}, 400),
        ("/no/such/path", {"json": BODY, "headers": BEARER}, 404),
        ("/v1/models/none/reload", {"headers": BEARER}, 404),
    ],
)
def test_failures_are_told_as_one_process_tells_them(
    url: str, single_url: str, path: str, given: dict[str, Any], status: int
) -> None:
    """Status, code and body."""
    found = answers(url, "POST", path, **given)
    assert found == answers(single_url, "POST", path, **given)
    assert found[0] == status


def test_a_body_without_a_model_goes_to_the_first_that_scores(
    url: str, single_url: str, caller: httpx.Client
) -> None:
    """As on Text Embeddings Inference's route."""
    body = {"query": "river", "texts": ["the river", "a banana"], "raw_scores": True}
    found, single = (caller.post(f"{it}/rerank", json=body) for it in (url, single_url))
    assert found.status_code == 200
    assert found.json() == single.json()


def test_the_whole_is_described_as_one_server(url: str, caller: httpx.Client) -> None:
    """Models are loaded where any replica has them; requests are counted once."""
    for model in ("one", "other"):
        caller.post(f"{url}/v1/score/{model}", json=BODY)
    wait_for(lambda: len({it for _, it in loaded(url, caller)}) == 2, "both are loaded")
    described = {it["name"]: it["state"] for it in caller.get(f"{url}/v1/models").json()["models"]}
    assert described == {"one": "loaded", "other": "loaded"}
    before = caller.get(f"{url}/v1/status").json()
    caller.post(f"{url}/v1/score/one", json=BODY)
    after = caller.get(f"{url}/v1/status").json()
    assert after["requests"]["total"] == before["requests"]["total"] + 1
    assert set(after["models"]) == {"one", "other"}


def test_a_reload_reaches_all_that_hold_the_model(url: str, caller: httpx.Client) -> None:
    """And scores are what they were, since the files are."""
    before = caller.post(f"{url}/v1/score/one", json=BODY, headers={"Accept": "application/json"})
    wait_for(lambda: any(model == "one" for _, model in loaded(url, caller)), "it is loaded")
    num_holders = sum(model == "one" for _, model in loaded(url, caller))
    reloaded = caller.post(f"{url}/v1/models/one/reload").json()
    assert (reloaded["replaced"], reloaded["state"]) == (num_holders, "loaded")
    after = caller.post(f"{url}/v1/score/one", json=BODY, headers={"Accept": "application/json"})
    assert after.json()["scores"] == before.json()["scores"]


def replica_pids(app: str) -> list[int]:
    """The processes of an application's replicas."""
    actors = ray._private.state.actors().values()
    return [
        it["Pid"]
        for it in actors
        if it["State"] == "ALIVE" and it["ActorClassName"].startswith(f"ServeReplica:{app}:replica")
    ]


def test_ray_itself_can_deploy_it(deployed_url: str, settings: ServerSettings) -> None:
    """From a manifest's arguments, behind Ray's own proxy: the same answers and refusals."""
    source = str(settings.models[0].source)
    with (
        LocalClient(mode="exact", num_threads=1) as local,
        SIEClient(deployed_url, api_key=KEY) as client,
    ):
        expected = local.score(source, QUERY, ITEMS)["scores"]
        assert client.score("one", QUERY, ITEMS)["scores"] == expected
    assert httpx.post(f"{deployed_url}/v1/score/one", json=BODY).status_code == 401
    found = answers(deployed_url, "POST", "/v1/score/one", content=b"x" * 100_001, headers=BEARER)
    assert found[0] == 413
    assert found[2] == "INPUT_TOO_LONG"


def test_replicas_follow_the_load(deployed_url: str) -> None:
    """One without any, a second one when more requests are in progress than one should have."""
    items = [Item(text="the river is long " * 20) for _ in range(100)]

    def num_running() -> int:
        states = serve.status().applications["manifest"].deployments["replica"].replica_states
        return sum(number for state, number in states.items() if state == "RUNNING")

    assert num_running() == 1
    is_over = threading.Event()
    with SIEClient(deployed_url, api_key=KEY) as client, ThreadPoolExecutor(4) as pool:

        def calls() -> None:
            while not is_over.is_set():
                client.score("one", QUERY, items)

        callers = [pool.submit(calls) for _ in range(4)]
        try:
            wait_for(lambda: num_running() == 2, "a second replica")
        finally:
            is_over.set()
        for each in callers:
            each.result()


def test_no_call_is_lost_when_a_replica_dies(url: str) -> None:
    """It is asked once more, elsewhere; what comes meanwhile goes to those that are there."""
    settings = RemoteSettings(restart_seconds=PATIENCE_SECONDS)
    items = [Item(text=f"the river {number}") for number in range(100)]
    num_answered, is_over = 0, threading.Event()
    with SIEClient(url, api_key=KEY, settings=settings) as client, ThreadPoolExecutor(4) as pool:

        def calls() -> None:
            nonlocal num_answered
            while not is_over.is_set():
                assert len(client.score("one", QUERY, items)["scores"]) == 100
                num_answered += 1

        callers = [pool.submit(calls) for _ in range(4)]
        try:
            wait_for(lambda: num_answered > 4, "calls are under way")
            victim = replica_pids("sie")[0]
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: victim not in replica_pids("sie"), "the replica is gone")
            seen = num_answered
            wait_for(lambda: num_answered > seen + 20, "calls go on")
        finally:
            is_over.set()
        for each in callers:
            each.result()
