"""The in-process engine: cross-encoders on this machine's CPU or GPU.

Beside this package only what trains models imports torch or transformers. A query's way through it:
`client` (checks, ids) → `registry` (one loaded model per process) → `tokenization` (ids, pairs)
→ `scheduler` (fair turns, batches) → `packing` (one row) → `encoder` (forward pass, scores).
"""

from __future__ import annotations

from sie_core.errors import MissingDependencyError

try:
    from sie_core.local.async_client import LocalAsyncClient
    from sie_core.local.client import LocalClient
    from sie_core.local.registry import release, swap
except ModuleNotFoundError as exc:
    if exc.name is None or exc.name.partition(".")[0] == "sie_core":
        raise
    msg = (
        f"scoring in this process needs the package {exc.name!r}, which is not installed: "
        "run `pip install 'sie-core[local]'`, or set base_url to use a server"
    )
    raise MissingDependencyError(msg) from exc

__all__ = ["LocalAsyncClient", "LocalClient", "release", "swap"]
