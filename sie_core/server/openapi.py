"""The OpenAPI 3.1 document of the server, and a page that shows it. Both without outside assets."""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sie_core.server.operations import (
    HEADERS,
    HTML,
    JSON,
    OPERATIONS,
    PARAMETERS,
    Answer,
    Operation,
)

_REFERENCE: Final = "#/components/schemas/{name}"
_REFUSAL_HEADERS: Final = ("X-SIE-Error-Code",)
_HEAD_TOO_LARGE: Final = {
    "description": "Request line and headers are too large; told before any route is found.",
    "content": {JSON: {"schema": {"$ref": "#/components/schemas/DetailReply"}}},
}
"""What any operation may answer with besides."""

_RETRIED: Final = (429, 503)
"""Statuses that say when to come back."""

_DESCRIPTION: Final = (
    "Rerankers and encoders of one process, by the protocol of the SIE server and by those of "
    "Cohere, OpenAI and Text Embeddings Inference. Errors are always JSON."
)


async def openapi(_: Request) -> Response:
    """Answer `GET /openapi.json`."""
    return Response(msgspec.json.encode(document()), media_type=JSON)


async def docs(_: Request) -> Response:
    """Answer `GET /docs`."""
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(page(), headers=policy, media_type=HTML)


@cache
def document() -> dict[str, Any]:
    """Make the document of the operations' table."""
    shapes = list(dict.fromkeys(_shapes()))
    schemas, components = msgspec.json.schema_components(shapes, ref_template=_REFERENCE)
    schema_of = dict(zip(map(str, shapes), schemas, strict=True))
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        described = _describe(operation, schema_of)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sie serve",
            "description": _DESCRIPTION,
            "version": metadata.version("sie-core"),
        },
        "paths": paths,
        "components": {
            "schemas": {name: _tidy(schema) for name, schema in components.items()},
            "headers": {
                name: {"description": description, "schema": schema}
                for name, (description, schema) in HEADERS.items()
            },
            "responses": {"HeadTooLarge": _HEAD_TOO_LARGE},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _shapes() -> list[Any]:
    """List every shape that the table names."""
    named = []
    for operation in OPERATIONS:
        answered = [answer.shape for answer in operation.answers.values()]
        named += [operation.body, operation.refusal, *answered]
    return [shape for shape in named if shape is not None]


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """Take the indentation of the source out of a description."""
    if "description" in schema:
        schema["description"] = inspect.cleandoc(schema["description"])
    return schema


def _describe(operation: Operation, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    answers = {
        str(status): _answer(answer, schema_of) for status, answer in operation.answers.items()
    }
    for status, description in operation.refusals.items():
        retried = ("Retry-After",) if status in _RETRIED else ()
        refusal = Answer(
            description=description,
            shape=operation.refusal,
            headers=(*_REFUSAL_HEADERS, *retried),
        )
        answers[str(status)] = _answer(refusal, schema_of)
    answers["431"] = {"$ref": "#/components/responses/HeadTooLarge"}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.group],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [PARAMETERS[name] for name in operation.parameters],
        "responses": dict(sorted(answers.items())),
    }
    if operation.body is not None:
        content: dict[str, Any] = {"schema": schema_of[str(operation.body)]}
        if operation.example is not None:
            content["example"] = operation.example
        described["requestBody"] = {
            "required": operation.is_body_required,
            "content": dict.fromkeys(operation.body_media_types, content),
        }
    return described


def _answer(answer: Answer, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "string"} if answer.shape is None else schema_of[str(answer.shape)]
    described: dict[str, Any] = {
        "description": answer.description,
        "content": {kind: {"schema": schema} for kind in answer.media_types},
    }
    described["headers"] = {
        name: {"$ref": f"#/components/headers/{name}"} for name in (*answer.headers, "X-Request-Id")
    }
    return described


_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: #8881; overflow-x: auto; padding: .75rem; }
section { border-top: 1px solid #8888; margin-top: 2rem; }
table { border-collapse: collapse; }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
"""


@cache
def page() -> str:
    """Write the document as a page: plain HTML, readable without a script."""
    described = document()
    sections = [
        _section(operation, described["paths"][operation.path][operation.method.lower()])
        for operation in OPERATIONS
    ]
    shapes = [
        f'<section id="{html.escape(name)}"><h3>{html.escape(name)}</h3>{_schema(schema)}</section>'
        for name, schema in described["components"]["schemas"].items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>sie serve</title><style>{_STYLE}</style></head><body>"
        f"<h1>sie serve</h1><p>{html.escape(_DESCRIPTION)} "
        'The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(sections)}<h2>Shapes</h2>{''.join(shapes)}</body></html>"
    )


def _section(operation: Operation, described: Mapping[str, Any]) -> str:
    title = f"<code>{operation.method} {html.escape(operation.path)}</code>"
    said = (operation.summary, operation.description)
    parts = [f"<section><h2>{title}</h2>"]
    parts += [f"<p>{_prose(text)}</p>" for text in said if text]
    if operation.body is not None:
        content = described["requestBody"]["content"][JSON]
        parts.append(f"<p>Body: {_reference(content['schema'])}</p>")
    if operation.example is not None:
        written = json.dumps(operation.example, indent=2)
        command = (
            f"curl http://localhost:8080{operation.path} -H 'Content-Type: application/json' \\\n"
            f"  -H 'Accept: application/json' -d '{written}'"
        )
        parts.append(f"<pre>{html.escape(command)}</pre>")
    rows = [
        f"<tr><td>{status}</td><td>{_prose(answer['description'])}</td>"
        f"<td>{_contents(answer['content'])}</td></tr>"
        for status, answer in described["responses"].items()
        if "$ref" not in answer
    ]
    parts.append(f"<table>{''.join(rows)}</table></section>")
    return "".join(parts)


def _contents(content: Mapping[str, Any]) -> str:
    return ", ".join(
        _reference(described["schema"]) if kind == JSON else html.escape(kind.partition(";")[0])
        for kind, described in content.items()
    )


def _schema(schema: Mapping[str, Any]) -> str:
    required: Sequence[str] = schema.get("required", ())
    rows = [
        f"<tr><td><code>{html.escape(name)}</code></td><td>{_reference(described)}</td>"
        f"<td>{'required' if name in required else ''}</td></tr>"
        for name, described in schema.get("properties", {}).items()
    ]
    return f"<p>{_prose(schema.get('description', ''))}</p><table>{''.join(rows)}</table>"


def _prose(text: str) -> str:
    """Write text with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _reference(schema: Mapping[str, Any]) -> str:
    """Name a schema: a link to a shape, or what values are."""
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_reference, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"array of {_reference(schema.get('items', {}))}"
    if "enum" in schema:
        return " or ".join(
            f"<code>{html.escape(json.dumps(value))}</code>" for value in schema["enum"]
        )
    return html.escape(str(schema.get("type", "anything")))
