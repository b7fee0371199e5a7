"""`Embedder`: what it sends, what it makes of replies, and its life. Vectors by hand."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sie_core import DEFAULT_EMBEDDING_MODEL, Embedder, LocalClient
from sie_core.errors import (
    AuthenticationError,
    ClientClosedError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    SIEConnectionError,
    UnsupportedModelError,
)

NOWHERE = "http://127.0.0.1:9"
Embed = Callable[..., Awaitable[list[list[float]]]]


@pytest.fixture(params=["sync", "async"])
def embed(request: pytest.FixtureRequest) -> Embed:
    """Both ways to call, behind one."""

    async def call(embedder: Embedder, texts: Any, **arguments: Any) -> list[list[float]]:
        if request.param == "sync":
            return embedder.embed(texts, **arguments)
        return await embedder.aembed(texts, **arguments)

    return call


class Replying:
    """A client that answers with what it is told."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply

    def encode(self, _model: str, _items: Any, **_: Any) -> Any:
        """Answer."""
        return self.reply


async def test_only_what_was_set_is_passed_to_the_client(encoder: Any, embed: Embed) -> None:
    """Dense vectors are asked for, of queries or of documents, and nothing else is said."""
    embedder = Embedder(client=encoder)
    await embed(embedder, ["a"])
    await embed(embedder, ["a"], is_query=True)
    assert encoder.arguments == [
        {"output_types": ["dense"], "is_query": False},
        {"output_types": ["dense"], "is_query": True},
    ]
    assert encoder.models == [DEFAULT_EMBEDDING_MODEL] * 2


async def test_everything_that_was_set_is_passed_to_the_client(encoder: Any, embed: Embed) -> None:
    """Options, machine profile and format go with every call, the instruction with queries."""
    embedder = Embedder(
        "some/model",
        client=encoder,
        instruction="Find cities",
        output_dtype="float16",
        options={"profile": "fast", "max_length": 5},
        gpu="l4",
        max_length=64,
        batch_size=8,
    )
    await embed(embedder, ["a"], is_query=True)
    await embed(embedder, ["a"])
    common = {
        "output_types": ["dense"],
        "output_dtype": "float16",
        "options": {"profile": "fast", "max_length": 64, "batch_size": 8},
        "gpu": "l4",
    }
    assert encoder.arguments == [
        common | {"is_query": True, "instruction": "Find cities"},
        common | {"is_query": False},
    ]


async def test_vectors_are_plain_floats_in_the_order_of_the_texts(
    encoder: Any, embed: Embed
) -> None:
    """Lists of Python's own floats, which every store takes, bit for bit the client's."""
    texts = ["one two", "two", "three three", "two"]
    vectors = await embed(Embedder(client=encoder), texts)
    assert vectors == [encoder.vector(text).tolist() for text in texts]
    assert {type(number) for vector in vectors for number in vector} == {float}


async def test_no_texts_need_no_client(embed: Embed) -> None:
    """An empty list is answered without asking anybody."""
    assert await embed(Embedder(client=Replying(None)), []) == []
    assert await embed(Embedder("/no/such/model"), []) == []
    assert await embed(Embedder(base_url=NOWHERE), []) == []


@pytest.mark.parametrize("count", [512, 513, 1300])
async def test_progress_is_told_in_steps(encoder: Any, embed: Embed, count: int) -> None:
    """The steps add up to all texts, whose order stays."""
    texts = [f"text {i}" for i in range(count)]
    steps: list[int] = []
    vectors = await embed(Embedder(client=encoder), texts, on_progress=steps.append)
    assert steps == [512] * (count // 512) + [count % 512] * (count % 512 > 0)
    assert vectors == [encoder.vector(text).tolist() for text in texts]


async def test_without_progress_a_call_is_one_call(encoder: Any, embed: Embed) -> None:
    """How to batch is then the client's affair alone."""
    await embed(Embedder(client=encoder), ["a"] * 1300)
    assert [len(texts) for texts in encoder.texts] == [1300]


async def test_steps_share_one_deadline(
    tiny_embedder: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps too, `timeout_seconds` bounds the whole call."""

    class Clock:
        ahead = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.ahead

    clock = Clock()
    monkeypatch.setattr("sie_core.deadline.time", clock)
    steps: list[int] = []

    def an_hour_passes(count: int) -> None:
        steps.append(count)
        clock.ahead += 3600

    embedder = Embedder(str(tiny_embedder), timeout_seconds=600, device="cpu")
    with pytest.raises(DeadlineExceededError, match="timeout of 600 s passed while encoding"):
        await embed(embedder, ["a"] * 600, on_progress=an_hour_passes)
    assert steps == [512]
    assert len(await embed(embedder, ["a"] * 512, on_progress=an_hour_passes)) == 512


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (None, "the backend gave NoneType for 2 texts"),
        ([], "the backend gave 0 results for 2 texts"),
        ([{"dense": [1.0]}], "gave 1 results for 2 texts"),
        ([{"dense": [1.0]}] * 3, "gave 3 results for 2 texts"),
        ([{"dense": [1.0]}, {"dense": [1.0, 2.0]}], "not all numbers of one length"),
        ([{"dense": ["x"]}] * 2, "not all numbers of one length"),
        ([{"dense": [[1.0]]}] * 2, "have the shape"),
        ([{"dense": []}] * 2, "have the shape"),
        ([{"dense": 1.0}] * 2, "have the shape"),
        ([{"dense": [1.0]}, {"dense": [float("nan")]}], "not finite for 1 of 2 texts"),
        ([{"dense": [float("inf")]}] * 2, "not finite for 2 of 2 texts"),
    ],
)
async def test_a_wrong_reply_is_an_error(embed: Embed, reply: Any, complaint: str) -> None:
    """Nothing that cannot be one finite vector for each text gets into an index."""
    with pytest.raises(InvalidResponseError, match=complaint):
        await embed(Embedder(client=Replying(reply)), ["a", "b"])


async def test_steps_must_agree_on_the_dimensions(embed: Embed) -> None:
    """A model that is swapped during a call does not mix its vectors with the old one's."""

    class Growing:
        num_calls = 0

        def encode(self, _: str, items: Any, **__: Any) -> Any:
            self.num_calls += 1
            return [{"dense": np.ones(self.num_calls)} for _ in items]

    with pytest.raises(InvalidResponseError, match=r"one length, but have \[1, 2\]"):
        await embed(Embedder(client=Growing()), ["a"] * 600, on_progress=lambda _: None)


@pytest.mark.parametrize("result", [{"multivector": np.ones((3, 2))}, {}, {"id": "item-0"}])
async def test_a_model_without_dense_vectors_is_named(embed: Embed, result: Any) -> None:
    """The error says what the model gives, and which would do."""
    kind = "multivector" if "multivector" in result else "nothing"
    complaint = (
        f"some/colbert gives no dense vectors, only {kind}; choose .*{DEFAULT_EMBEDDING_MODEL}"
    )
    with pytest.raises(UnsupportedModelError, match=complaint):
        await embed(Embedder("some/colbert", client=Replying([result])), ["a"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"model": 3}, "model must be a string"),
        ({"instruction": 3}, "instruction must be a string"),
        ({"output_dtype": 3}, "output_dtype must be a string"),
        ({"output_dtype": "binary"}, "'binary' packs vectors into bits"),
        ({"timeout_seconds": 0}, "timeout_seconds must be a positive number"),
        ({"mode": "quick"}, "mode must be one of"),
        ({"base_url": "gpu-box"}, "http"),
        ({"client": Replying(None), "base_url": NOWHERE}, "base_url cannot be combined"),
        ({"client": Replying(None), "dtype": "float16"}, "dtype cannot be combined"),
    ],
)
def test_bad_constructor_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    """Before anything is loaded or sent."""
    with pytest.raises(InvalidRequestError, match=complaint):
        Embedder(**arguments)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ("a text", "texts must be a list of strings, but got str"),
        (None, "texts must be a list of strings, but got NoneType"),
        (["a", None], r"texts\[1\] must be a string, but got NoneType"),
        ([b"a"], r"texts\[0\] must be a string, but got bytes"),
    ],
)
async def test_bad_texts_are_named(encoder: Any, embed: Embed, texts: Any, complaint: str) -> None:
    """The message names the position and the type."""
    with pytest.raises(InvalidRequestError, match=complaint):
        await embed(Embedder(client=encoder), texts)
    assert encoder.texts == []


def test_a_sync_client_serves_async_calls_from_a_thread(encoder: Any) -> None:
    """The event loop is not blocked."""
    asyncio.run(Embedder(client=encoder).aembed(["a"]))
    assert encoder.threads != [threading.get_ident()]


async def test_an_async_client_is_awaited_on_the_loop(encoder: Any, async_encoder: Any) -> None:
    """And is the one that is asked where both are given."""
    await Embedder(client=encoder, async_client=async_encoder).aembed(["a"])
    assert async_encoder.threads == [threading.get_ident()]
    assert encoder.threads == []


def test_an_async_client_alone_refuses_sync_calls(async_encoder: Any) -> None:
    """The error names the method to call."""
    with pytest.raises(InvalidRequestError, match="only async_client was given: call aembed"):
        Embedder(async_client=async_encoder).embed(["a"])


def test_given_clients_stay_open(tiny_embedder: Path) -> None:
    """A client that was given is used as it is, and is its owner's to close."""
    with LocalClient() as client:
        embedder = Embedder(str(tiny_embedder), client=client)
        embedder.embed(["a"])
        embedder.close()
        assert len(embedder.embed(["a", "b"])) == 2
    with pytest.raises(ClientClosedError):
        embedder.embed(["a"])


async def test_the_environment_names_the_server(
    encoding_server: str, tiny_embedder: Path, monkeypatch: pytest.MonkeyPatch, embed: Embed
) -> None:
    """`SIE_BASE_URL` moves it to a server, and the vectors are the same."""
    here = Embedder(str(tiny_embedder), mode="exact")
    local = await embed(here, ["berlin museum", "paris"], is_query=True)
    monkeypatch.setenv("SIE_BASE_URL", encoding_server)
    async with Embedder("test/tiny-embedder") as embedder:
        assert repr(embedder) == f"Embedder(model='test/tiny-embedder', {encoding_server})"
        remote = await embed(embedder, ["berlin museum", "paris"], is_query=True)
    np.testing.assert_allclose(remote, local, atol=1e-6)


async def test_a_server_that_is_not_there_is_an_error(embed: Embed) -> None:
    """There is no fallback: vectors of another model would be no use."""
    with pytest.raises(SIEConnectionError):
        await embed(Embedder(base_url=NOWHERE, timeout_seconds=0.5), ["a"])


async def test_secrets_stay_in_the_process(guard: Any, embed: Embed) -> None:
    """A copy keeps the key, a pickle and a repr do not, and no error shows it."""
    key = "k-SECRET-THING"
    embedder = Embedder("m", base_url=guard.address, api_key=key, token="hf-SECRET")  # noqa: S106
    twin = copy.deepcopy(embedder)
    assert "SECRET" not in repr(embedder) + repr(pickle.dumps(embedder))
    for one in (embedder, twin):
        with pytest.raises(AuthenticationError) as caught:
            await embed(one, ["a"])
        assert "SECRET" not in str(caught.value)
        await one.aclose()
    assert guard.keys == [f"Bearer {key}"] * 2


async def test_copies_embed_alike(tiny_embedder: Path, embed: Embed) -> None:
    """Fresh or used, copied or pickled."""
    embedder = Embedder(str(tiny_embedder), device="cpu")
    first = await embed(embedder, ["berlin"])
    for twin in (
        copy.copy(embedder),
        copy.deepcopy(embedder),
        pickle.loads(pickle.dumps(embedder)),
    ):
        np.testing.assert_allclose(await embed(twin, ["berlin"]), first, atol=1e-6)


@pytest.mark.usefixtures("released")
async def test_warming_up_loads_the_model(tiny_embedder: Path) -> None:
    """Before the first call, and once."""
    embedder = Embedder(str(tiny_embedder))
    await embedder.awarm_up()
    embedder.warm_up()
    assert list(embedder._open(is_async=False).loaded()) == [str(tiny_embedder)]
    embedder.close()
    embedder.close()
    assert len(embedder.embed(["a"])) == 1
