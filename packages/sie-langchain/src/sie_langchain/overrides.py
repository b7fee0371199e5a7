"""`RerankOverrides`: what one call may say otherwise than its component's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict  # pydantic refuses that of `typing` below Python 3.12

from sie_core.errors import InvalidRequestError
from sie_core.ranking import check_top_k
from sie_core.rerank_plan import CallSettings


class RerankOverrides(TypedDict, total=False):
    """None, as leaving it out, means the component's own field."""

    top_n: int | None
    score_threshold: float | None
    instruction: str | None
    max_latency_ms: float | None


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given, by the core's names.

    Raises:
        InvalidRequestError: A name is unknown, or a value is wrong.
    """
    known = RerankOverrides.__annotations__
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        msg = f"unknown override {unknown[0]!r}; a call may give {', '.join(known)}"
        raise InvalidRequestError(msg)
    check_top_k(overrides.get("top_n"), name="top_n")
    given = {name: value for name, value in overrides.items() if value is not None}
    if "top_n" in given:
        given["top_k"] = given.pop("top_n")
    CallSettings(**given)  # checks them
    return given
