"""What spans say, under the names of OpenInference's semantic conventions.

The names are those of openinference-semantic-conventions 0.1.42
(https://github.com/Arize-ai/openinference/tree/main/spec); what it has no name for begins with
`sie.`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sie_core.telemetry.otel import MAX_TRACED_DOCUMENTS
from sie_core.telemetry.rerank_event import RerankEvent
from sie_core.types import Timing


def reranker_attributes(model: str, *, top_k: int | None, num_documents: int) -> dict[str, Any]:
    """Return what a reranker's span says from the start."""
    attributes: dict[str, Any] = {
        "openinference.span.kind": "RERANKER",
        "reranker.model_name": model,
        "sie.num_documents": num_documents,
    }
    if top_k is not None:
        attributes["reranker.top_k"] = top_k
    return attributes


def reranker_input(query: str | None, documents: Sequence[str | None]) -> dict[str, Any]:
    """Return the contents of a call; documents are named by their places."""
    attributes: dict[str, Any] = {"reranker.query": query}
    for i, text in enumerate(documents[:MAX_TRACED_DOCUMENTS]):
        prefix = f"reranker.input_documents.{i}.document"
        attributes[f"{prefix}.id"] = str(i)
        attributes[f"{prefix}.content"] = text
    return attributes


def reranker_output(
    ranked: Sequence[tuple[int, float | None]], documents: Sequence[str | None] | None
) -> dict[str, Any]:
    """Return the documents that came out, best first: their places and scores.

    Args:
        ranked: The place in the list given, and the score.
        documents: The texts, if they may be shown.
    """
    attributes: dict[str, Any] = {}
    for position, (index, score) in enumerate(ranked[:MAX_TRACED_DOCUMENTS]):
        prefix = f"reranker.output_documents.{position}.document"
        attributes[f"{prefix}.id"] = str(index)
        attributes[f"{prefix}.score"] = score
        if documents is not None:
            attributes[f"{prefix}.content"] = documents[index]
    return attributes


def outcome_attributes(event: RerankEvent) -> dict[str, Any]:
    """Return what became of a rerank call, without what might quote a text."""
    return {
        "sie.status": event.status,
        "sie.served_by": event.served_by,
        "sie.num_ranked": event.num_ranked,
        "sie.num_input_tokens": event.num_input_tokens,
        "sie.num_truncated": event.num_truncated,
        "sie.num_scored": event.num_scored,
        "sie.num_cached": event.num_cached,
        "sie.num_duplicates": event.num_duplicates,
        **timing_attributes(event.timing),
    }


def timing_attributes(timing: Timing | Mapping[str, float]) -> dict[str, Any]:
    """Return where the time went."""
    return {f"sie.timing.{name}": milliseconds for name, milliseconds in timing.items()}


def embedding_attributes(
    model: str, arguments: Mapping[str, Any], num_texts: int
) -> dict[str, Any]:
    """Return what an embedder's span says from the start."""
    return {
        "openinference.span.kind": "EMBEDDING",
        "embedding.model_name": model,
        "embedding.invocation_parameters": json.dumps(dict(arguments), default=str),
        "sie.num_texts": num_texts,
    }


def embedding_input(texts: Sequence[str | None]) -> dict[str, Any]:
    """Return the texts of a call."""
    return {
        f"embedding.embeddings.{i}.embedding.text": text
        for i, text in enumerate(texts[:MAX_TRACED_DOCUMENTS])
    }
