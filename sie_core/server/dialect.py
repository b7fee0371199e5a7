"""What the handlers of other clients' routes have in common: a body read and checked, texts scored.

A dialect says what a body holds and how a reply looks; the models, the limits and the waiting are
those of the SIE protocol's own routes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from sie_core.errors import InvalidRequestError
from sie_core.server.admission import Visit
from sie_core.server.bodies import ItemBody, receive, to_item
from sie_core.server.failures import Failure, RefusedError
from sie_core.server.service import service_of
from sie_core.types import Item, ScoreResult

_T = TypeVar("_T")

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`( - at `\$`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `([^`]*)`( - at `\$`)?")
_MISTYPED = re.compile(r".* - at `\$\.([A-Za-z_]\w*)[^`]*`", re.DOTALL)
"""What msgspec says of a body that is not of its shape."""


async def read(
    request: Request, visit: Visit, shape: type[_T], requirements: Mapping[str, str]
) -> _T:
    """Read and decode a body.

    Args:
        request: Whose.
        visit: In which its bytes are counted.
        shape: What it must be.
        requirements: What each field must be, as the caller is told it.

    Raises:
        RefusedError: It is not of the shape; the failure names the field.
    """
    try:
        return await receive(request, visit, service_of(request).settings, shape)
    except InvalidRequestError as exc:
        raise _translate(str(exc), requirements) from exc


def _translate(reason: str, requirements: Mapping[str, str]) -> RefusedError:
    """Say what is wrong with a body in the words of its dialect, by the field."""
    if found := _UNKNOWN.fullmatch(reason):
        return wrong(f"field '{found[1]:.80}' is not supported", found[1])
    found = _MISSING.fullmatch(reason) or _MISTYPED.fullmatch(reason)
    if found and found[1] in requirements:
        return wrong(f"'{found[1]}' must be {requirements[found[1]]}", found[1])
    return wrong(f"request body must be a JSON object of this route: {reason}", None)


def wrong(message: str, parameter: str | None, *, status: int = 400) -> RefusedError:
    """Make the refusal of a request in which a field is wrong."""
    return RefusedError(
        Failure(status=status, code="INVALID_INPUT", message=message, parameter=parameter)
    )


def to_items(
    request: Request, texts: Sequence[str], field: str, *, status: int = 400
) -> list[Item]:
    """Check the texts of a request, and make items of them whose ids are their places.

    Args:
        request: Whose limits hold.
        texts: To be scored or encoded.
        field: Of the body, for the message.
        status: Of the refusal of too many.

    Raises:
        RefusedError: There are too many, or one is too long.
    """
    settings = service_of(request).settings
    if len(texts) > settings.max_items:
        message = (
            f"'{field}' holds {len(texts)} texts, but at most {settings.max_items} are taken per "
            "request; split it"
        )
        raise wrong(message, field, status=status)
    return [
        sized(request, ItemBody(id=str(place), text=text), f"{field}[{place}]", field)
        for place, text in enumerate(texts)
    ]


def to_query(request: Request, query: str) -> Item:
    """Check a query.

    Raises:
        RefusedError: It is blank, or too long.
    """
    if not query.strip():
        message = "'query' must be a non-empty string"
        raise wrong(message, "query")
    return sized(request, ItemBody(text=query), "query", "query")


def sized(request: Request, body: ItemBody, name: str, field: str) -> Item:
    """Make an item of a text, unless it is too long.

    Raises:
        RefusedError: It is.
    """
    try:
        return to_item(body, name, max_item_bytes=service_of(request).settings.max_item_bytes)
    except InvalidRequestError as exc:
        failure = Failure(status=400, code="INPUT_TOO_LONG", message=str(exc), parameter=field)
        raise RefusedError(failure) from exc


async def score(
    request: Request,
    *,
    model: str,
    query: str,
    items: Sequence[Item],
    options: Mapping[str, Any] | None = None,
) -> ScoreResult:
    """Score items, as probabilities unless the caller or the profile asks for another space.

    Sums of similarities (MaxSim) have no probability; they come as they are.

    Raises:
        SIEError: See `Service.score`.
        RefusedError: The same.
        CallerGoneError: The same.
    """
    service = service_of(request)
    given = dict(options or {})
    instruction = given.pop("instruction", None)
    if not isinstance(instruction, str | None):
        message = "'instruction' in 'options' must be a string"
        raise wrong(message, "options")

    async def ask(chosen: Mapping[str, Any]) -> ScoreResult:
        return await service.score(
            request,
            model=model,
            query=to_query(request, query),
            items=items,
            instruction=instruction,
            options=chosen,
        )

    profile = service.shelf.profile(service.shelf.find(model), given.get("profile") or "default")
    if (profile.options | given).get("score_space") is not None:
        return await ask(given)
    try:
        return await ask(given | {"score_space": "probability"})
    except InvalidRequestError:
        # Nothing was computed. What was wrong, if not the score space, is so again.
        return await ask(given)
