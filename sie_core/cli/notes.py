"""What `sie rerank` says on stderr about its answers, beside the answers themselves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sie_core.cli.terminal import printable

if TYPE_CHECKING:
    from sie_core.ranking import Ranking

_MAX_REASON_CHARS = 1000
"""Room for what two or three servers said."""


class Notes:
    """Counts what is worth a note, over all queries."""

    def __init__(self) -> None:
        self._num_queries = 0
        self._num_truncated = 0
        self._others: dict[tuple[str, bool], list[str]] = {}

    def add(self, ranking: Ranking) -> None:
        """Look at one query's answer."""
        self._num_queries += 1
        self._num_truncated += ranking.usage.get("truncated_items", 0)
        if ranking.reason is not None:
            key = ranking.served_by, ranking.status == "degraded"
            self._others.setdefault(key, []).append(ranking.reason)

    def say(self) -> None:
        """Write one line for each kind of thing that happened, and none where all was well."""
        for (served_by, is_degraded), reasons in self._others.items():
            number = f" {len(reasons)} of {self._num_queries} queries"
            sys.stderr.write(
                f"note: {'degraded: ' if is_degraded else ''}{served_by} answered"
                f"{number if self._num_queries > 1 else ''}, because "
                f"{printable(reasons[0], max_chars=_MAX_REASON_CHARS)}\n"
            )
        if self._num_truncated:
            sys.stderr.write(
                f"note: {self._num_truncated} pairs of query and document were longer than the "
                "model's maximum, and the end of the document was not read\n"
            )
