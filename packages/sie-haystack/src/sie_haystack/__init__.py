"""SIE reranking and embeddings for Haystack: in your own process, or against an SIE server.

The components are defined in `haystack_integrations.components`, because Haystack loads serialised
pipelines from that namespace only. They are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from haystack_integrations.components.embedders.sie import SIEDocumentEmbedder, SIETextEmbedder
    from haystack_integrations.components.rankers.sie import SIERanker

__all__ = ["SIEDocumentEmbedder", "SIERanker", "SIETextEmbedder"]

_HOMES = {
    "SIEDocumentEmbedder": "haystack_integrations.components.embedders.sie",
    "SIERanker": "haystack_integrations.components.rankers.sie",
    "SIETextEmbedder": "haystack_integrations.components.embedders.sie",
}


def __getattr__(name: str) -> object:
    """Import a component at first use: `import haystack` takes seconds where torch is there."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
