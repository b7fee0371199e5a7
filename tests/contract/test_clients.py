"""What every backend does. The numbers are those of the behaviours in docs/behaviours.md."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from typing import Any

import pytest

from sie_core.errors import DeadlineExceededError, InvalidRequestError
from sie_core.types import Item

QUERY = "how many people live in berlin"
TEXTS = ["berlin museum", "population of the city 😀", "", "river " * 600, "the band of the year"]


def items(texts: list[str]) -> list[Item]:
    """Make items with ids that are not their positions."""
    return [Item(id=f"id-{7 * i}", text=text) for i, text in enumerate(texts)]


def by_id(result: Any) -> dict[str, float]:
    """Map item ids to scores."""
    return {entry["item_id"]: entry["score"] for entry in result["scores"]}


def test_1_every_id_is_answered_exactly_once(client: Any) -> None:
    """The reply has one finite score per id sent, and no other id."""
    result = client.score(QUERY, items(TEXTS))
    assert sorted(by_id(result)) == sorted(item["id"] for item in items(TEXTS))
    assert len(result["scores"]) == len(TEXTS)


def test_1_scores_follow_ids_not_positions(client: Any) -> None:
    """Sending the same items in another order changes no item's score."""
    expected = by_id(client.score(QUERY, items(TEXTS)))
    shuffled = items(TEXTS)
    random.Random(3).shuffle(shuffled)
    assert by_id(client.score(QUERY, shuffled)) == pytest.approx(expected, abs=client.tolerance)


def test_2_ties_keep_the_order_sent(client: Any) -> None:
    """Items with the same text have the same score and stay in order."""
    same = [Item(id=f"id-{i}", text="berlin") for i in (5, 3, 9, 1)]
    result = client.score(QUERY, same)
    assert [entry["item_id"] for entry in result["scores"]] == ["id-5", "id-3", "id-9", "id-1"]
    assert len(set(by_id(result).values())) == 1


def test_3_items_are_not_changed(client: Any) -> None:
    """Query and items are as before."""
    sent = items(TEXTS)
    before = copy.deepcopy(sent)
    client.score(QUERY, sent)
    assert sent == before


@pytest.mark.parametrize("count", [0, 1, 300])
def test_5_any_number_of_items_takes_the_same_path(client: Any, count: int) -> None:
    """None, one or hundreds: as many scores as items, ranked from 0."""
    result = client.score(QUERY, items([f"berlin {i}" for i in range(count)]))
    assert [entry["rank"] for entry in result["scores"]] == list(range(count))


def test_6_an_empty_document_is_scored_as_a_pair(client: Any) -> None:
    """A document without text has a score that depends on the query."""
    scores = {
        by_id(client.score(query, [Item(id="empty", text="")]))["empty"]
        for query in ("berlin", "how tall is the tower")
    }
    assert len(scores) == 2


def test_7_solo_batched_and_shared_scoring_agree(client: Any) -> None:
    """An item's score is the same alone, in a batch, and with 8 threads at work."""
    expected = {item["id"]: by_id(client.score(QUERY, [item]))[item["id"]] for item in items(TEXTS)}
    results: list[dict[str, float]] = []
    threads = [
        threading.Thread(target=lambda: results.append(by_id(client.score(QUERY, items(TEXTS)))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        assert result == pytest.approx(expected, abs=client.tolerance)


def test_8_truncation_is_counted(client: Any) -> None:
    """The reply says how many items lost their end."""
    assert client.score(QUERY, items(TEXTS))["usage"]["truncated_items"] == 1
    assert client.score(QUERY, items(TEXTS[:3]))["usage"]["truncated_items"] == 0


def test_9_a_deadline_bounds_the_call(client: Any) -> None:
    """A time that cannot suffice is a DeadlineExceededError, which is a TimeoutError."""
    with pytest.raises(DeadlineExceededError, match="timeout of 1e-05 s passed") as caught:
        client.score(QUERY, items(TEXTS * 40), timeout_seconds=1e-5)
    assert isinstance(caught.value, TimeoutError)


def test_12_copies_give_the_same_scores(client: Any) -> None:
    """Deepcopy and pickle make clients that work."""
    expected = by_id(client.score(QUERY, items(TEXTS)))
    for twin in (copy.deepcopy(client), pickle.loads(pickle.dumps(client))):
        assert by_id(twin.score(QUERY, items(TEXTS))) == pytest.approx(
            expected, abs=client.tolerance
        )


@pytest.mark.parametrize("bad", [["bare"], [{"id": 3, "text": "a"}], [{"text": 5}]])
def test_bad_items_are_refused_before_anything_is_computed(client: Any, bad: list[Any]) -> None:
    """Bare strings, and ids or texts that are no strings, are named."""
    with pytest.raises(InvalidRequestError, match=r"items\[0\]"):
        client.score(QUERY, bad)
