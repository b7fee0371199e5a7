"""Several servers behind one client: who is asked, who is left alone, and who comes back."""

from __future__ import annotations

import asyncio
import copy
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core import SIEAsyncClient, SIEClient
from sie_core.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    SIEConnectionError,
    SIEError,
)
from sie_core.remote.servers import Servers
from sie_core.settings import BreakerSettings
from sie_core.types import Item

A, B, C = "http://a:1", "http://b:1", "http://c:1"
QUERY = Item(text="river")
ITEMS = [Item(text="the river"), Item(text="a banana")]


class Clock:
    """A clock that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(servers: Servers, avoided: tuple[str, ...] = ()) -> str:
    """Say where a request would go that stays under way."""
    visit = servers.take(avoided)
    assert visit is not None
    return visit.address


def test_the_server_with_the_fewest_requests_is_next() -> None:
    """Among equals the one that was asked least recently."""
    servers = Servers([A, B, C])
    visits = {address: servers.take() for address in (A, B, C)}
    assert {address: visit and visit.address for address, visit in visits.items()} == {
        A: A,
        B: B,
        C: C,
    }
    ended = visits[B]
    assert ended is not None
    ended.answered()
    assert taken(servers) == B
    assert [taken(servers) for _ in range(3)] == [A, C, B]


def test_one_that_fails_in_a_row_is_ejected_and_probed_by_one_request() -> None:
    """It rests, then a single request decides; each failed probe doubles the rest."""
    clock = Clock()
    settings = BreakerSettings(num_failures=2, cooldown_seconds=10.0, max_cooldown_seconds=15.0)
    servers = Servers([A, B], settings, clock)
    for _ in range(2):
        visit = servers.take([B])
        assert visit is not None
        visit.failed(SIEConnectionError("gone"))
    assert servers.states == {A: "open", B: "closed"}
    assert [taken(servers) for _ in range(3)] == [B, B, B]
    assert servers.take([B]) is None
    assert not servers.has_other([B])
    clock.now = 10.0
    assert servers.states[A] == "half-open"
    probe = servers.take()
    assert probe is not None
    assert probe.address == A
    assert taken(servers) == B  # one probe at a time
    probe.failed(SIEConnectionError("still gone"))
    clock.now = 24.0
    assert taken(servers) == B
    clock.now = 25.0
    probe = servers.take()
    assert probe is not None
    assert probe.address == A
    probe.answered()
    assert servers.states[A] == "closed"


def test_a_probe_that_nobody_waited_for_leaves_the_question_open() -> None:
    """The next request may probe."""
    clock = Clock()
    servers = Servers([A, B], BreakerSettings(num_failures=1, cooldown_seconds=1.0), clock)
    visit = servers.take([B])
    assert visit is not None
    visit.failed(SIEConnectionError("gone"))
    clock.now = 1.0
    probe = servers.take()
    assert probe is not None
    probe.close()
    assert taken(servers, (B,)) == A


def test_where_all_are_ejected_one_is_asked_all_the_same() -> None:
    """A client whose servers all failed a moment ago does not refuse to ask."""
    servers = Servers([A, B], BreakerSettings(num_failures=1, cooldown_seconds=60.0))
    for other in (B, A):
        visit = servers.take([other])
        assert visit is not None
        visit.failed(SIEConnectionError("gone"))
    assert set(servers.states.values()) == {"open"}
    assert taken(servers) in (A, B)


def test_one_server_is_never_ejected() -> None:
    """There is nobody else to ask, so a single address behaves as ever."""
    servers = Servers([A], BreakerSettings(num_failures=1, cooldown_seconds=60.0))
    for _ in range(3):
        visit = servers.take()
        assert visit is not None
        visit.failed(SIEConnectionError("gone"))
        assert taken(servers) == A


def test_copies_begin_anew() -> None:
    """A copy or a pickle has the addresses, and no opinion of them."""
    servers = Servers([A, B], BreakerSettings(num_failures=1))
    visit = servers.take()
    assert visit is not None
    visit.failed(SIEConnectionError("gone"))
    for twin in (copy.deepcopy(servers), pickle.loads(pickle.dumps(servers))):
        assert twin == servers
        assert set(twin.states.values()) == {"closed"}


# --- the client ----------------------------------------------------------------------------------

Respond = Callable[[httpx.Request], httpx.Response]


def scores(request: httpx.Request) -> httpx.Response:
    """Answer a request for scores."""
    import msgpack

    items = msgpack.unpackb(request.content)["items"]
    entries = [{"item_id": it["id"], "score": float(-i), "rank": i} for i, it in enumerate(items)]
    return httpx.Response(200, json={"model": "m", "query_id": None, "scores": entries})


def refusing(status: int, code: str) -> Respond:
    """Answer with an error of the protocol."""
    content = {"detail": {"code": code, "message": "not now"}}
    return lambda _: httpx.Response(status, json=content, headers={"Retry-After": "30"})


def hanging_up(_: httpx.Request) -> httpx.Response:
    """Answer nothing."""
    message = "connection refused"
    raise httpx.ConnectError(message)


class Cluster:
    """Servers by host, and how often each was asked."""

    def __init__(self, **hosts: Respond) -> None:
        self.hosts = hosts
        self.asked: Counter[str] = Counter()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked[request.url.host] += 1
        return self.hosts[request.url.host](request)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        return self(request)

    @property
    def addresses(self) -> list[str]:
        return [f"http://{host}:1" for host in self.hosts]

    def score(self, *, is_async: bool, num_calls: int = 1, **settings: Any) -> list[Any]:
        """Make calls one after the other, by one client."""
        settings = {"timeout_seconds": 5.0} | settings
        if is_async:
            return asyncio.run(self._score(num_calls, settings))
        transport = httpx.MockTransport(self)
        with SIEClient(self.addresses, transport=transport, **settings) as client:
            return [client.score("m", QUERY, ITEMS)["scores"] for _ in range(num_calls)]

    async def _score(self, num_calls: int, settings: Any) -> list[Any]:
        transport = httpx.MockTransport(self.handle)
        async with SIEAsyncClient(self.addresses, transport=transport, **settings) as client:
            return [(await client.score("m", QUERY, ITEMS))["scores"] for _ in range(num_calls)]


@pytest.fixture(params=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    """Both clients."""
    return request.param == "async"


def test_calls_are_spread(is_async: bool) -> None:
    """Each server gets its share."""
    cluster = Cluster(a=scores, b=scores, c=scores)
    cluster.score(is_async=is_async, num_calls=9)
    assert cluster.asked == {"a": 3, "b": 3, "c": 3}


def test_a_large_call_is_spread_as_well(is_async: bool) -> None:
    """The parts of one call go to several servers, and come together in order."""
    cluster = Cluster(a=scores, b=scores)
    items = [Item(text=f"d{i}") for i in range(2048)]
    transport: Any = httpx.MockTransport(cluster.handle if is_async else cluster)
    if is_async:

        async def call() -> Any:
            async with SIEAsyncClient(cluster.addresses, transport=transport) as client:
                return await client.score("m", QUERY, items)

        result = asyncio.run(call())
    else:
        with SIEClient(cluster.addresses, transport=transport) as client:
            result = client.score("m", QUERY, items)
    assert len(result["scores"]) == 2048
    assert set(cluster.asked) == {"a", "b"}


def test_a_server_that_is_gone_costs_no_call(is_async: bool) -> None:
    """Its calls go to another at once; after three failures it is left alone."""
    cluster = Cluster(a=hanging_up, b=scores)
    answers = cluster.score(is_async=is_async, num_calls=20)
    assert len(answers) == 20
    assert cluster.asked == {"a": 3, "b": 20}


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "QUEUE_FULL"), (503, "MODEL_LOADING"), (503, "RESOURCE_EXHAUSTED"), (502, "")],
)
def test_one_that_is_not_ready_is_passed_over_at_once(
    is_async: bool, status: int, code: str
) -> None:
    """Without the wait that it asked for, and without a word against it where it is alive."""
    cluster = Cluster(a=refusing(status, code), b=scores)
    cluster.score(is_async=is_async, num_calls=2, timeout_seconds=2.0)
    assert cluster.asked["b"] == 2


def test_what_is_wrong_with_a_request_is_wrong_everywhere(is_async: bool) -> None:
    """A refusal that no other server would lift is raised, and asked for once."""
    cluster = Cluster(a=refusing(400, "INVALID_INPUT"), b=refusing(400, "INVALID_INPUT"))
    with pytest.raises(InvalidRequestError):
        cluster.score(is_async=is_async)
    assert cluster.asked.total() == 1


def test_where_none_is_ready_the_policy_of_one_server_holds(is_async: bool) -> None:
    """All are asked, then there is a pause, as long as the call's time allows."""
    cluster = Cluster(a=refusing(503, "QUEUE_FULL"), b=refusing(503, "QUEUE_FULL"))
    with pytest.raises(QueueFullError):
        cluster.score(is_async=is_async, timeout_seconds=1.0)  # it was told to wait for 30 s
    assert cluster.asked == {"a": 1, "b": 1}


def test_where_none_is_there_the_error_says_so(is_async: bool) -> None:
    """Within the time of one server's connection."""
    cluster = Cluster(a=hanging_up, b=hanging_up)
    with pytest.raises((SIEConnectionError, DeadlineExceededError), match="asked"):
        cluster.score(is_async=is_async, connect_timeout_seconds=0.5)
    assert set(cluster.asked) == {"a", "b"}


def test_several_addresses_stand_in_one_string_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With commas between, as in the environment."""
    monkeypatch.setenv("SIE_BASE_URL", f"{A}, {B}/")
    with SIEClient() as client:
        assert client.base_url == f"{A},{B}"
        assert client.server_states == {A: "closed", B: "closed"}


@pytest.mark.parametrize("wrong", [[], [A, A], [A, ""], f"{A},", [A, 5], b"http://a"])
def test_wrong_addresses_are_refused(wrong: Any) -> None:
    """None, twice the same, and what is no address."""
    with pytest.raises(InvalidRequestError, match="base_url must"):
        SIEClient(wrong)


def test_a_server_that_is_killed_and_comes_back(
    serve_command: Callable[..., Any], tiny_bert: Path
) -> None:
    """Real servers, eight threads: no call is lost, and the one that came back is asked again."""
    settings = BreakerSettings(num_failures=2, cooldown_seconds=0.2, max_cooldown_seconds=0.4)
    with ExitStack() as stack:
        (first, process), (second, _) = (
            stack.enter_context(serve_command(f"m={tiny_bert}")) for _ in range(2)
        )
        client = stack.enter_context(SIEClient([first, second], timeout_seconds=30.0))
        client._endpoint.servers.__init__([first, second], settings)  # type: ignore[misc]
        expected = by_id(client.score("m", QUERY, ITEMS)["scores"])
        errors: list[SIEError] = []
        num_right = Counter[bool]()
        is_over = threading.Event()
        stack.callback(is_over.set)  # the threads end with the test, however that ends

        def work() -> None:
            while not is_over.is_set():
                try:
                    found = client.score("m", QUERY, ITEMS)["scores"]
                except SIEError as exc:
                    errors.append(exc)
                else:
                    num_right[{it["item_id"]: it["score"] for it in found} == expected] += 1

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        wait_for(lambda: client.server_states[first] != "closed")
        port = first.rpartition(":")[2]
        stack.enter_context(serve_command(f"m={tiny_bert}", "--port", port))
        wait_for(lambda: client.server_states[first] == "closed")
        is_over.set()
        for thread in threads:
            thread.join(30)
        assert errors == []
        assert num_right[True] > 20
        assert not num_right[False]


def by_id(entries: Any) -> Any:
    """Scores by id, within what a batch's company may change."""
    return {it["item_id"]: pytest.approx(it["score"], abs=1e-3) for it in entries}


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen in time")
