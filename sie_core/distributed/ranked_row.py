"""`RankedRow`: what is added to one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["complete", "partial", "degraded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """The ranking of one row's candidates, or why there is none.

    Attributes:
        ranking: Best first: of each candidate `index`, its place in the row's list, `score`, null
            where it was not scored, and `id`, where one is asked for. None where it failed.
        status: As `Ranking.status`, or `failed`.
        reason: Why it is not complete, else None.
        num_scored: Pairs of query and candidate that were scored.
        num_truncated: Of which so many were longer than the model reads.
    """

    ranking: list[dict[str, Any]] | None
    status: Status
    reason: str | None = None
    num_scored: int = 0
    num_truncated: int = 0
