"""`SIEQueryBundle`: a query that says how its nodes are to be reranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import QueryBundle

from sie_core.ranking import check_top_k


@dataclass
class SIEQueryBundle(QueryBundle):
    """A query with settings for `SIENodePostprocessor`, which hold for this query alone.

    It goes wherever a `QueryBundle` goes: `query_engine.query(SIEQueryBundle("…", top_n=3))`.

    Attributes:
        top_n: Keep at most this many nodes; None means the postprocessor's, as below.
        score_threshold: Keep nodes with `score >= score_threshold`.
        instruction: Put before the query, for models trained with instructions.
        max_latency_ms: Return after this time with what is scored by then.
    """

    top_n: int | None = None
    score_threshold: float | None = None
    instruction: str | None = None
    max_latency_ms: float | None = None


def overrides_of(bundle: QueryBundle | None) -> dict[str, Any]:
    """Return what a query says otherwise than the postprocessor, by the core's names.

    Raises:
        InvalidRequestError: `top_n` is wrong.
    """
    if not isinstance(bundle, SIEQueryBundle):
        return {}
    check_top_k(bundle.top_n, name="top_n")
    given = {
        "top_k": bundle.top_n,
        "score_threshold": bundle.score_threshold,
        "instruction": bundle.instruction,
        "max_latency_ms": bundle.max_latency_ms,
    }
    return {name: value for name, value in given.items() if value is not None}
