"""What every route takes and answers, as the OpenAPI document tells it. No behaviour is in here.

A test holds this table against the app's routes, and another sends what the table allows and
holds the replies against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from sie_core.server.bodies import EncodeBody, ScoreBody
from sie_core.server.cohere import RerankBody, RerankBodyV2, RerankReply, RerankReplyV2
from sie_core.server.native import ReloadBody
from sie_core.server.openai import EmbeddingsBody, EmbeddingsReply
from sie_core.server.tei import Rank, RankBody
from sie_core.types import ScoreResult, Timing, Usage

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
TEXT: Final = "text/plain; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"


class DenseVector(msgspec.Struct, kw_only=True):
    """One vector of a text. In msgpack `values` is a map with the array's type, shape and bytes."""

    dims: int
    dtype: str
    values: list[float]


class TokenVectors(msgspec.Struct, kw_only=True):
    """A vector for each token of a text. In msgpack `values` is a map, as in `DenseVector`."""

    num_tokens: int
    token_dims: int
    dtype: str
    values: list[list[float]]


class EncodedItem(msgspec.Struct, kw_only=True):
    """One item's embeddings, as far as asked for; `id` where the item had one."""

    id: str | msgspec.UnsetType = msgspec.UNSET
    dense: DenseVector | msgspec.UnsetType = msgspec.UNSET
    multivector: TokenVectors | msgspec.UnsetType = msgspec.UNSET


class EncodeReply(msgspec.Struct, kw_only=True):
    """What encoding answers, in the order of the items."""

    model: str
    items: list[EncodedItem]
    timing: Timing
    usage: Usage


class ProfileReply(msgspec.Struct, kw_only=True):
    """What `options.profile` may name."""

    is_default: bool


class ModelReply(msgspec.Struct, kw_only=True):
    """A model, how it stands, and what it gives; the last four fields are for OpenAI's clients."""

    name: str
    inputs: list[str]
    outputs: list[str]
    dims: dict[str, int]
    loaded: bool
    state: Literal["unloaded", "loading", "loaded", "failed"]
    last_error: str | None
    max_sequence_length: int | None
    profiles: dict[str, ProfileReply]
    loras: list[str]
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(msgspec.Struct, kw_only=True):
    """All models: `models` for SIE's and Cohere's clients, `data` for OpenAI's."""

    models: list[ModelReply]
    object: Literal["list"]
    data: list[ModelReply]


class ReloadedModelReply(ModelReply, kw_only=True):
    """A model whose files were loaded anew; `replaced` counts the loaded ones that gave way."""

    replaced: int


class ModelStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How a model stands; where it is loaded also what waits for it and what it has done."""

    state: Literal["unloaded", "loading", "loaded", "failed"]
    queued_tokens: int | msgspec.UnsetType = msgspec.UNSET
    queued_requests: int | msgspec.UnsetType = msgspec.UNSET
    batches: int | msgspec.UnsetType = msgspec.UNSET
    sequences: int | msgspec.UnsetType = msgspec.UNSET
    tokens: int | msgspec.UnsetType = msgspec.UNSET
    busy_s: float | msgspec.UnsetType = msgspec.UNSET
    bytes: int | msgspec.UnsetType = msgspec.UNSET


class RequestCounts(msgspec.Struct, kw_only=True):
    """Requests with a body: those that are over, those of them that failed, and the others."""

    total: int
    failed: int
    in_flight: int


class Latency(msgspec.Struct, kw_only=True):
    """Milliseconds of the last minute's answers; null for none."""

    p50: float | None
    p95: float | None


class StatusReply(msgspec.Struct, kw_only=True):
    """How the server and its models stand."""

    uptime_s: float
    models: dict[str, ModelStatus]
    requests: RequestCounts
    latency_ms: Latency


class FailureDetail(msgspec.Struct, kw_only=True):
    """What was wrong; some codes bring fields of their own."""

    code: str
    message: str


class DetailReply(msgspec.Struct, kw_only=True):
    """A failure, as SIE's protocol has it; a string where no route is found."""

    detail: FailureDetail | str


class ErrorObject(msgspec.Struct, kw_only=True):
    """What was wrong, and in which field; some codes bring fields of their own."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class ErrorReply(msgspec.Struct, kw_only=True):
    """A failure, as OpenAI has it; SIE uses it on `/v1/rerank` as well."""

    error: ErrorObject


class MessageReply(msgspec.Struct, kw_only=True):
    """A failure, as Cohere has it."""

    message: str


class TeiErrorReply(msgspec.Struct, kw_only=True):
    """A failure, as Text Embeddings Inference has it."""

    error: str
    error_type: Literal["Backend", "Empty", "Overloaded", "Unhealthy", "Validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One status that an operation may answer with.

    Attributes:
        description: When it does.
        shape: Of the body; None for text.
        media_types: Of the body.
        headers: Names of those that are documented in `HEADERS`.
    """

    description: str
    shape: Any = None
    media_types: tuple[str, ...] = (JSON,)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        method: In upper case.
        path: The pattern, such as `/v1/score/{model}`.
        name: Unique among all.
        group: Whose clients use it.
        summary: What it does, in a line.
        description: More of that.
        body: The request's shape; None for none.
        body_media_types: What it may be written in.
        is_body_required: Whether it may not be left out.
        example: A body that works.
        answers: By status: those that are this operation's own.
        refusals: By further statuses: when they are answered with.
        refusal: The shape of those.
        parameters: Names of those documented in `PARAMETERS`.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    group: str
    summary: str
    description: str = ""
    body: Any = None
    body_media_types: tuple[str, ...] = (JSON,)
    is_body_required: bool = True
    example: Mapping[str, Any] | None = None
    answers: Mapping[int, Answer]
    refusals: Mapping[int, str] = field(default_factory=dict)
    refusal: Any = None
    parameters: tuple[str, ...] = ()


HEADERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Retry-After": ("Seconds until it is worth asking again.", {"type": "integer", "minimum": 1}),
    "X-Request-Id": (
        "The request's id in the log: the caller's, or a new one.",
        {"type": "string"},
    ),
    "X-SIE-Error-Code": ("SIE's name for the failure, on every route.", {"type": "string"}),
    "X-SIE-Served-By": ("What computed the answer.", {"type": "string"}),
    "X-SIE-Server-Version": (
        "The version of the SIE protocol that is spoken here.",
        {"type": "string"},
    ),
    "X-Queue-Time": ("Milliseconds that the call waited for its first batch.", {"type": "number"}),
    "X-Tokenization-Time": ("Milliseconds of making tokens.", {"type": "number"}),
    "X-Inference-Time": (
        "Milliseconds from the beginning of the first batch to the end of the last.",
        {"type": "number"},
    ),
    "X-Total-Time": ("Milliseconds of the whole call in the engine.", {"type": "number"}),
}
"""Of replies: what each says, and its schema."""

PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "model": {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "A model's name; its slashes may stand as they are, or as %2F.",
        "schema": {"type": "string", "minLength": 1},
    },
    "requestId": {
        "name": "X-Request-Id",
        "in": "header",
        "required": False,
        "description": "An id by which the request is named in the log.",
        "schema": {"type": "string"},
    },
    "remote": {
        "name": "X-SIE-Remote",
        "in": "header",
        "required": False,
        "description": "Whether the call may be sent on to another server; this one never does.",
        "schema": {"type": "string", "enum": ["forbid"]},
    },
}
"""Of requests, by the names that operations use."""

TIMES: Final = (
    "X-SIE-Served-By",
    "X-SIE-Server-Version",
    "X-Queue-Time",
    "X-Tokenization-Time",
    "X-Inference-Time",
    "X-Total-Time",
)

_CALL_FAILURES: Final = {
    400: "The request is wrong; the message says where.",
    401: "The API key is missing or unknown.",
    403: "The API key does not allow this.",
    404: "The server does not serve that model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "The API key has used up its rate.",
    500: "The model failed, or the server did.",
    502: "The model could not be loaded.",
    503: "The model is being loaded, or there is too much work: come back.",
    504: "The answer was not there in time.",
}
"""How a call may fail, whichever client makes it."""

_LOOK_FAILURES: Final = {
    status: _CALL_FAILURES[status] for status in (401, 403, 404, 429, 500, 503)
}

_OPEN_FAILURES: Final = {
    403: "A page of another site asks, or the server is called by a name that is not its own."
}
"""How a request may fail that needs no key."""

_QUERY: Final = "what is python"
_TEXTS: Final = ["python is a programming language", "bananas are yellow fruit"]

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/score/{model}",
        name="score",
        group="SIE",
        summary="Score items against a query",
        description="Items come back best first, under their ids or as `item-N`.",
        parameters=("model", "remote", "requestId"),
        body=ScoreBody,
        body_media_types=(JSON, MSGPACK),
        example={"query": {"text": _QUERY}, "items": [{"text": text} for text in _TEXTS]},
        answers={
            200: Answer(
                description="The scores.",
                shape=ScoreResult,
                media_types=(JSON, MSGPACK),
                headers=TIMES,
            )
        },
        refusal=DetailReply,
        refusals=_CALL_FAILURES,
    ),
    Operation(
        method="POST",
        path="/v1/encode/{model}",
        name="encode",
        group="SIE",
        summary="Turn items into embeddings",
        parameters=("model", "remote", "requestId"),
        body=EncodeBody,
        body_media_types=(JSON, MSGPACK),
        example={"items": [{"text": text} for text in _TEXTS]},
        answers={
            200: Answer(
                description="The embeddings.",
                shape=EncodeReply,
                media_types=(JSON, MSGPACK),
                headers=TIMES,
            )
        },
        refusal=DetailReply,
        refusals=_CALL_FAILURES,
    ),
    Operation(
        method="GET",
        path="/v1/models",
        name="listModels",
        group="SIE",
        summary="List the models",
        answers={200: Answer(description="The models.", shape=ModelsReply)},
        refusal=DetailReply,
        refusals=_LOOK_FAILURES,
    ),
    Operation(
        method="GET",
        path="/v1/models/{model}",
        name="getModel",
        group="SIE",
        summary="Say how a model stands",
        parameters=("model",),
        answers={200: Answer(description="The model.", shape=ModelReply)},
        refusal=DetailReply,
        refusals=_LOOK_FAILURES,
    ),
    Operation(
        method="POST",
        path="/v1/models/{model}/reload",
        name="reloadModel",
        group="SIE",
        summary="Load a model's files anew, without downtime",
        description=(
            "The new files are loaded beside the old ones, which serve meanwhile. Allowed to keys "
            "with the role admin, or to all with `--allow-reload`."
        ),
        parameters=("model", "requestId"),
        body=ReloadBody,
        is_body_required=False,
        answers={200: Answer(description="The model, reloaded.", shape=ReloadedModelReply)},
        refusal=DetailReply,
        refusals=_CALL_FAILURES,
    ),
    Operation(
        method="POST",
        path="/v1/rerank",
        name="rerank",
        group="Cohere",
        summary="Rank documents, by Cohere's first interface, as sie-server has it",
        description=(
            "Relevance scores are probabilities, where the model has any, unless "
            "`options.score_space` is `raw`."
        ),
        parameters=("requestId",),
        body=RerankBody,
        example={"model": "MODEL", "query": _QUERY, "documents": _TEXTS, "top_n": 1},
        answers={200: Answer(description="The ranking.", shape=RerankReply, headers=TIMES)},
        refusal=ErrorReply,
        refusals=_CALL_FAILURES,
    ),
    Operation(
        method="POST",
        path="/v2/rerank",
        name="rerankV2",
        group="Cohere",
        summary="Rank documents, by Cohere's second interface",
        parameters=("requestId",),
        body=RerankBodyV2,
        example={"model": "MODEL", "query": _QUERY, "documents": _TEXTS, "top_n": 1},
        answers={200: Answer(description="The ranking.", shape=RerankReplyV2, headers=TIMES)},
        refusal=MessageReply,
        refusals=_CALL_FAILURES,
    ),
    Operation(
        method="POST",
        path="/rerank",
        name="rerankTexts",
        group="Text Embeddings Inference",
        summary="Rank texts",
        description="The server's first model that scores answers, or the one that `model` names.",
        parameters=("requestId",),
        body=RankBody,
        example={"query": _QUERY, "texts": _TEXTS},
        answers={200: Answer(description="The ranking.", shape=list[Rank], headers=TIMES)},
        refusal=TeiErrorReply,
        refusals=_CALL_FAILURES
        | {
            413: "There are too many texts, one is longer than the model reads and may not be cut, "
            "or the body is too large.",
            422: "A text would have to be cut at its beginning.",
        },
    ),
    Operation(
        method="POST",
        path="/v1/embeddings",
        name="embeddings",
        group="OpenAI",
        summary="Turn texts into vectors",
        description=(
            "`input` must be text: ids of tokens are refused. `dimensions` must be the size of the "
            "model's vectors."
        ),
        parameters=("requestId",),
        body=EmbeddingsBody,
        example={"model": "MODEL", "input": _TEXTS},
        answers={200: Answer(description="The vectors.", shape=EmbeddingsReply, headers=TIMES)},
        refusal=ErrorReply,
        refusals=_CALL_FAILURES,
    ),
    Operation(
        method="GET",
        path="/v1/status",
        name="status",
        group="Operation",
        summary="Say how the server and its models stand, in numbers",
        answers={200: Answer(description="The numbers.", shape=StatusReply)},
        refusal=DetailReply,
        refusals=_LOOK_FAILURES,
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="metrics",
        group="Operation",
        summary="Tell Prometheus what was done",
        answers={200: Answer(description="The metrics.", media_types=("text/plain",))},
        refusal=DetailReply,
        refusals=_LOOK_FAILURES,
    ),
    Operation(
        method="GET",
        path="/healthz",
        name="healthz",
        group="Operation",
        summary="Say that the server runs",
        answers={
            200: Answer(description="`ok`.", media_types=(TEXT,), headers=("X-SIE-Server-Version",))
        },
        refusal=DetailReply,
        refusals=_OPEN_FAILURES,
    ),
    Operation(
        method="GET",
        path="/livez",
        name="livez",
        group="Operation",
        summary="Say that the server runs",
        answers={
            200: Answer(description="`ok`.", media_types=(TEXT,), headers=("X-SIE-Server-Version",))
        },
        refusal=DetailReply,
        refusals=_OPEN_FAILURES,
    ),
    Operation(
        method="GET",
        path="/readyz",
        name="readyz",
        group="Operation",
        summary="Say whether calls should be sent here",
        answers={
            200: Answer(description="`ok`.", media_types=(TEXT,)),
            503: Answer(
                description="`loading` or `draining`: send calls elsewhere.", media_types=(TEXT,)
            ),
        },
        refusal=DetailReply,
        refusals=_OPEN_FAILURES,
    ),
    Operation(
        method="GET",
        path="/",
        name="page",
        group="Operation",
        summary="Try the server in a browser",
        answers={
            200: Answer(description="A page to rerank on.", media_types=(HTML,)),
            304: Answer(description="The browser has it.", media_types=()),
        },
        refusal=DetailReply,
        refusals=_OPEN_FAILURES,
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        name="openapi",
        group="Operation",
        summary="Describe the server's routes",
        answers={200: Answer(description="An OpenAPI 3.1 document.", shape=dict[str, Any])},
        refusal=DetailReply,
        refusals=_OPEN_FAILURES,
    ),
    Operation(
        method="GET",
        path="/docs",
        name="docs",
        group="Operation",
        summary="Show the same to a reader",
        answers={200: Answer(description="A page.", media_types=(HTML,))},
        refusal=DetailReply,
        refusals=_OPEN_FAILURES,
    ),
)
"""All of them, in the order of the document."""
