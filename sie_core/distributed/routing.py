"""Which model a request speaks of: what a cluster must know before it sends the request anywhere.

The native routes name it in their path, the others in their body. Of a body nothing else is built.
"""

from __future__ import annotations

import msgspec

from sie_core.errors import InvalidRequestError
from sie_core.server.bodies import decode


class _Named(msgspec.Struct):
    model: str | None = None


def model_in(body: bytes, content_type: str) -> str | None:
    """Return the model that a body names.

    Args:
        body: JSON, or msgpack where its content type says so.
        content_type: Of the body.

    Returns:
        None where it names none, or is not of any route's shape: who answers it will say so.
    """
    try:
        return decode(body, content_type, _Named).model
    except InvalidRequestError:
        return None
