"""sie: rerank in your own process, or against an SIE server.

    from sie_core import Reranker

    ranking = Reranker().rerank("how tall is the Eiffel Tower?", documents)
    best = documents[ranking.entries[0].index]

Names are imported when first used, so that `import sie_core` stays light: torch and transformers
are imported by `LocalClient` only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sie_core.cascade import Stage
    from sie_core.embedder import Embedder
    from sie_core.errors import SIEError
    from sie_core.local import LocalAsyncClient, LocalClient
    from sie_core.ranking import RankedEntry, Ranking
    from sie_core.remote import SIEAsyncClient, SIEClient
    from sie_core.reranker import Reranker
    from sie_core.score_cache import ScoreCache
    from sie_core.settings import (
        DEFAULT_EMBEDDING_MODEL,
        DEFAULT_MODEL,
        EngineSettings,
        SourceSettings,
    )
    from sie_core.telemetry import RerankEvent, RerankStats
    from sie_core.types import EncodeResult, Item, ScoreEntry, ScoreResult

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_EMBEDDING_MODEL",
    "DEFAULT_MODEL",
    "Embedder",
    "EncodeResult",
    "EngineSettings",
    "Item",
    "LocalAsyncClient",
    "LocalClient",
    "RankedEntry",
    "Ranking",
    "RerankEvent",
    "RerankStats",
    "Reranker",
    "SIEAsyncClient",
    "SIEClient",
    "SIEError",
    "ScoreCache",
    "ScoreEntry",
    "ScoreResult",
    "SourceSettings",
    "Stage",
    "__version__",
]

_HOMES = {
    "DEFAULT_EMBEDDING_MODEL": "settings",
    "DEFAULT_MODEL": "settings",
    "Embedder": "embedder",
    "EncodeResult": "types",
    "EngineSettings": "settings",
    "Item": "types",
    "LocalAsyncClient": "local",
    "LocalClient": "local",
    "RankedEntry": "ranking",
    "Ranking": "ranking",
    "RerankEvent": "telemetry",
    "RerankStats": "telemetry",
    "Reranker": "reranker",
    "SIEAsyncClient": "remote",
    "SIEClient": "remote",
    "SIEError": "errors",
    "ScoreCache": "score_cache",
    "ScoreEntry": "types",
    "ScoreResult": "types",
    "SourceSettings": "settings",
    "Stage": "cascade",
}


def __getattr__(name: str) -> object:
    """Import an exported name from its module at first use (PEP 562)."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
