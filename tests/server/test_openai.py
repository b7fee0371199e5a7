"""`/v1/embeddings`, and the openai package against it, unmodified."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from sie_core.local import LocalClient
from sie_core.server.run import Server

MODEL = "test/tiny-embed"
TEXTS = ["hello", "python is a programming language", ""]


def expected(folder: Path, texts: list[str], **options: Any) -> NDArray[np.float32]:
    """Encode with the engine directly."""
    items: list[Any] = [{"text": text} for text in texts]
    results = LocalClient(mode="exact").encode(str(folder), items, options=options)
    return np.array([result["dense"] for result in results])


def post(server: Server, **body: Any) -> httpx.Response:
    """Ask for vectors."""
    return httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": TEXTS} | body)


def test_vectors_are_the_engines_as_numbers_and_as_bytes(
    served: Server, tiny_embedder: Path
) -> None:
    """In the order of the texts, with their tokens counted."""
    reply = post(served).json()
    vectors = expected(tiny_embedder, TEXTS)
    assert [entry["index"] for entry in reply["data"]] == [0, 1, 2]
    np.testing.assert_allclose([entry["embedding"] for entry in reply["data"]], vectors, atol=1e-6)
    coded = post(served, encoding_format="base64").json()
    read = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in coded["data"]]
    np.testing.assert_allclose(read, vectors, atol=1e-6)
    singly = [post(served, input=text).json()["usage"]["prompt_tokens"] for text in TEXTS]
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] == sum(singly)
    assert reply["model"] == MODEL


def test_queries_are_encoded_as_such_where_the_caller_says(
    served: Server, tiny_embedder: Path
) -> None:
    """OpenAI's interface has no word for it; `options` has."""
    reply = post(served, options={"is_query": True}).json()
    found = [entry["embedding"] for entry in reply["data"]]
    np.testing.assert_allclose(found, expected(tiny_embedder, TEXTS, is_query=True), atol=1e-6)
    assert not np.allclose(found, expected(tiny_embedder, TEXTS), atol=1e-3)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({"input": []}, "400 invalid_request input", "must be a string or a non-empty array"),
        ({"input": None}, "400 invalid_request input", "must be a string or a non-empty array"),
        ({"input": [1, 2]}, "400 invalid_request input", "check_embedding_ctx_length=False"),
        ({"input": [[1], [2]]}, "400 invalid_request input", "'input' must be text"),
        ({"input": ["a", 2]}, "400 invalid_request input", "'input' must be text"),
        ({"encoding_format": "hex"}, "400 invalid_request encoding_format", "or 'base64'"),
        ({"dimensions": 8}, "400 invalid_request dimensions", "must be 64"),
        ({"model": "no/such"}, "404 model_not_found None", "'no/such' not found"),
        ({"model": "test/tiny-bert-ce"}, "400 invalid_request None", "gives no embeddings"),
    ],
)
def test_what_is_wrong_is_named_in_openais_shape(
    served: Server, body: dict[str, Any], error: str, message: str
) -> None:
    """Message, type, parameter and code."""
    reply = post(served, **body)
    told = reply.json()["error"]
    assert f"{reply.status_code} {told['code']} {told['param']}" == error
    assert told["type"] == "invalid_request_error"
    assert message in told["message"]


def test_the_models_own_size_may_be_asked_for(served: Server) -> None:
    """Who pins it keeps working."""
    assert len(post(served, dimensions=64).json()["data"][0]["embedding"]) == 64


@pytest.fixture
def client(served: Server) -> Iterator[openai.OpenAI]:
    """The openai package's client, pointed at us."""
    with openai.OpenAI(api_key="key", base_url=f"{served.url}/v1", max_retries=0) as client:
        yield client


def test_the_openai_package_encodes(client: openai.OpenAI, tiny_embedder: Path) -> None:
    """In base64, which it asks for by itself, and in numbers; a text, and several."""
    vectors = expected(tiny_embedder, TEXTS)
    found = client.embeddings.create(model=MODEL, input=TEXTS)
    np.testing.assert_allclose([entry.embedding for entry in found.data], vectors, atol=1e-6)
    assert found.usage.prompt_tokens > 0
    plain = client.embeddings.create(
        model=MODEL, input=TEXTS[1], encoding_format="float", dimensions=64, user="me"
    )
    np.testing.assert_allclose(plain.data[0].embedding, vectors[1], atol=1e-6)


async def test_the_openai_packages_asynchronous_client_encodes(
    served: Server, tiny_embedder: Path
) -> None:
    """The same vectors."""
    async with openai.AsyncOpenAI(api_key="key", base_url=f"{served.url}/v1") as client:
        found = await client.embeddings.create(model=MODEL, input=TEXTS)
    vectors = expected(tiny_embedder, TEXTS)
    np.testing.assert_allclose([entry.embedding for entry in found.data], vectors, atol=1e-6)


def test_the_openai_package_lists_the_models(client: openai.OpenAI) -> None:
    """By the same routes as SIE's clients."""
    assert MODEL in [model.id for model in client.models.list()]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "test")


def test_the_openai_package_raises_its_own_errors(client: openai.OpenAI) -> None:
    """With our words, and the field's name."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=TEXTS, dimensions=7)
    assert caught.value.param == "dimensions"
    with pytest.raises(openai.NotFoundError, match="'no/such' not found"):
        client.embeddings.create(model="no/such", input=TEXTS)
