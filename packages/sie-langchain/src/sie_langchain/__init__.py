"""SIE reranking and embeddings for LangChain: in your own process, or against an SIE server."""

from __future__ import annotations

from sie_langchain.cross_encoder import SIECrossEncoder
from sie_langchain.embeddings import SIEEmbeddings
from sie_langchain.overrides import RerankOverrides
from sie_langchain.reranker import SIEReranker
from sie_langchain.runnable import RerankInput

__all__ = ["RerankInput", "RerankOverrides", "SIECrossEncoder", "SIEEmbeddings", "SIEReranker"]
