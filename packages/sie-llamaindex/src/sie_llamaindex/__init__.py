"""SIE reranking and embeddings for LlamaIndex: in your own process, or against an SIE server."""

from __future__ import annotations

from sie_llamaindex.embeddings import SIEEmbedding
from sie_llamaindex.query_bundle import SIEQueryBundle
from sie_llamaindex.reranker import SIENodePostprocessor

__all__ = ["SIEEmbedding", "SIENodePostprocessor", "SIEQueryBundle"]
