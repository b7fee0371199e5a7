"""`Columns`: where a row of lists has its query, its candidates, and what is added to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sie_core.errors import InvalidRequestError

TEXT_KEYS = ("text", "content", "page_content", "passage")
"""Where a candidate that is a record has its text, unless told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns of a row, which is one query with its candidates.

    Attributes:
        query: Holds the query, a text.
        documents: Holds the candidates in retrieval order: a list of texts, or of records.
        text: Where candidates are records: the key of the text; None means the first of
            `TEXT_KEYS` that a record has.
        id: Where they are: the key of an id that goes into the ranking; None leaves it out.
        ranking: Is added: the ranking, best first. Two more take their names from it: `_status`
            and `_reason`.
    """

    query: str = "query"
    documents: str = "documents"
    text: str | None = None
    id: str | None = None
    ranking: str = "ranking"

    @property
    def status(self) -> str:
        """Holds `complete`, `partial`, `degraded`, or `failed` where there is no ranking."""
        return f"{self.ranking}_status"

    @property
    def reason(self) -> str:
        """Holds why it is not complete, else null."""
        return f"{self.ranking}_reason"

    @property
    def added(self) -> tuple[str, str, str]:
        """All that is added, in this order."""
        return self.ranking, self.status, self.reason

    def check(self, names: Iterable[str], where: str) -> None:
        """See that rows have what is read, and nothing under the names of what is added.

        Args:
            names: Of the columns there are.
            where: They are, for the error.

        Raises:
            InvalidRequestError: One is missing, or taken.
        """
        names = list(names)
        listed = ", ".join(names)
        for what, name in (("query", self.query), ("documents", self.documents)):
            if name not in names:
                msg = f"{where} has no column {name!r} for the {what}; its columns are: {listed}"
                raise InvalidRequestError(msg)
        for name in self.added:
            if name in names:
                msg = (
                    f"{where} has a column {name!r} already, where the ranking would go: give "
                    "another name for it (ranking column)"
                )
                raise InvalidRequestError(msg)

    def text_of(self, candidate: Any) -> str | None:
        """Return what is scored of a candidate; None is a candidate without text.

        Raises:
            InvalidRequestError: There is no telling.
        """
        if candidate is None or isinstance(candidate, str):
            return candidate
        if not isinstance(candidate, Mapping):
            msg = f"a candidate must be a text or a record, but is {_shown(candidate)}"
            raise InvalidRequestError(msg)
        keys = TEXT_KEYS if self.text is None else (self.text,)
        key = next((key for key in keys if key in candidate), None)
        if key is None:
            wanted = repr(self.text) if self.text else f"one of {', '.join(TEXT_KEYS)}"
            msg = f"a candidate has no {wanted}, but: {', '.join(map(str, candidate))}"
            raise InvalidRequestError(msg)
        text = candidate[key]
        if text is None or isinstance(text, str):
            return text
        msg = f"a candidate's {key!r} must be a text, but is {_shown(text)}"
        raise InvalidRequestError(msg)

    def id_of(self, candidate: Any) -> Any:
        """Return a candidate's id; None where it has none."""
        return candidate.get(self.id) if isinstance(candidate, Mapping) else None


def _shown(value: Any) -> str:
    return f"{type(value).__name__}: {value!r:.80}"
