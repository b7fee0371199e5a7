"""What happens under load: queues, those who leave, workers, and memory that stays the same."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import DeadlineExceededError, QueueFullError
from sie_core.local import LocalAsyncClient, LocalClient, release
from sie_core.local.encoder import PairEncoder
from sie_core.local.registry import REGISTRY, LoadedModel
from sie_core.local.tokenization import Pair
from sie_core.types import Item

PATIENCE_SECONDS = 60
QUERY = Item(text="what is python")


def items(count: int) -> list[Item]:
    """Make different documents of some twenty tokens."""
    return [Item(text=f"{i} the city of berlin " + "museum " * 12) for i in range(count)]


class Gate:
    """Holds every batch of every model until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.has_begun = threading.Semaphore(0)

    def wrap(self, open_worker: Callable[[PairEncoder], Any]) -> Callable[[PairEncoder], Any]:
        """Hold what `open_worker` opens."""

        def open_held(encoder: PairEncoder) -> Callable[[Sequence[Pair]], list[float]]:
            forward = open_worker(encoder)

            def hold(pairs: Sequence[Pair]) -> list[float]:
                self.has_begun.release()
                assert self.is_open.wait(PATIENCE_SECONDS)
                scores: list[float] = forward(pairs)
                return scores

            return hold

        return open_held


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate before the forward pass of models that are loaded during the test."""
    release()
    gate = Gate()
    monkeypatch.setattr(PairEncoder, "open_worker", gate.wrap(PairEncoder.open_worker))
    yield gate
    gate.is_open.set()
    release()


def loaded_model(client: LocalClient) -> LoadedModel:
    """Return the one model that a client has loaded."""
    [model] = REGISTRY.loaded(holder=client).values()
    return model


def pair_encoder(client: LocalClient) -> PairEncoder:
    """Return the one cross-encoder that a client has loaded."""
    model = loaded_model(client).model
    assert isinstance(model, PairEncoder)
    return model


def queued(client: LocalClient) -> int:
    """Count the tokens that wait."""
    return loaded_model(client).scheduler.stats().num_queued_tokens


def await_batch(gate: Gate) -> None:
    """Wait until a batch has begun."""
    assert gate.has_begun.acquire(timeout=PATIENCE_SECONDS)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start `call`; what it returns or raises comes into the list."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except Exception as exc:  # noqa: BLE001  the test looks at it
            outcome.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def test_a_full_queue_refuses_the_next_call(tiny_bert: Path, gate: Gate) -> None:
    """The bound is the client's own: another client of the same model may wait."""
    model = str(tiny_bert)
    bounded = LocalClient(num_threads=1, max_batch_tokens=100, max_queued_tokens=1000)
    patient = LocalClient(num_threads=1, max_batch_tokens=100)
    first, scores = in_thread(lambda: bounded.score(model, QUERY, items(300)))
    await_batch(gate)
    assert queued(bounded) > 1000
    with pytest.raises(QueueFullError, match=r"tokens of 1 call wait.*max_queued_tokens=1,000"):
        bounded.score(model, QUERY, items(1))
    second, more = in_thread(lambda: patient.score(model, QUERY, items(1)))
    gate.is_open.set()
    first.join()
    second.join()
    assert len(scores[0]["scores"]) == 300
    assert len(more[0]["scores"]) == 1
    assert bounded.score(model, QUERY, items(1))["scores"]


def test_a_caller_whose_time_is_up_leaves_no_work(tiny_bert: Path, gate: Gate) -> None:
    """The deadline passes while batches wait: they are dropped when the caller is told."""
    client = LocalClient(num_threads=1, max_batch_tokens=100)
    client.load(str(tiny_bert)).result(PATIENCE_SECONDS)
    with pytest.raises(DeadlineExceededError, match="passed while scoring 200 items"):
        client.score(str(tiny_bert), QUERY, items(200), timeout_seconds=0.2)
    assert queued(client) == 0
    gate.is_open.set()
    client.close()  # ends the threads, and with them the batch under way
    num_begun = sum(gate.has_begun.acquire(blocking=False) for _ in range(3))
    assert num_begun == 1


async def test_a_cancelled_task_leaves_no_work(tiny_bert: Path, gate: Gate) -> None:
    """What waits of a cancelled task is dropped before any batch ends; others are served."""
    local = LocalClient(num_threads=1, max_batch_tokens=100)
    client, model = LocalAsyncClient(local), str(tiny_bert)
    left = asyncio.create_task(client.score(model, QUERY, items(200)))
    await asyncio.to_thread(await_batch, gate)
    stayed = asyncio.create_task(client.score(model, QUERY, items(3)))
    before = queued(local)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert queued(local) < before / 10
    gate.is_open.set()
    assert len((await stayed)["scores"]) == 3
    assert loaded_model(local).scheduler.stats().num_sequences < 30


async def test_an_async_deadline_leaves_no_work(tiny_bert: Path, gate: Gate) -> None:
    """As in sync code."""
    local = LocalClient(num_threads=1, max_batch_tokens=100)
    local.load(str(tiny_bert)).result(PATIENCE_SECONDS)
    with pytest.raises(DeadlineExceededError, match="passed while scoring 200 items"):
        await LocalAsyncClient(local).score(str(tiny_bert), QUERY, items(200), timeout_seconds=0.2)
    assert queued(local) == 0
    assert not gate.is_open.is_set()


async def test_the_event_loop_goes_on_while_a_model_computes(tiny_bert: Path, gate: Gate) -> None:
    """With every batch held up, the loop still runs what else there is."""
    client = LocalAsyncClient(LocalClient(num_threads=1))
    scoring = asyncio.create_task(client.score(str(tiny_bert), QUERY, items(3)))
    await asyncio.to_thread(await_batch, gate)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not scoring.done()
    gate.is_open.set()
    assert len((await scoring)["scores"]) == 3


@pytest.mark.usefixtures("released")
def test_warm_up_runs_every_worker(tiny_bert: Path) -> None:
    """Three workers have each run a batch before the first call; sync and async."""
    clients = [LocalClient(num_threads=3), LocalClient(num_threads=2)]
    clients[0].warm_up(str(tiny_bert))
    asyncio.run(LocalAsyncClient(clients[1]).warm_up(str(tiny_bert)))
    counts = [loaded_model(client).scheduler.stats().num_batches for client in clients]
    assert counts == [3, 2]


@pytest.mark.usefixtures("released")
def test_a_warm_up_has_a_deadline(tiny_bert: Path) -> None:
    """Loading counts against it, and goes on for the next call."""
    client = LocalClient()
    with pytest.raises(DeadlineExceededError, match="passed while loading"):
        client.warm_up(str(tiny_bert), timeout_seconds=1e-4)
    client.warm_up(str(tiny_bert))


@pytest.mark.usefixtures("released")
def test_what_was_chosen_is_logged_once_and_can_be_read(
    tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each loaded model; the same from the client, and the facts in its repr."""
    client = LocalClient(device="cpu", mode="exact", num_threads=2)
    assert client.loaded() == {}
    with caplog.at_level(logging.INFO, logger="sie_core"):
        client.score(str(tiny_bert), QUERY, items(2))
        LocalClient(device="cpu", dtype="float32", num_threads=2).score(
            str(tiny_bert), QUERY, items(2)
        )
    [message] = [r.getMessage() for r in caplog.records if " runs " in r.getMessage()]
    description = (
        "exact on cpu: float32 (as mode='exact' asks for), 2 workers (of one thread each, as "
        "num_threads=2 asks for)"
    )
    computed_by = loaded_model(client).model.computed_by
    assert client.describe() == description
    assert message == f"{tiny_bert} runs {description}, computed by {computed_by}"
    assert client.loaded() == {str(tiny_bert.resolve()): message.partition(" runs ")[2]}
    assert repr(client) == (
        "LocalClient(device='cpu', mode='exact', dtype='float32', num_workers=2)"
    )


@pytest.mark.usefixtures("released")
def test_modes_and_workers_are_models_of_their_own(tiny_bert: Path) -> None:
    """What computes differently is loaded apart; what comes to the same is shared."""
    clients = [
        LocalClient(mode="exact", num_threads=1),
        LocalClient(dtype="float32", num_threads=1),
        LocalClient(dtype="bfloat16", num_threads=1),
        LocalClient(mode="exact", num_threads=2),
    ]
    for client in clients:
        client.score(str(tiny_bert), QUERY, items(2))
    assert len(REGISTRY.loaded()) == 3


@pytest.mark.usefixtures("released")
def test_a_client_sets_the_size_of_the_token_cache(tiny_bert: Path) -> None:
    """Who names a size sets it for the model; who does not leaves it as it is."""
    model = str(tiny_bert)
    usual = LocalClient()
    for client, num_texts in (
        (usual, 4),
        (LocalClient(token_cache_bytes=0), 0),
        (usual, 0),
        (LocalClient(token_cache_bytes=1_000_000), 4),
        (usual, 4),
    ):
        client.score(model, QUERY, items(4))
        assert pair_encoder(client).tokenizer.cache.stats().num_texts == num_texts


def test_numbers_of_threads_give_the_same_scores(tiny_bert: Path) -> None:
    """One worker or five: exact scores agree within 1e-4."""
    scored = [
        {
            entry["item_id"]: entry["score"]
            for entry in LocalClient(mode="exact", num_threads=count, max_batch_tokens=200).score(
                str(tiny_bert), QUERY, items(60)
            )["scores"]
        }
        for count in (1, 5)
    ]
    assert scored[0] == pytest.approx(scored[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_after_10_000_calls_is_that_after_1_000(tiny_bert: Path) -> None:
    """Calls of random sizes, new texts in each, from four threads: within 5%."""
    script = Path(__file__).with_name("resident_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), "--model", str(tiny_bert)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 10000 calls" in done.stdout
