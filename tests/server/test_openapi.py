"""The OpenAPI document: it names every route, and what it says of them is so.

`make test-schema` sends many more requests than the few of every run: SIE_TEST_SCHEMA_EXAMPLES.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import httpx
import jsonschema
import msgpack
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from sie_core.server.openapi import document
from sie_core.server.operations import OPERATIONS, Operation
from sie_core.server.run import Server

NUM_EXAMPLES = int(os.environ.get("SIE_TEST_SCHEMA_EXAMPLES", "15"))
MODELS = ["test/tiny-bert-ce", "test/tiny-xlmr-ce", "test/tiny-colbert", "test/tiny-embed"]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def test_every_route_is_described_and_nothing_else(served: Server) -> None:
    """By method and path; a new route wants a line in `operations`."""
    routes = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in served.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert routes == {(operation.method, operation.path) for operation in OPERATIONS}


def test_the_document_is_served_and_its_schemas_are_sound(served: Server) -> None:
    """OpenAPI 3.1, whose schemas are those of JSON Schema 2020-12."""
    found = httpx.get(f"{served.url}/openapi.json").json()
    assert found == json.loads(json.dumps(document()))
    assert found["openapi"] == "3.1.0"
    names = [
        described["operationId"] for path in found["paths"].values() for described in path.values()
    ]
    assert len(set(names)) == len(OPERATIONS)
    described = [operation for path in found["paths"].values() for operation in path.values()]
    # Told by the connection, which test_hostile.py tries, before any route is found.
    assert all("431" in operation["responses"] for operation in described)
    for schema in found["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["description"], schema["title"]
        assert "   " not in schema["description"], schema["title"]
    references = re.findall(r'"#/components/(\w+)/([^"]+)"', json.dumps(found))
    assert all(name in found["components"][kind] for kind, name in references)


def test_the_page_shows_every_operation_and_fetches_nothing(served: Server) -> None:
    """Plain HTML: no script, no style sheet, no image, and a policy that forbids them."""
    reply = httpx.get(f"{served.url}/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    for operation in OPERATIONS:
        assert f"{operation.method} {operation.path}</code>" in reply.text
    assert not re.search(r"<(script|img|link|iframe)|\bsrc=|@import|url\(", reply.text)
    links = re.findall(r'href="([^"]+)"', reply.text)
    assert set(links) == {"openapi.json", *(link for link in links if link.startswith("#"))}
    assert all(f'id="{link[1:]}"' in reply.text for link in links if link.startswith("#"))


def model_for(operation: Operation) -> str:
    """Name a model that can do what an operation is for."""
    is_encoding = operation.name in {"encode", "embeddings"}
    return "test/tiny-embed" if is_encoding else "test/tiny-bert-ce"


@pytest.mark.parametrize(
    "operation",
    [pytest.param(operation, id=operation.name) for operation in OPERATIONS if operation.example],
)
def test_the_examples_of_the_document_work(served: Server, operation: Operation) -> None:
    """What is answered has the shape and the headers that the document says it has."""
    model = model_for(operation)
    path = operation.path.replace("{model}", model)
    body = json.loads(json.dumps(operation.example).replace("MODEL", model))
    reply = httpx.post(f"{served.url}{path}", json=body, headers={"Accept": "application/json"})
    assert reply.status_code == 200, reply.text
    described = document()["paths"][operation.path]["post"]["responses"]["200"]
    schema = described["content"]["application/json"]["schema"]
    whole = {**schema, "components": document()["components"]}
    jsonschema.validate(reply.json(), whole, jsonschema.Draft202012Validator)
    assert [name for name in described["headers"] if name not in reply.headers] == []


@schemathesis.deserializer("application/msgpack")  # type: ignore[arg-type]  # its own types differ
def read_msgpack(_: Any, response: Any) -> Any:
    """Read a reply as the schemas describe it: an array as its numbers."""

    def as_list(value: Any) -> Any:
        if not (isinstance(value, dict) and b"data" in value):
            return value
        import numpy as np

        return np.frombuffer(value[b"data"], value[b"type"]).reshape(value[b"shape"]).tolist()

    return msgpack.unpackb(response.content, object_hook=as_list)


SCHEMA = schemathesis.openapi.from_dict(document())


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (operation.method, operation.path, mode)
        for operation in OPERATIONS
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or operation.body is not None
    ],
)
def test_whatever_is_sent_the_reply_is_a_documented_one(
    served: Server, method: str, path: str, mode: GenerationMode
) -> None:
    """No status that the document does not name, no other shape, and never the server's fault."""
    operation = SCHEMA[path][method]
    cases = operation.as_strategy(generation_mode=mode)

    @given(case=cases, model=st.sampled_from([*MODELS, None]))
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any, model: str | None) -> None:
        # Names made up at random are all unknown: most requests name a model that is there.
        if model is not None and "model" in case.path_parameters:
            case.path_parameters["model"] = model
        if model is not None and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model
        case.call_and_validate(base_url=served.url, checks=CHECKS)

    send()
