"""What becomes of documents that are longer than a model reads: asked for, sent and confirmed.

    LongDocuments(how="max_passage").as_options()   # what travels in `options`
    check_confirmed(options, reply)                 # whoever does not know the option cuts silently

The passages themselves are cut where the tokens are: `sie_core.local.passages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sie_core.errors import InvalidRequestError
from sie_core.ranking import check_top_k

Handling = Literal["truncate", "max_passage", "error"]
"""`truncate`: what does not fit is cut off. `max_passage`: the document is read in overlapping
passages, and its score is that of the best one. `error`: the call is refused."""

OPTIONS = ("long_documents", "passage_length", "passage_overlap", "max_passages")
"""Their names in the options of `score`."""

PASSAGE_OVERLAP = 64
"""Tokens that neighbouring passages share: more than most sentences have."""

MAX_PASSAGES = 32
"""Passages of one document: some 14,000 tokens for a model that reads 512."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongDocuments:
    """How long documents are handled.

    Attributes:
        how: See `Handling`; None leaves it to whoever scores, which is `truncate`.
        passage_length: Tokens of the document in a passage; None means as many as the model reads
            beside the query.
        passage_overlap: Tokens that neighbouring passages share, at most half of one; None means
            `PASSAGE_OVERLAP`.
        max_passages: Passages of one document; what is behind them is not read, and counted as
            truncated; None means `MAX_PASSAGES`.

    Raises:
        InvalidRequestError: A value is wrong.
    """

    how: Handling | None = None
    passage_length: int | None = None
    passage_overlap: int | None = None
    max_passages: int | None = None

    def __post_init__(self) -> None:
        if self.how is not None and self.how not in get_args(Handling):
            allowed = ", ".join(repr(name) for name in get_args(Handling))
            msg = f"long_documents must be {allowed}, or None, but got {self.how!r}"
            raise InvalidRequestError(msg)
        overlap = self.passage_overlap
        if overlap is not None and (isinstance(overlap, bool) or not isinstance(overlap, int)):
            msg = f"passage_overlap must be an integer or None, but got {overlap!r}"
            raise InvalidRequestError(msg)
        if overlap is not None and overlap < 0:
            msg = f"passage_overlap must be at least 0, but got {overlap}"
            raise InvalidRequestError(msg)
        check_top_k(self.passage_length, name="passage_length")
        check_top_k(self.max_passages, name="max_passages")

    @property
    def has_passages(self) -> bool:
        """Whether documents are read in passages."""
        return self.how == "max_passage"

    @property
    def overlap(self) -> int:
        """Return the tokens that neighbours share, where there is room for them."""
        return PASSAGE_OVERLAP if self.passage_overlap is None else self.passage_overlap

    @property
    def most(self) -> int:
        """Return the most passages of one document."""
        return MAX_PASSAGES if self.max_passages is None else self.max_passages

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> LongDocuments:
        """Read them from the options of a call.

        Raises:
            InvalidRequestError: A value is wrong, or has no meaning without `max_passage`.
        """
        found = cls(
            how=options.get("long_documents"),
            passage_length=options.get("passage_length"),
            passage_overlap=options.get("passage_overlap"),
            max_passages=options.get("max_passages"),
        )
        for name in OPTIONS[1:]:
            if options.get(name) is not None and not found.has_passages:
                msg = (
                    f"{name}={options[name]!r} has a meaning with long_documents='max_passage' "
                    f"only, but long_documents is {found.how!r}"
                )
                raise InvalidRequestError(msg)
        return found

    def as_options(self) -> dict[str, Any]:
        """Return what travels; nothing where nothing was asked for."""
        if self.how is None:
            return {}
        sizes: dict[str, Any] = {}
        if self.has_passages:
            sizes = {name: getattr(self, name) for name in OPTIONS[1:]}
        given = {"long_documents": self.how} | sizes
        return {name: value for name, value in given.items() if value is not None}


def check_confirmed(options: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
    """Hold a reply against the options it answers.

    A server that does not know an option ignores it, and cuts long documents silently; one that
    does says so in its reply.

    Raises:
        InvalidRequestError: Long documents were to be handled in a way that is not confirmed.
    """
    wanted = options.get("long_documents")
    got = reply.get("long_documents")
    if wanted in (None, "truncate") or got == wanted or not reply:
        return
    msg = (
        f"long_documents={wanted!r} was asked for, but the backend "
        f"{'says ' + repr(got) if got else 'does not say that it did so'}: servers that do not "
        "know the option cut long documents silently; use a server of this package or a model in "
        "this process, or leave long_documents out"
    )
    raise InvalidRequestError(msg)
