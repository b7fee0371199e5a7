"""SIE reranking for Haystack: in your own process, or against an SIE server.

The component is defined in `haystack_integrations.components.rankers.sie`, because Haystack loads
serialised pipelines from that namespace only. It is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from haystack_integrations.components.rankers.sie import SIERanker

__all__ = ["SIERanker"]


def __getattr__(name: str) -> object:
    """Import the component at first use: `import haystack` takes seconds where torch is there."""
    if name != "SIERanker":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from haystack_integrations.components.rankers.sie import SIERanker

    return SIERanker


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
