"""Calls to an SIE server.

What is sent and what comes back is decided by pure functions: `codec` (bytes to values), `wire`
(requests and replies), `failures` (error replies), `retry` (when to ask again), `plan` (one call
from first attempt to answer). `SIEClient` and `SIEAsyncClient` carry out a plan; they differ in
how they wait, and in nothing else.
"""

from __future__ import annotations

from sie_core.remote.async_client import SIEAsyncClient
from sie_core.remote.client import SIEClient

__all__ = ["SIEAsyncClient", "SIEClient"]
