"""OpenAI's `/v1/embeddings`.

    POST /v1/embeddings {model, input, encoding_format, dimensions, …}
      -> {object: "list", data: [{object: "embedding", embedding, index}], model, usage}

`base64`, which the openai package asks for unless told otherwise, is that of float32 numbers, the
lowest byte first.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final, Literal

import msgspec
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from sie_core.server.dialect import read, to_items, wrong
from sie_core.server.failures import SHAPES, Failure
from sie_core.server.native import timing_headers
from sie_core.server.record import record_of
from sie_core.server.service import service_of

_REQUIREMENTS: Final = {
    "dimensions": "a positive integer",
    "encoding_format": "'float' or 'base64'",
    "input": "a string or a non-empty array of strings",
    "model": "a non-empty string",
    "options": "an object",
}

_CODES: Final = {
    "INFERENCE_ERROR": "inference_error",
    "INVALID_INPUT": "invalid_request",
    "MODEL_NOT_FOUND": "model_not_found",
    "QUEUE_FULL": "server_overloaded",
    "UNAUTHORIZED": "invalid_api_key",
}
"""By our code: what OpenAI's clients know it as; others keep SIE's name."""


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """The body of `/v1/embeddings`; what it does not name is ignored, as `user` is.

    `options`: what encoding takes beyond OpenAI's interface, such as `is_query`.
    """

    model: Annotated[str, msgspec.Meta(min_length=1)]
    input: str | Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    options: dict[str, Any] | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """One text's vector: numbers, or their bytes in base64."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class EmbeddingsUsage(msgspec.Struct, kw_only=True):
    """The tokens of all texts."""

    prompt_tokens: int
    total_tokens: int
    sie_token_source: Literal["worker"] = "worker"  # noqa: S105  counted, not guessed


class EmbeddingsReply(msgspec.Struct, kw_only=True):
    """What `/v1/embeddings` answers, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


async def embeddings(request: Request) -> Response:
    """Answer `POST /v1/embeddings`."""
    service = service_of(request)
    with service.door.enter() as visit:
        body = await read(request, visit, EmbeddingsBody, _REQUIREMENTS)
        results = await service.encode(
            request,
            model=body.model,
            items=to_items(request, _texts(body), "input"),
            output_types=["dense"],
            options=body.options,
        )
    record = record_of(request.scope)
    vectors = [result["dense"] for result in results]
    _check_dimensions(body, vectors)
    write = _to_base64 if body.encoding_format == "base64" else _to_floats
    num_tokens = record.usage["input_tokens"]
    answer = EmbeddingsReply(
        data=[Embedding(embedding=write(vector), index=i) for i, vector in enumerate(vectors)],
        model=record.model or body.model,
        usage=EmbeddingsUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )
    return Response(
        msgspec.json.encode(answer),
        headers=timing_headers(record.timing),
        media_type="application/json",
    )


def _texts(body: EmbeddingsBody) -> list[str]:
    if isinstance(body.input, str):
        return [body.input]
    texts = [text for text in body.input if isinstance(text, str)]
    if len(texts) < len(body.input):
        message = (
            "'input' must be text: ids of tokens are another tokenizer's, which this server does "
            "not have; with LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False"
        )
        raise wrong(message, "input")
    return texts


def _check_dimensions(body: EmbeddingsBody, vectors: list[NDArray[Any]]) -> None:
    """Refuse another size than the model's own.

    Only models trained for it keep their meaning when vectors are cut, and nothing in a
    checkpoint says whether its model was.

    Raises:
        RefusedError: Another size is asked for.
    """
    size = len(vectors[0])
    if body.dimensions is not None and body.dimensions != size:
        message = (
            f"'dimensions' must be {size}, the size of this model's vectors, but is "
            f"{body.dimensions}; leave it out"
        )
        raise wrong(message, "dimensions")


def _to_floats(vector: NDArray[Any]) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _to_base64(vector: NDArray[Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def error(failure: Failure) -> dict[str, Any]:
    """Write a failure as OpenAI does."""
    kind = "invalid_request_error" if failure.status < 500 else "server_error"  # noqa: PLR2004  HTTP's
    return {
        "error": {
            "message": failure.message,
            "type": kind,
            "param": failure.parameter,
            "code": _CODES.get(failure.code, failure.code),
            **failure.fields,
        }
    }


SHAPES["/v1/embeddings"] = error
