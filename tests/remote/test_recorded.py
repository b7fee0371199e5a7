"""Our client against 78 exchanges with sie-server 0.10.1, replayed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import httpx
import msgpack
import numpy as np
import pytest

from sie_core import Embedder
from sie_core.errors import (
    DeadlineExceededError,
    InferenceError,
    InputTooLongError,
    InvalidRequestError,
    InvalidResponseError,
    ModelLoadError,
    ModelNotFoundError,
    QueueFullError,
    ResourceExhaustedError,
    ServerError,
    SIEError,
)
from sie_core.remote import SIEAsyncClient, SIEClient

QUERY: Any = {"text": "what is python"}
ITEMS: Any = [{"text": "the weather is sunny today"}, {"text": "python"}, {"text": "bananas"}]

ERRORS: dict[str, tuple[type[SIEError], str | None]] = {
    "cold_model_loading_503_json": (DeadlineExceededError, "MODEL_LOADING"),
    "cold_model_loading_503_msgpack": (DeadlineExceededError, "MODEL_LOADING"),
    "encode_empty_items": (InvalidRequestError, "INVALID_INPUT"),
    "encode_on_ce": (InvalidRequestError, "INVALID_INPUT"),
    "fault_load_fail_first": (DeadlineExceededError, "MODEL_LOADING"),
    "fault_oom_503_resource_exhausted": (ResourceExhaustedError, "RESOURCE_EXHAUSTED"),
    "fault_oom_rerank": (InferenceError, "INFERENCE_ERROR"),
    "fault_queue_full_503": (QueueFullError, "QUEUE_FULL"),
    "fault_slow_load_first": (DeadlineExceededError, "MODEL_LOADING"),
    "get_health": (ServerError, None),
    "get_metrics": (ServerError, None),
    "get_root": (ServerError, None),
    "get_status": (ServerError, None),
    "model_get_404": (ModelNotFoundError, "MODEL_NOT_FOUND"),
    "openai_embeddings": (InvalidResponseError, None),
    "rerank_cohere_shape": (InvalidResponseError, None),
    "rerank_empty_documents": (InvalidRequestError, "INVALID_INPUT"),
    "rerank_load_failed": (ModelLoadError, "MODEL_LOAD_FAILED"),
    "rerank_unknown_field": (InvalidRequestError, "INVALID_INPUT"),
    "rerank_unknown_model": (ModelNotFoundError, "MODEL_NOT_FOUND"),
    "score_1000_items": (InvalidRequestError, "INVALID_INPUT"),
    "score_1001_items": (InvalidRequestError, "INVALID_INPUT"),
    "score_bad_json": (InvalidRequestError, "INVALID_INPUT"),
    "score_bad_msgpack": (InvalidRequestError, "INVALID_INPUT"),
    "score_body_over_34MiB": (InputTooLongError, "INPUT_TOO_LONG"),
    "score_embed_model_unsupported": (InvalidRequestError, "INVALID_INPUT"),
    "score_empty_body": (InvalidRequestError, "INVALID_INPUT"),
    "score_empty_items": (InvalidRequestError, "INVALID_INPUT"),
    "score_empty_items_msgpack": (InvalidRequestError, "INVALID_INPUT"),
    "score_get_405": (ServerError, None),
    "score_instruction_wrong_type": (InvalidRequestError, "INVALID_INPUT"),
    "score_invalid_utf8_json": (InvalidRequestError, "INVALID_INPUT"),
    "score_json_nan": (InvalidRequestError, "INVALID_INPUT"),
    "score_missing_items": (InvalidRequestError, "INVALID_INPUT"),
    "score_missing_query": (InvalidRequestError, "INVALID_INPUT"),
    "score_multivector_items": (InvalidRequestError, "INVALID_INPUT"),
    "score_nan_model_json": (InferenceError, "INFERENCE_ERROR"),
    "score_no_content_type_msgpack_body": (InvalidRequestError, "INVALID_INPUT"),
    "score_no_text": (InvalidRequestError, "INVALID_INPUT"),
    "score_null_text": (InvalidRequestError, "INVALID_INPUT"),
    "score_options_profile_unknown": (InvalidRequestError, "INVALID_INPUT"),
    "score_remote_bad": (InvalidRequestError, "INVALID_INPUT"),
    "score_text_positional_strings": (InvalidRequestError, "INVALID_INPUT"),
    "score_typo_model": (ModelNotFoundError, "MODEL_NOT_FOUND"),
    "score_unknown_model": (ModelNotFoundError, "MODEL_NOT_FOUND"),
    "score_unknown_model_msgpack": (ModelNotFoundError, "MODEL_NOT_FOUND"),
}
"""What each recorded refusal becomes; the exchanges that are not named here are answers."""

NOT_OUR_REQUESTS = {
    "encode_empty_items": "answered without asking",
    "score_empty_items": "answered without asking",
    "score_empty_items_msgpack": "answered without asking",
    "score_1000_items": "split",
    "score_1001_items": "split",
    "score_bad_json": "not JSON",
    "score_bad_msgpack": "not msgpack",
    "score_body_over_34MiB": "not recorded whole",
    "score_empty_body": "no body",
    "score_extra_fields_ignored": "fields that no call has",
    "score_get_405": "a method that no call uses",
    "score_instruction_wrong_type": "refused before it is sent",
    "score_invalid_utf8_json": "not UTF-8",
    "score_json_nan": "refused before it is sent",
    "score_multivector_items": "refused before it is sent",
    "score_missing_items": "no items",
    "score_missing_query": "no query",
    "score_no_content_type_msgpack_body": "no content type",
    "score_text_positional_strings": "refused before it is sent",
}
"""Recorded requests that our client cannot be made to send, and why."""


def call_of(exchange: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the client's method and arguments that ask for what was recorded."""
    path = unquote(exchange.path)
    if exchange.method == "GET":
        model = path.removeprefix("/v1/models/")
        is_model = path.startswith("/v1/models/")
        return ("get_model", (model,), {}) if is_model else ("health", (), {})
    can_be_sent = exchange.name not in NOT_OUR_REQUESTS
    body: Any = exchange.request() if can_be_sent else {"query": QUERY, "items": ITEMS}
    if path.startswith("/v1/encode/"):
        params = body.get("params", {})
        return "encode", (path.removeprefix("/v1/encode/"), body.get("items")), params
    if not path.startswith("/v1/score/"):
        return "score", ("test/model", QUERY, ITEMS), {}
    extra = {name: body[name] for name in ("instruction", "options") if name in body}
    return "score", (path.removeprefix("/v1/score/"), body["query"], body["items"]), extra


def settings_of(exchange: Any) -> dict[str, Any]:
    """Return the constructor arguments that speak as the recorded client did."""
    settings: dict[str, Any] = {
        "content_format": "msgpack" if exchange.is_msgpack else "json",
        "timeout_seconds": 0.4,
    }
    headers = exchange.request_headers
    if "Authorization" in headers:
        settings["api_key"] = headers["Authorization"].removeprefix("Bearer ")
    if "X-SIE-Pool" in headers:
        settings["pool"] = headers["X-SIE-Pool"]
    return settings


def check(exchange: Any, answer: Any) -> None:
    """Hold an answer against the recorded reply, read by hand."""
    if exchange.method == "GET":
        is_text = exchange.response_body == b"ok"
        assert answer == ({"status": "ok"} if is_text else exchange.reply())
    elif "/encode/" in exchange.path:
        check_embeddings(exchange, answer)
    else:
        reply = exchange.reply()
        query_id = exchange.request().get("query", {}).get("id")
        assert answer == {**reply, "query_id": query_id, "timing": timing_of(exchange)}


def timing_of(exchange: Any) -> dict[str, float]:
    """Read by hand where the recorded reply says that the time went."""
    headers = dict(exchange.response_headers)
    return {
        "total_ms": float(headers["x-total-time"]),
        "queue_ms": float(headers["x-queue-time"]),
        "tokenization_ms": float(headers["x-tokenization-time"]),
        "inference_ms": float(headers["x-inference-time"]),
    }


def check_embeddings(exchange: Any, answer: Any) -> None:
    """The same for embeddings."""
    sent = exchange.request()["items"]
    expected = exchange.reply()["items"]
    assert [result.get("id") for result in answer] == [item.get("id") for item in sent]
    for result, item in zip(answer, expected, strict=True):
        (kind,) = set(item) - {"id"}
        values = item[kind]["values"]
        if isinstance(values, dict):
            values = np.frombuffer(values[b"data"], values[b"type"])
        assert result[kind].dtype == item[kind]["dtype"]
        np.testing.assert_allclose(result[kind], np.array(values), rtol=1e-7)
        # The headers are written a moment after the body, to two digits.
        assert result["timing"] == pytest.approx(timing_of(exchange), abs=0.1)


def decoded(request: httpx.Request) -> Any:
    """Decode the body that our client sent."""
    is_msgpack = "msgpack" in request.headers["content-type"]
    return msgpack.unpackb(request.content) if is_msgpack else json.loads(request.content)


def without_own_ids(ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Take out ids that we added: the caller gave none, or not for all items."""
    ids = [item.get("id") for item in recorded["items"]]
    has_all = None not in ids and len(set(ids)) == len(ids)
    if has_all:
        return dict(ours)
    items = [
        {key: value for key, value in item.items() if key != "id"} | ({"id": own} if own else {})
        for item, own in zip(ours["items"], ids, strict=True)
    ]
    return {**ours, "items": items}


def test_a_recorded_reply_gives_its_result_or_its_exception(exchange: Any) -> None:
    """Every recorded reply is read as what it is, with the server's status and code."""
    method, arguments, options = call_of(exchange)
    transport = httpx.MockTransport(exchange.respond)
    with SIEClient("http://server", transport=transport, **settings_of(exchange)) as client:
        if exchange.name not in ERRORS:
            check(exchange, getattr(client, method)(*arguments, **options))
            return
        with pytest.raises(SIEError) as caught:
            getattr(client, method)(*arguments, **options)
    check_error(exchange, caught.value)


async def test_the_async_client_reads_it_alike(exchange: Any) -> None:
    """The asynchronous client gives the same result or exception."""
    method, arguments, options = call_of(exchange)
    transport = httpx.MockTransport(exchange.respond)
    settings = settings_of(exchange)
    async with SIEAsyncClient("http://server", transport=transport, **settings) as client:
        if exchange.name not in ERRORS:
            check(exchange, await getattr(client, method)(*arguments, **options))
            return
        with pytest.raises(SIEError) as caught:
            await getattr(client, method)(*arguments, **options)
    check_error(exchange, caught.value)


def check_error(exchange: Any, error: SIEError) -> None:
    """Hold an exception against the table; a deadline carries the code of the last refusal."""
    error_class, code = ERRORS[exchange.name]
    assert type(error) is error_class
    assert error.code == code
    assert error.status_code == exchange.status_code


def test_our_request_is_the_recorded_one(exchange: Any) -> None:
    """The bytes that our client sends decode to the recorded structure, ids of ours aside."""
    if exchange.name in NOT_OUR_REQUESTS or not re.match("/v1/(score|encode)/", exchange.path):
        pytest.skip("no call of ours sends this")
    requests: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response: httpx.Response = exchange.respond(request)
        return response

    method, arguments, options = call_of(exchange)
    transport = httpx.MockTransport(respond)
    with SIEClient("http://server", transport=transport, **settings_of(exchange)) as client:
        try:
            getattr(client, method)(*arguments, **options)
        except SIEError:
            assert exchange.name in ERRORS
    request = requests[0]
    recorded = exchange.request()
    assert without_own_ids(decoded(request), recorded) == recorded
    assert unquote(request.url.path) == unquote(exchange.path)
    for name in ("Authorization", "X-SIE-Pool"):
        assert request.headers.get(name) == exchange.request_headers.get(name)
    if exchange.is_msgpack:
        assert "msgpack" in request.headers["content-type"]
        assert "msgpack" in request.headers["accept"]


def test_every_recording_is_accounted_for(exchanges: dict[str, Any]) -> None:
    """There are 78 recordings, and the table names no other."""
    assert len(exchanges) == 78
    assert set(ERRORS) <= set(exchanges)
    answered = {name for name in exchanges if name not in ERRORS}
    assert all(exchanges[name].status_code == 200 for name in answered)


def test_what_cannot_be_right_is_refused_before_it_is_sent() -> None:
    """Requests that the server answered with 400 for their types never leave the client."""

    def respond(request: httpx.Request) -> httpx.Response:
        pytest.fail(f"sent {request.content!r}")

    with SIEClient("http://server", transport=httpx.MockTransport(respond)) as client:
        wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            (("m", "what is python", ITEMS), {}),
            (("m", QUERY, ["a", "b"]), {}),
            (("m", QUERY, "ab"), {}),
            (("m", QUERY, ITEMS), {"instruction": 5}),
            (("m", QUERY, [{"id": 7, "text": "a"}]), {}),
            (("m", QUERY, ITEMS), {"options": {"x": object()}}),
            (("m", QUERY, ITEMS), {"options": [1]}),
            (("m", QUERY, ITEMS), {"gpu": "l4\r\n"}),
            (("m", QUERY, ITEMS), {"timeout_seconds": 0}),
            (("m", QUERY, [{"text": "\ud800"}]), {}),
            (("m", QUERY, [{"text": 2**70}]), {}),
            (("", QUERY, ITEMS), {}),
        ]
        for arguments, options in wrong:
            with pytest.raises(InvalidRequestError):
                client.score(*arguments, **options)
    with (
        SIEClient(
            "http://server", transport=httpx.MockTransport(respond), content_format="json"
        ) as client,
        pytest.raises(InvalidRequestError, match="options"),
    ):
        client.score("m", QUERY, ITEMS, options={"x": float("nan")})


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("encode_dense_json", ["what is python", "python is a programming language"]),
        ("encode_dense_f16", ["what is python"]),
    ],
)
def test_an_embedder_gives_the_servers_vectors(
    exchanges: dict[str, Any], name: str, texts: list[str]
) -> None:
    """In the order of the texts, as plain floats, whatever format they came in."""
    exchange = exchanges[name]
    client = SIEClient("http://recorded", transport=httpx.MockTransport(exchange.respond))
    vectors = Embedder("test/tiny-embed", client=client).embed(texts)
    assert [len(vector) for vector in vectors] == [32] * len(texts)
    assert vectors[0][0] == pytest.approx(-0.12342099, abs=1e-4)
    client.close()


def test_an_embedder_is_told_that_a_model_gives_no_dense_vectors(
    exchanges: dict[str, Any],
) -> None:
    """A server's own words about its cross-encoder."""
    exchange = exchanges["encode_on_ce"]
    client = SIEClient("http://recorded", transport=httpx.MockTransport(exchange.respond))
    with pytest.raises(InvalidRequestError, match="does not support output types"):
        Embedder("test/tiny-bert-ce", client=client).embed(["what is python"])
    client.close()
