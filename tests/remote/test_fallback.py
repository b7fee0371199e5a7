"""Chains of clients: who is asked, who answers, and what the answer says of itself."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sie_core.breaker import Breaker
from sie_core.errors import (
    CircuitOpenError,
    ClientClosedError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    MissingDependencyError,
    ModelNotFoundError,
    QueueFullError,
    SIEConnectionError,
)
from sie_core.fallback import AsyncFallbackClient, Backend, FallbackClient
from sie_core.remote import SIEAsyncClient, SIEClient
from sie_core.settings import BreakerSettings
from sie_core.types import Item

QUERY = Item(id="q1", text="q")
ITEMS = [Item(id="a", text="1"), Item(id="b", text="2")]
DOWN = SIEConnectionError("no server")


class Fake:
    """A client written by hand: answers, or raises what it was given."""

    def __init__(self, *outcomes: Any, base_url: str = "fake") -> None:
        self.base_url = base_url
        self.outcomes = list(outcomes)
        self.calls: list[tuple[Any, ...]] = []
        self.is_closed = False

    def score(self, model: str, query: Item, items: list[Item], **arguments: Any) -> Any:
        """Do what comes next; the last outcome stays."""
        self.calls.append((model, query, items, arguments))
        outcome = self.outcomes[min(len(self.calls), len(self.outcomes)) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return scores() if outcome is None else outcome

    def close(self) -> None:
        """Remember."""
        self.is_closed = True


class Blocked(Fake):
    """Answers when released."""

    def __init__(self, *outcomes: Any, base_url: str = "slow") -> None:
        super().__init__(*outcomes, base_url=base_url)
        self.asked = threading.Event()
        self.released = threading.Event()

    def score(self, model: str, query: Item, items: list[Item], **arguments: Any) -> Any:
        """Wait, then do what comes next."""
        self.asked.set()
        assert self.released.wait(10)
        return super().score(model, query, items, **arguments)


class Slow(Fake):
    """Needs all the time that it is given, and then does what comes next."""

    def score(self, model: str, query: Item, items: list[Item], **arguments: Any) -> Any:
        """Wait until the time is up."""
        time.sleep(arguments["timeout_seconds"])
        return super().score(model, query, items, **arguments)


def scores(**changed: float) -> dict[str, Any]:
    """Make a right answer."""
    found = {"a": 2.0, "b": 1.0, **changed}
    entries = [{"item_id": name, "score": score, "rank": 0} for name, score in found.items()]
    return {"model": "m", "query_id": "q1", "scores": entries}


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Make chains of one kind, and call them."""

    class Asker:
        """Both kinds of chain behind the synchronous call."""

        def __call__(self, backends: list[Any], **options: Any) -> Any:
            """Make a chain."""
            chain_class = FallbackClient if request.param == "sync" else AsyncFallbackClient
            return chain_class(backends, **options)

        @staticmethod
        def score(chain: Any, **arguments: Any) -> Any:
            """Call it."""
            answer = chain.score("m", QUERY, ITEMS, **arguments)
            return asyncio.run(_await(answer)) if inspect.isawaitable(answer) else answer

    return Asker()  # type: ignore[return-value]


async def _await(answer: Any) -> Any:
    return await answer


def test_the_first_backend_answers(ask: Any) -> None:
    """Where all is well, nobody else is asked, and the answer is complete."""
    first, second = Fake(None, base_url="http://one"), Fake(None)
    result = ask.score(ask([first, second]))
    assert result["status"] == "complete"
    assert result["served_by"] == "http://one"
    assert "reason" not in result
    assert result["scores"] == scores()["scores"]
    assert second.calls == []


@pytest.mark.parametrize(
    "failure",
    [
        DOWN,
        QueueFullError("full"),
        ModelNotFoundError("not here"),
        DeadlineExceededError("late"),
        OSError("foreign"),
        RuntimeError("foreign"),
        scores(a=float("nan")),
        {"model": "m", "scores": [{"item_id": "a", "score": 1.0}]},
        {"model": "m", "scores": [{"item_id": "a", "score": 1.0}] * 2},
        {"model": "m"},
        "nonsense",
    ],
)
def test_the_next_backend_answers_for_one_that_fails(failure: Any, ask: Any) -> None:
    """Errors of any origin, and answers not to be trusted, lead to the next backend."""
    result = ask.score(ask([Fake(failure, base_url="http://one"), Fake(None, base_url="two")]))
    assert result["status"] == "complete"
    assert result["served_by"] == "two"
    assert result["reason"].startswith("http://one: ")


def test_the_callers_mistake_is_not_passed_on(ask: Any) -> None:
    """A wrong argument is raised at once; it says nothing of the backend's health."""
    second = Fake(None)
    chain = ask([Fake(InvalidRequestError("wrong")), second])
    for _ in range(5):
        with pytest.raises(InvalidRequestError, match="wrong"):
            ask.score(chain)
    assert second.calls == []
    assert chain.states["fake"] == "closed"


@pytest.mark.parametrize("error", [TypeError("oops"), ClientClosedError("closed")])
def test_a_bug_is_not_hidden(error: Exception, ask: Any) -> None:
    """Mistakes in the program are raised, not answered for by another backend."""
    with pytest.raises(type(error)):
        ask.score(ask([Fake(error), Fake(None)]))


def test_scores_are_named_as_the_client_that_gave_them_names_them(ask: Any) -> None:
    """A score cache then finds them again, before as after the chain has answered."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=scores()))
    with SIEClient("http://one", options={"max_length": 8}, transport=transport) as client:
        chain = ask([client])
        assert ask.score(chain)["source"] == chain.source_of("m", None) == client.source_of("m")
        assert client.source_of("m") != client.base_url


def test_retrieval_order_is_said_to_be_degraded(ask: Any) -> None:
    """The last resort makes no scores up."""
    result = ask.score(ask([Fake(DOWN, base_url="http://one"), "retrieval_order"]))
    assert result == {
        "model": "m",
        "query_id": "q1",
        "scores": [],
        "status": "degraded",
        "served_by": "retrieval_order",
        "reason": "http://one: SIEConnectionError: no server",
    }


def test_another_model_is_said_to_be_degraded(ask: Any) -> None:
    """A backend with a model of its own is asked for that, and the answer says so."""
    small = Fake(None, base_url="small")
    result = ask.score(ask([Fake(DOWN), Backend(client=small, model="tiny", name="backup")]))
    assert small.calls[0][0] == "tiny"
    assert result["status"] == "degraded"
    assert result["served_by"] == "backup"
    assert result["reason"].endswith("scored with tiny")


def test_if_nobody_answers_the_first_error_is_raised(ask: Any) -> None:
    """The error is the one that the first backend gave, with notes on the others."""
    second = Fake(InvalidRequestError("unknown option"), base_url="two")
    with pytest.raises(SIEConnectionError, match="no server") as caught:
        ask.score(ask([Fake(SIEConnectionError("no server")), second]))
    assert caught.value.__notes__ == ["two: InvalidRequestError: unknown option"]


def test_what_the_caller_left_out_is_not_passed_on(ask: Any) -> None:
    """A backend gets the arguments that were given, and the time that is left."""
    client = Fake(None)
    ask.score(ask([client]), instruction="find", options={"a": 1}, timeout_seconds=9)
    arguments = client.calls[0][3]
    assert 8 < arguments.pop("timeout_seconds") <= 9
    assert arguments == {"instruction": "find", "options": {"a": 1}}


def test_a_client_that_knows_no_times_is_not_given_any(ask: Any) -> None:
    """Other clients of the same call shape take part, though they lack our extra arguments."""

    class Foreign:
        """As another package's client."""

        def score(
            self,
            model: str,
            query: Item,
            items: list[Item],
            *,
            instruction: str | None = None,
            gpu: str | None = None,
        ) -> Any:
            """Answer."""
            del model, query, items
            return {**scores(), "seen": (instruction, gpu)}

    result = ask.score(
        ask([Foreign()]), instruction="i", gpu="l4", timeout_seconds=5, wait_for_capacity=True
    )
    assert result["seen"] == ("i", "l4")
    assert result["served_by"] == "Foreign"


def test_the_deadline_bounds_the_chain(ask: Any) -> None:
    """With no time left nobody else is asked, and nobody is blamed; retrieval order needs none."""
    second, late = Fake(None, base_url="two"), DeadlineExceededError("late")
    with pytest.raises(DeadlineExceededError):
        ask.score(ask([Slow(late), second], timeout_seconds=0.1))
    assert second.calls == []
    chain = ask([Slow(late), second, "retrieval_order"], timeout_seconds=0.1)
    assert ask.score(chain)["status"] == "degraded"
    assert chain.states["two"] == "closed"


def test_a_client_that_knows_no_times_is_bounded_all_the_same(ask: Any) -> None:
    """It is left behind when the chain's time is up, and retrieval order stands in."""
    released = threading.Event()

    class Stubborn:
        """Answers when released, whatever the time."""

        def score(self, *_: Any) -> Any:
            """Wait."""
            released.wait(30)
            return scores()

    timer = threading.Timer(0.5, released.set)  # or asyncio, which waits for its threads, would not
    timer.start()
    result = ask.score(ask([Stubborn(), "retrieval_order"], timeout_seconds=0.05))
    assert result["status"] == "degraded"
    assert "timeout of 0.05 s passed while asking Stubborn" in result["reason"]
    timer.cancel()
    released.set()


def test_a_call_in_a_hurry_speaks_against_nobody(ask: Any) -> None:
    """A backend that had less time than others have is not unwell; one that had all of it is."""
    slow = Slow(DeadlineExceededError("late"), base_url="one")
    breaker = BreakerSettings(num_failures=2, cooldown_seconds=60)
    chain = ask([slow, "retrieval_order"], timeout_seconds=0.05, breaker=breaker)
    for _ in range(3):
        ask.score(chain, timeout_seconds=0.01)
    assert chain.states["one"] == "closed"
    for _ in range(2):
        ask.score(chain)
    assert chain.states["one"] == "open"


def test_a_failing_backend_is_left_alone(ask: Any) -> None:
    """After some failures in a row a backend is not asked any more, visibly."""
    first, second = Fake(DOWN, base_url="one"), Fake(None, base_url="two")
    chain = ask([first, second], breaker=BreakerSettings(num_failures=3, cooldown_seconds=60))
    for _ in range(5):
        result = ask.score(chain)
        assert result["served_by"] == "two"
    assert len(first.calls) == 3
    assert chain.states == {"one": "open", "two": "closed"}
    assert result["reason"] == "one: not asked after SIEConnectionError: no server"


def test_with_all_circuits_open_nobody_is_asked(ask: Any) -> None:
    """Then the call fails at once, and says why."""
    client = Fake(DOWN)
    chain = ask([client], breaker=BreakerSettings(num_failures=1, cooldown_seconds=60))
    with pytest.raises(SIEConnectionError):
        ask.score(chain)
    with pytest.raises(CircuitOpenError, match="no server"):
        ask.score(chain)
    assert len(client.calls) == 1


def test_a_recovered_backend_is_used_again(ask: Any) -> None:
    """After its rest a probe goes through, and an answer closes the circuit."""
    client = Fake(DOWN, None)
    chain = ask([client], breaker=BreakerSettings(num_failures=1, cooldown_seconds=0.05))
    with pytest.raises(SIEConnectionError):
        ask.score(chain)
    rested = threading.Event()
    for _ in range(500):
        if chain.states["fake"] != "open":
            break
        rested.wait(0.01)
    assert chain.states["fake"] == "half-open"
    assert ask.score(chain)["status"] == "complete"
    assert chain.states["fake"] == "closed"


class Clock:
    """Time that passes when told."""

    now = 0.0

    def __call__(self) -> float:
        """Return it."""
        return self.now


def test_one_probe_at_a_time_and_longer_rests() -> None:
    """Half-open admits one caller; a failed probe doubles the rest, up to the maximum."""
    clock = Clock()
    settings = BreakerSettings(num_failures=2, cooldown_seconds=10, max_cooldown_seconds=25)
    breaker = Breaker(settings, clock)
    for _ in range(2):
        assert breaker.admits()
        breaker.failed(DOWN)
    states: list[str] = []
    for rest in (10, 20, 25, 25):
        states.append(breaker.state)
        clock.now += rest - 1
        assert not breaker.admits()
        clock.now += 1
        states.append(breaker.state)
        assert breaker.admits()
        assert not breaker.admits()
        breaker.failed(DOWN)
    assert states == ["open", "half-open"] * 4
    clock.now += 25
    assert breaker.admits()
    breaker.abandoned()
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.state == "closed"
    breaker.failed(DOWN)
    assert breaker.state == "closed"


@given(st.lists(st.sampled_from(["ask", "succeed", "fail", "abandon", "wait"]), max_size=60))
def test_a_breaker_never_locks_out_for_good(events: list[str]) -> None:
    """Whatever happened, after the longest rest a call is admitted, once all have reported."""
    clock = Clock()
    breaker = Breaker(BreakerSettings(max_cooldown_seconds=60), clock)
    for event in events:
        if event == "ask":
            breaker.admits()
        elif event == "wait":
            clock.now += 1
        else:
            {
                "succeed": breaker.succeeded,
                "fail": lambda: breaker.failed(DOWN),
                "abandon": breaker.abandoned,
            }[event]()
    breaker.abandoned()
    clock.now += 60
    assert breaker.admits()


def test_a_slow_backend_is_hedged(ask: Any) -> None:
    """After the time given the next is asked as well, and the first answer is taken."""
    slow = Blocked(None)

    class Fast(Fake):
        """Answers, and some time later lets the slow one go: its thread is waited for."""

        def score(self, *arguments: Any, **named: Any) -> Any:
            """Answer."""
            threading.Timer(0.2, slow.released.set).start()
            return super().score(*arguments, **named)

    chain = ask([slow, Fast(None, base_url="fast")], hedge_after_ms=20)
    result = ask.score(chain, timeout_seconds=30)
    assert result["served_by"] == "fast"
    assert slow.asked.is_set()


def test_a_quick_backend_is_not_hedged(ask: Any) -> None:
    """Nobody else is asked where the first answers in time."""
    second = Fake(None)
    result = ask.score(ask([Fake(None, base_url="one"), second], hedge_after_ms=5000))
    assert result["served_by"] == "one"
    assert second.calls == []


def test_a_hedge_that_fails_does_not_end_the_call(ask: Any) -> None:
    """The slow one may still answer; retrieval order is not preferred to it."""
    slow = Blocked(None)

    class Failing(Fake):
        """Fails, and lets the slow one go."""

        def score(self, *arguments: Any, **named: Any) -> Any:
            """Fail."""
            slow.released.set()
            return super().score(*arguments, **named)

    chain = ask([slow, Failing(DOWN, base_url="two"), "retrieval_order"], hedge_after_ms=20)
    result = ask.score(chain)
    assert result["served_by"] == "slow"
    assert result["status"] == "complete"


def test_a_failure_does_not_wait_for_the_hedge(ask: Any) -> None:
    """Where the first fails at once, the next is asked at once."""
    started = time.perf_counter()
    result = ask.score(ask([Fake(DOWN), Fake(None, base_url="two")], hedge_after_ms=20_000))
    assert result["served_by"] == "two"
    assert time.perf_counter() - started < 5


async def test_the_loser_of_a_race_is_cancelled() -> None:
    """An asynchronous backend that lost does not go on working."""
    cancelled = asyncio.Event()

    class Endless:
        """Never answers."""

        async def score(self, *_: Any, **__: Any) -> Any:
            """Wait for ever."""
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async with AsyncFallbackClient([Endless(), Fake(None)], hedge_after_ms=10) as chain:
        result = await chain.score("m", QUERY, ITEMS)
    assert result["served_by"] == "fake"
    assert cancelled.is_set()
    assert chain.states["Endless"] == "closed"


async def test_addresses_become_clients(serve: Any) -> None:
    """A chain of addresses goes from a dead server to one that lives."""

    async def answer(x: Any) -> None:
        await x.answer()

    server = serve(answer)
    with FallbackClient(["http://127.0.0.1:1", server.url]) as chain:
        result = await asyncio.to_thread(chain.score, "m", QUERY, ITEMS)
    async with AsyncFallbackClient(["http://127.0.0.1:1/", server.url]) as async_chain:
        assert (await async_chain.score("m", QUERY, ITEMS))["scores"] == result["scores"]
        assert list(async_chain.states) == ["http://127.0.0.1:1", server.url]
    assert result["served_by"] == server.url
    assert [entry["item_id"] for entry in result["scores"]] == ["a", "b"]
    assert "127.0.0.1:1: SIEConnectionError" in result["reason"]


def test_a_backend_whose_extra_is_missing_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    """`local` without its dependencies is a failure like any other, and said."""

    def refuse(name: str) -> Any:
        msg = f"pip install 'sie-core[local]' ({name})"
        raise MissingDependencyError(msg)

    monkeypatch.setattr("sie_core.fallback.importlib.import_module", refuse)
    result = ask.score(ask([Fake(DOWN), "local", "retrieval_order"]))
    assert "local: MissingDependencyError: pip install" in result["reason"]


def test_given_clients_stay_the_callers() -> None:
    """A chain closes what it made, and nothing else."""
    given_client = Fake(None)
    chain = FallbackClient([given_client, "http://127.0.0.1:1"])
    chain.close()
    chain.close()
    assert not given_client.is_closed
    with pytest.raises(ClientClosedError):
        chain.score("m", QUERY, ITEMS)


@pytest.mark.parametrize("client_class", [SIEClient, SIEAsyncClient])
def test_chains_can_be_copied_and_pickled(client_class: Any) -> None:
    """A copy has the same backends, and has seen no failures."""
    chain_class = FallbackClient if client_class is SIEClient else AsyncFallbackClient
    chain = chain_class(
        [client_class("http://one"), Backend(client="http://two", name="2"), "retrieval_order"],
        hedge_after_ms=5,
        timeout_seconds=7,
    )
    chain._links[0].breaker.failed(DOWN)
    for twin in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert repr(twin) == repr(chain)
        assert (twin.hedge_after_ms, twin.timeout_seconds) == (5, 7)
        assert twin.states == {"http://one": "closed", "2": "closed"}
        assert twin._links[0].made is not chain._links[0].made


@pytest.mark.parametrize(
    ("backends", "options"),
    [
        ([], {}),
        ("http://one", {}),
        (["localhost:80"], {}),
        (["retrieval_order", "local"], {}),
        ([object()], {}),
        (["local"], {"hedge_after_ms": 0}),
        (["local"], {"timeout_seconds": -1}),
    ],
)
def test_wrong_arguments_are_refused(backends: Any, options: dict[str, Any], ask: Any) -> None:
    """The constructor says what is wrong."""
    with pytest.raises(InvalidRequestError):
        ask(backends, **options)


def test_a_chain_does_not_import_torch_before_it_is_needed() -> None:
    """`local` at the end of a chain costs nothing until somebody has to answer."""
    code = (
        "import sys; from sie_core.fallback import FallbackClient; "
        "FallbackClient(['http://127.0.0.1:1', 'local', 'retrieval_order']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_chain_distrusts_it_names(ask: Any) -> None:
    """An answer that leaves documents out is the backend's failure, whoever it is."""
    with pytest.raises(InvalidResponseError, match="no score for 1 of 2"):
        ask.score(ask([Fake({"model": "m", "scores": [{"item_id": "a", "score": 1.0}]})]))
