"""What every encoding backend does, over one model of every family that encodes."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sie_core import LocalAsyncClient, LocalClient
from sie_core.errors import DeadlineExceededError, InvalidRequestError
from sie_core.types import Item

TEXTS = ["berlin museum", "population of the city 😀", "", "river " * 300, "the band of the year"]
TOLERANCE = 1e-4


@dataclass
class Encoder:
    """A client and a model of it; in float32."""

    client: Any
    model: str
    output: str

    def encode(self, items: Any, **options: Any) -> Any:
        """Encode, and wait for it where that is needed."""
        given = self.client.encode(self.model, items, **options)
        return given if isinstance(self.client, LocalClient) else asyncio.run(_await(given))

    def vectors(self, texts: Sequence[str], **options: Any) -> list[Any]:
        """Return the arrays of a call with ids that are not positions."""
        items = [Item(id=f"id-{7 * i}", text=text) for i, text in enumerate(texts)]
        return [result[self.output] for result in self.encode(items, **options)]


async def _await(coroutine: Any) -> Any:
    return await coroutine


_FAMILIES = {"mean": "dense", "cls": "dense", "ColBERT": "multivector"}


@pytest.fixture(params=[f"{face}-{family}" for family in _FAMILIES for face in ("sync", "async")])
def encoder(
    request: pytest.FixtureRequest, make_sentence_encoder: Callable[..., Path], tiny_colbert: Path
) -> Encoder:
    """Each client's face in turn, with each family in turn."""
    face, _, family = request.param.partition("-")
    output = _FAMILIES[family]
    folder = tiny_colbert if output == "multivector" else make_sentence_encoder(pooling=family)
    client: Any = LocalClient(mode="exact", device="cpu")
    return Encoder(client if face == "sync" else LocalAsyncClient(client), str(folder), output)


def test_every_item_is_answered_in_its_place(encoder: Encoder) -> None:
    """In another order the same arrays come in that order; one item gives one result."""
    expected = encoder.vectors(TEXTS)
    for found, wanted in zip(encoder.vectors(TEXTS[::-1]), expected[::-1], strict=True):
        assert np.allclose(found, wanted, atol=TOLERANCE)
    alone = encoder.encode(Item(text=TEXTS[0]))
    assert np.allclose(alone[encoder.output], expected[0], atol=TOLERANCE)
    assert not np.allclose(expected[0][:1], expected[1][:1], atol=0.01)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_items_takes_the_same_path(encoder: Encoder, count: int) -> None:
    """None, one or hundreds: as many results as items, all finite."""
    vectors = encoder.vectors([f"berlin {i}" for i in range(count)])
    assert len(vectors) == count
    assert all(np.isfinite(vector).all() for vector in vectors)


def test_items_are_not_changed(encoder: Encoder) -> None:
    """They are as before."""
    sent = [Item(id="a", text="berlin"), Item(id="b", text="")]
    before = copy.deepcopy(sent)
    encoder.encode(sent)
    assert sent == before


def test_solo_batched_and_shared_encoding_agree(encoder: Encoder) -> None:
    """An item's array is the same alone, in a batch, and with 6 threads at work."""
    expected = [encoder.vectors([text])[0] for text in TEXTS]
    results: list[list[Any]] = []
    threads = [
        threading.Thread(target=lambda: results.append(encoder.vectors(TEXTS))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for result in results:
        for found, wanted in zip(result, expected, strict=True):
            assert np.allclose(found, wanted, atol=TOLERANCE)


def test_a_deadline_bounds_the_call(encoder: Encoder) -> None:
    """A time that cannot suffice is a DeadlineExceededError."""
    with pytest.raises(DeadlineExceededError, match="timeout of 1e-05 s passed"):
        encoder.vectors(TEXTS * 40, timeout_seconds=1e-5)


def test_copies_give_the_same_vectors(encoder: Encoder) -> None:
    """Deepcopy and pickle make clients that work."""
    expected = encoder.vectors(TEXTS)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder.client))):
        again = twin if isinstance(twin, Encoder) else Encoder(twin, encoder.model, encoder.output)
        for found, wanted in zip(again.vectors(TEXTS), expected, strict=True):
            assert np.allclose(found, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("bad", [["bare"], [{"id": 3, "text": "a"}], [{"text": 5}]])
def test_bad_items_are_refused_before_anything_is_computed(
    encoder: Encoder, bad: list[Any]
) -> None:
    """Bare strings, and ids or texts that are no strings, are named."""
    with pytest.raises(InvalidRequestError, match=r"items\[0\]"):
        encoder.encode(bad)
