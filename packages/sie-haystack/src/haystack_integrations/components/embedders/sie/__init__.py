"""SIE's embedders for Haystack: in your own process, or against an SIE server."""

from __future__ import annotations

from haystack_integrations.components.embedders.sie.document_embedder import SIEDocumentEmbedder
from haystack_integrations.components.embedders.sie.text_embedder import SIETextEmbedder

__all__ = ["SIEDocumentEmbedder", "SIETextEmbedder"]
