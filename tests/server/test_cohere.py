"""`/v1/rerank` and `/v2/rerank`, and Cohere's own packages against them, unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import pytest
from langchain_cohere import CohereRerank
from langchain_core.documents import Document

from sie_core.local import LocalClient
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings

QUERY = "what is python"
TEXTS = ["the weather is sunny today", "python is a programming language", "bananas are yellow"]
MODEL = "test/tiny-xlmr-ce"
"""Its own scores are logits, not probabilities."""


def expected(
    models: tuple[ModelSettings, ...],
    texts: list[str],
    model: str = MODEL,
    query: str = QUERY,
    **options: Any,
) -> list[tuple[int, float]]:
    """Score with the engine directly: each text's place and score, best first."""
    [source] = [settings.origin for settings in models if settings.name == model]
    items: list[Any] = [{"id": str(place), "text": text} for place, text in enumerate(texts)]
    result = LocalClient(mode="exact").score(source, {"text": query}, items, options=options)
    return [(int(entry["item_id"]), entry["score"]) for entry in result["scores"]]


def ranking(results: Any) -> list[tuple[int, float]]:
    """Read a reply's results."""
    return [(result["index"], result["relevance_score"]) for result in results]


def same(ours: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> bool:
    """Compare rankings: the same places, and the same scores up to the batches' rounding."""
    scores = [score for _, score in wanted]
    return [place for place, _ in ours] == [place for place, _ in wanted] and [
        score for _, score in ours
    ] == pytest.approx(scores, abs=1e-6)


@pytest.fixture
def http(served: Server) -> Iterator[httpx.Client]:
    """A connection to the server."""
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def body(**more: Any) -> dict[str, Any]:
    """Make a request's body."""
    return {"model": MODEL, "query": QUERY, "documents": TEXTS} | more


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_relevance_scores_are_the_engines_probabilities(
    http: httpx.Client, path: str, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """Best first, by their places in the request; between 0 and 1 where the model gives logits."""
    results = http.post(path, json=body()).json()["results"]
    assert same(ranking(results), expected(recorded_models, TEXTS, score_space="probability"))
    assert all(0 < result["relevance_score"] < 1 for result in results)
    assert all(set(result) == {"index", "relevance_score"} for result in results)


def test_logits_are_given_to_who_asks(
    http: httpx.Client, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """`options` reach the engine."""
    reply = http.post("/v1/rerank", json=body(options={"score_space": "raw"})).json()
    assert same(ranking(reply["results"]), expected(recorded_models, TEXTS, score_space="raw"))


def test_sums_of_similarities_come_as_they_are(
    http: httpx.Client, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """A late-interaction model has no probabilities, and ranks all the same."""
    model = "test/tiny-colbert"
    reply = http.post("/v2/rerank", json=body(model=model)).json()
    assert same(ranking(reply["results"]), expected(recorded_models, TEXTS, model))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_the_best_come_with_their_documents(http: httpx.Client, path: str) -> None:
    """`top_n` cuts; a document comes back whole, an object with all its fields."""
    documents = [TEXTS[0], {"text": TEXTS[1], "source": "a.md"}]
    given = body(documents=documents, return_documents=True)
    results = http.post(path, json=given).json()["results"]
    assert {result["index"]: result["document"] for result in results} == {
        0: {"text": TEXTS[0]},
        1: {"text": TEXTS[1], "source": "a.md"},
    }
    assert http.post(path, json=given | {"top_n": 1}).json()["results"] == results[:1]
    assert http.post(path, json=given | {"top_n": 9}).json()["results"] == results


def test_named_fields_are_read_in_their_order(
    http: httpx.Client, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """`rank_fields` makes one text of a document's fields, a line for each that it has."""
    documents = [{"title": "python", "body": "a language", "id": "7"}, {"title": "bananas"}]
    given = body(documents=documents, rank_fields=["body", "title"])
    reply = http.post("/v1/rerank", json=given).json()
    texts = ["body: a language\ntitle: python", "title: bananas"]
    wanted = expected(recorded_models, texts, score_space="probability")
    assert same(ranking(reply["results"]), wanted)


def test_an_instruction_and_a_profile_reach_the_query(
    http: httpx.Client, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """In `options`, as sie-server takes them."""
    model = "test/tiny-bert-ce"
    for options in ({"instruction": "rank by topic"}, {"profile": "instructed"}):
        reply = http.post("/v1/rerank", json=body(model=model, options=options)).json()
        wanted = expected(
            recorded_models, TEXTS, model, f"rank by topic {QUERY}", score_space="probability"
        )
        assert same(ranking(reply["results"]), wanted)


def test_the_second_interface_says_what_it_read(http: httpx.Client) -> None:
    """An id, the interface's version, tokens, nothing billed, and what was cut."""
    reply = http.post("/v2/rerank", json=body()).json()
    assert reply["id"]
    assert reply["meta"]["api_version"] == {"version": "2"}
    assert reply["meta"]["billed_units"] == {"search_units": 0}
    num_tokens = http.post("/v1/rerank", json=body()).json()["usage"]["input_tokens"]
    assert reply["meta"]["tokens"] == {"input_tokens": num_tokens}
    assert "warnings" not in reply["meta"]
    cut = http.post("/v2/rerank", json=body(documents=["a", "a b c d " * 100])).json()["meta"]
    assert cut["warnings"] == ["1 of 2 documents were too long and lost their end"]


def test_documents_are_cut_where_the_caller_says(
    http: httpx.Client, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """`max_tokens_per_doc` bounds each document by itself."""
    given = body(documents=["a b c d e f", "a b"], max_tokens_per_doc=3)
    reply = http.post("/v2/rerank", json=given).json()
    wanted = expected(
        recorded_models, given["documents"], score_space="probability", max_document_length=3
    )
    assert same(ranking(reply["results"]), wanted)
    uncut = http.post("/v2/rerank", json=given | {"max_tokens_per_doc": None}).json()
    assert ranking(uncut["results"]) != ranking(reply["results"])


@pytest.mark.parametrize(
    ("given", "parameter", "message"),
    [
        ({"documents": []}, "documents", "'documents' must be a non-empty array of strings"),
        ({"documents": [5]}, "documents", "'documents' must be a non-empty array of strings"),
        ({"documents": [{"title": "a"}]}, "documents", "or of objects with a 'text'"),
        ({"documents": ["a"] * 513}, "documents", "holds 513 texts, but at most 512 are taken"),
        ({"query": ""}, "query", "'query' must be a non-empty string"),
        ({"query": " "}, "query", "'query' must be a non-empty string"),
        ({"query": None}, "query", "'query' must be a non-empty string"),
        ({"model": 7}, "model", "'model' must be a non-empty string"),
        ({"top_n": 0}, "top_n", "'top_n' must be a positive integer"),
        ({"top_n": True}, "top_n", "'top_n' must be a positive integer"),
        ({"return_documents": "yes"}, "return_documents", "must be a boolean"),
        ({"options": []}, "options", "'options' must be an object"),
        ({"options": {"instruction": 5}}, "options", "'instruction' in 'options' must be a string"),
        ({"options": {"score_space": "x"}}, None, "score_space must be 'raw' or 'probability'"),
        ({"options": {"max_length": 1}}, None, "max_length must be an integer from"),
    ],
)
def test_what_is_wrong_is_named(
    http: httpx.Client, given: dict[str, Any], parameter: str | None, message: str
) -> None:
    """By the field: in OpenAI's shape on the first interface, in Cohere's on the second."""
    first = http.post("/v1/rerank", json=body(**given))
    error = first.json()["error"]
    assert first.status_code == 400
    assert message in error["message"]
    assert error["param"] == parameter
    assert (error["type"], error["code"]) == ("invalid_request_error", "INVALID_INPUT")
    second = http.post("/v2/rerank", json=body(**given))
    assert second.status_code == 400
    assert second.json() == {"message": error["message"]}
    assert second.headers["x-sie-error-code"] == "INVALID_INPUT"


def test_unknown_fields_are_refused_by_the_first_interface_alone(http: httpx.Client) -> None:
    """As sie-server and Cohere do."""
    given = body(priority=1)
    assert http.post("/v1/rerank", json=given).json()["error"]["param"] == "priority"
    assert http.post("/v2/rerank", json=given).status_code == 200


def test_a_body_that_is_none_is_refused(http: httpx.Client) -> None:
    """Broken JSON, JSON that is no object, and no body at all."""
    for content in (b"{", b"[]", b"5", b"", b"\xff"):
        reply = http.post("/v1/rerank", content=content)
        assert reply.status_code == 400
        assert "must be a JSON object" in reply.json()["error"]["message"]


def test_a_text_over_the_limit_is_refused(http: httpx.Client) -> None:
    """By its bytes, with its place."""
    reply = http.post("/v1/rerank", json=body(documents=["a", "ü" * 2**20 + "ü"]))
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert (error["code"], error["param"]) == ("INPUT_TOO_LONG", "documents")
    assert error["message"].startswith("documents[1] holds 2097154 bytes")


def test_a_models_failure_is_the_servers(http: httpx.Client) -> None:
    """Scores that are no numbers are not sorted."""
    reply = http.post("/v1/rerank", json=body(model="test/nan-ce"))
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error"
    assert reply.json()["error"]["code"] == "INFERENCE_ERROR"


def test_the_cohere_package_ranks(
    served: Server, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """Both of its clients, with documents as texts and as objects."""
    wanted = expected(recorded_models, TEXTS, score_space="probability")
    with cohere.ClientV2("key", base_url=served.url) as second:
        found = second.rerank(model=MODEL, query=QUERY, documents=TEXTS, max_tokens_per_doc=4096)
    assert same([(result.index, result.relevance_score) for result in found.results], wanted)
    assert found.id
    assert found.meta is not None
    assert found.meta.api_version is not None
    assert found.meta.api_version.version == "2"

    documents = [{"text": text, "n": str(n)} for n, text in enumerate(TEXTS)]
    with cohere.Client("key", base_url=served.url) as first:
        older = first.rerank(
            model=MODEL, query=QUERY, documents=documents, top_n=2, return_documents=True
        )
    assert same([(result.index, result.relevance_score) for result in older.results], wanted[:2])
    [best, _] = older.results
    assert best.document is not None
    assert best.document.text == TEXTS[best.index]
    assert best.document.n == str(best.index)  # type: ignore[attr-defined]  # beyond its type


async def test_the_cohere_packages_asynchronous_client_ranks(
    served: Server, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """The same scores."""
    async with cohere.AsyncClientV2("key", base_url=served.url) as client:
        found = await client.rerank(model=MODEL, query=QUERY, documents=TEXTS, top_n=1)
    wanted = expected(recorded_models, TEXTS, score_space="probability")[:1]
    assert same([(result.index, result.relevance_score) for result in found.results], wanted)


def test_the_cohere_package_raises_its_own_errors(served: Server) -> None:
    """By the status, with our words in the body."""
    with cohere.ClientV2("key", base_url=served.url) as client:
        with pytest.raises(cohere.BadRequestError) as caught:
            client.rerank(model=MODEL, query=QUERY, documents=[])
        with pytest.raises(cohere.NotFoundError) as missing:
            client.rerank(model="no/such", query=QUERY, documents=["a"])
    assert "non-empty array" in caught.value.body["message"]
    assert "'no/such' not found" in missing.value.body["message"]


def test_the_cohere_package_lists_the_models(served: Server) -> None:
    """By the same route as SIE's clients."""
    with cohere.Client("key", base_url=served.url) as client:
        names = [model.name for model in client.models.list().models]
    assert MODEL in names


def test_langchains_cohere_rerank_ranks(
    served: Server, recorded_models: tuple[ModelSettings, ...]
) -> None:
    """Documents keep their metadata; the scores are the engine's."""
    reranker = CohereRerank(cohere_api_key="key", base_url=served.url, model=MODEL, top_n=2)
    documents = [Document(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
    with reranker.client:
        found = reranker.compress_documents(documents, QUERY)
        ranked = reranker.rerank(documents, QUERY, max_tokens_per_doc=4, top_n=None)
    wanted = expected(recorded_models, TEXTS, score_space="probability")[:2]
    assert same(
        [(document.metadata["n"], document.metadata["relevance_score"]) for document in found],
        wanted,
    )
    assert [set(entry) for entry in ranked] == [{"index", "relevance_score"}] * 3
