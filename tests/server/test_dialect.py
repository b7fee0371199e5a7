"""What all dialects have in common: keys and rates are refused in the words of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cohere
import httpx
import openai
import pytest
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

from sie_core.server.keys import make_key
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

QUERY, TEXTS = "what is python", ["a language", "a fruit"]


@pytest.fixture
def guarded(serve: Callable[..., Server], tiny_bert: Path, tmp_path: Path) -> tuple[Server, str]:
    """A server with a key, with which two requests an hour are taken, and that key."""
    key, line = make_key("app")
    (tmp_path / "keys").write_text(f"{line}\n")
    (tmp_path / "keys").chmod(0o600)
    server = serve(
        models=(ModelSettings(name="m", source=str(tiny_bert)),),
        api_key_file=str(tmp_path / "keys"),
        rate_limits=("2/hour",),
    )
    return server, key


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("/v1/score/m", lambda it: it["detail"]["code"] == "UNAUTHORIZED"),
        ("/v1/rerank", lambda it: it["error"]["code"] == "UNAUTHORIZED"),
        ("/v2/rerank", lambda it: set(it) == {"message"}),
        ("/rerank", lambda it: it["error_type"] == "Validation"),
        ("/v1/embeddings", lambda it: it["error"]["code"] == "invalid_api_key"),
    ],
)
def test_a_caller_without_a_key_is_told_so_in_their_own_shape(
    guarded: tuple[Server, str], path: str, refusal: Callable[[Any], bool]
) -> None:
    """Before their body is read."""
    reply = httpx.post(f"{guarded[0].url}{path}", content=b"{")
    assert reply.status_code == 401
    assert refusal(reply.json())
    assert "this server needs a key" in reply.text


def test_the_clients_send_their_keys_and_know_the_refusals(guarded: tuple[Server, str]) -> None:
    """By the exceptions that they have for a wrong key, and for too many requests."""
    server, key = guarded
    base_url = f"{server.url}/v1"
    with (
        openai.OpenAI(api_key="wrong", base_url=base_url, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="not one of this server's"),
    ):
        client.embeddings.create(model="m", input=TEXTS)
    with (
        cohere.ClientV2("wrong", base_url=server.url) as stranger,
        pytest.raises(cohere.UnauthorizedError),
    ):
        stranger.rerank(model="m", query=QUERY, documents=TEXTS)

    with cohere.ClientV2(key, base_url=server.url) as known:
        assert len(known.rerank(model="m", query=QUERY, documents=TEXTS).results) == 2
    ranker = HuggingFaceTEIRanker(url=server.url, token=Secret.from_token(key), max_retries=1)
    documents = [Document(content=text) for text in TEXTS]
    assert len(ranker.run(QUERY, documents)["documents"]) == 2

    with pytest.raises(RuntimeError, match="Overloaded"):
        ranker.run(QUERY, documents)
    with (
        openai.OpenAI(api_key=key, base_url=base_url, max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="more than 2"),
    ):
        client.embeddings.create(model="m", input=TEXTS)
