"""`Receipt`: that a block's rows are written, and what ranking them came to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from sie_core.distributed.ranked_row import RankedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of one block, or of many together.

    Attributes:
        num_rows: Rows read, and written.
        num_scored: Pairs of query and candidate that were scored.
        num_truncated: Of which so many were longer than the model reads.
        num_failed: Rows without a ranking.
        num_partial: Rows whose ranking is partial.
        num_degraded: Rows that another than the model asked for has ranked.
        first_reason: Of the first row that is not complete; None where all are.
    """

    num_rows: int = 0
    num_scored: int = 0
    num_truncated: int = 0
    num_failed: int = 0
    num_partial: int = 0
    num_degraded: int = 0
    first_reason: str | None = None

    @classmethod
    def of(cls, ranked: Sequence[RankedRow], where: str, first_row: int) -> Self:
        """Count rows, of which the first one is `first_row` of the file `where`."""
        reasons = (
            f"{where} row {number}: {row.reason}"
            for number, row in enumerate(ranked, start=first_row)
            if row.status != "complete"
        )
        statuses = [row.status for row in ranked]
        return cls(
            num_rows=len(ranked),
            num_scored=sum(row.num_scored for row in ranked),
            num_truncated=sum(row.num_truncated for row in ranked),
            num_failed=statuses.count("failed"),
            num_partial=statuses.count("partial"),
            num_degraded=statuses.count("degraded"),
            first_reason=next(reasons, None),
        )

    def __add__(self, other: Self) -> Self:
        """Count two together."""
        mine, others = asdict(self), asdict(other)
        reason = mine.pop("first_reason") or others.pop("first_reason")
        others.pop("first_reason", None)
        return type(self)(
            **{name: number + others[name] for name, number in mine.items()}, first_reason=reason
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write it whole, or not at all."""
        staged = path.with_name(f"{path.name}.unfinished")
        staged.write_text(json.dumps(self.to_dict()), encoding="utf-8")
        staged.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_bytes()))
