"""SIE's ranker for Haystack: in your own process, or against an SIE server."""

from __future__ import annotations

from haystack_integrations.components.rankers.sie.ranker import SIERanker

__all__ = ["SIERanker"]
