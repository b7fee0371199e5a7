"""`CallRecord`: what is known of one request, for the log, the metrics and the trace."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

_KEY = "sie.call"


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """Filled in as the request goes on; never holds a text or a key.

    Attributes:
        request_id: The caller's, or one of ours.
        caller: The name of the key that was used; None where no key is needed.
        is_admin: Whether the caller may change what the server serves.
        route: The path's pattern, such as `/v1/score/{model}`.
        model: The model, by the name that the server has for it; None where it has none.
        num_items: Items in the request.
        num_body_bytes: Bytes of the request's body.
        usage: What the call consumed.
        timing: How long its parts took, in milliseconds.
        code: Of the failure, if it failed.
    """

    request_id: str | None = None
    caller: str | None = None
    is_admin: bool = False
    route: str | None = None
    model: str | None = None
    num_items: int = 0
    num_body_bytes: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = None


def record_of(scope: MutableMapping[str, Any], begun: CallRecord | None = None) -> CallRecord:
    """Return the record of a request, made at the first time of asking.

    Args:
        scope: The request's.
        begun: The record from now on: what is known already, where the request came from elsewhere.
    """
    if begun is not None:
        scope[_KEY] = begun
    record = scope.get(_KEY)
    if not isinstance(record, CallRecord):
        record = scope[_KEY] = CallRecord()
    return record
