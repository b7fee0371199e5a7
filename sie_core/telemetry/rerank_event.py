"""`RerankEvent`: what became of one rerank call, for hooks, counts, metrics and spans."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sie_core.types import Timing

RerankStatus = Literal["complete", "partial", "degraded", "failed", "cancelled"]
"""A ranking's own status, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankEvent:
    """One call that has ended. It holds no query and no text.

    Attributes:
        model: The model that was asked for.
        status: What became of it; `cancelled`: who waited for it left.
        duration_seconds: From the call to its end.
        num_documents: Candidates given.
        num_ranked: Candidates in the ranking.
        num_input_tokens: Tokens consumed, as far as the backend tells.
        num_truncated: Candidates that lost their end, as far as the backend tells.
        num_scored: Candidates that have a score of the model.
        num_cached: Those of them whose scores were known already.
        num_duplicates: Candidates left out because their text stood before.
        served_by: Who answered: `local`, or a server's address; None where nobody did.
        reason: Why backends before that one did not, or why the answer is not a whole one. It may
            quote what they were sent.
        error: What the call raised.
        timing: Where the time went in whoever scored; of several requests one after the other,
            their sum; of those side by side, the longest.
    """

    model: str
    status: RerankStatus
    duration_seconds: float
    num_documents: int
    num_ranked: int = 0
    num_input_tokens: int = 0
    num_truncated: int = 0
    num_scored: int = 0
    num_cached: int = 0
    num_duplicates: int = 0
    served_by: str | None = None
    reason: str | None = None
    error: BaseException | None = None
    timing: Timing = field(default_factory=Timing)

    @property
    def error_type(self) -> str | None:
        """The name of the error's class."""
        return None if self.error is None else type(self.error).__name__
