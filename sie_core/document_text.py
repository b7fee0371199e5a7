r"""`DocumentText`: what of a document is ranked: its content, and metadata before it.

    text = DocumentText(meta_fields=("title", "tags"), meta_template="{name}: {value}")
    ranked = text.of_document("Tea is grown here.", {"title": "Assam", "tags": ["tea", "plain"]})
    ranked.text               # "title: Assam\ntags: tea, plain\nTea is grown here."
    ranked.in_content((0, 44))   # the same place in the content alone: (0, 14)

The documents themselves are never changed: this only makes texts of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from string import Formatter
from typing import Any

from sie_core.errors import InvalidRequestError

Span = tuple[int, int]
"""A beginning and an end, in characters."""


@dataclass(frozen=True, slots=True)
class RankedText:
    """A text to be ranked, and where the document's content is in it.

    Attributes:
        text: What is ranked.
        start: Where the content begins; before the text does where blanks in front were cut off.
        end: Where it ends, blanks that were cut off included; `start` where the text does not have
            it, and so no part of the text has a place in it.
    """

    text: str
    start: int
    end: int

    def in_content(self, span: Span) -> Span | None:
        """Return a place in the text as one in the content; None where that has no part of it."""
        start = max(span[0], self.start) - self.start
        end = min(span[1], self.end) - self.start
        return (start, end) if start < end else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentText:
    """What stands around queries and documents when they are ranked.

    Attributes:
        meta_fields: Metadata fields whose values stand before the content, in this order. A field
            that a document does not have, or that is None or blank there, is left out.
        meta_template: How each of them is written; `{name}` and `{value}` stand for its own.
        meta_separator: Between them, and before the content.
        query_prefix: Before the query.
        query_suffix: After it.
        document_prefix: Before all of a document's text.
        document_suffix: After it.

    Raises:
        InvalidRequestError: A value is wrong.
    """

    meta_fields: Sequence[str] = ()
    meta_template: str = "{value}"
    meta_separator: str = "\n"
    query_prefix: str = ""
    query_suffix: str = ""
    document_prefix: str = ""
    document_suffix: str = ""

    def __post_init__(self) -> None:
        fields = self.meta_fields
        is_list = isinstance(fields, Sequence) and not isinstance(fields, str)
        if not is_list or not all(isinstance(name, str) for name in fields):
            msg = f"meta_fields must be a list of names such as ['title'], but got {fields!r}"
            raise InvalidRequestError(msg)
        for name in (
            "meta_separator",
            "query_prefix",
            "query_suffix",
            "document_prefix",
            "document_suffix",
        ):
            value = getattr(self, name)
            if not isinstance(value, str):
                msg = f"{name} must be a string, but got {value!r}"
                raise InvalidRequestError(msg)
        _check_template(self.meta_template)

    def of_query(self, query: str) -> str:
        """Put prefix and suffix around a query.

        A blank one stays as it is: it is an error, which they would hide.
        """
        if not isinstance(query, str) or not query.strip():
            return query
        return f"{self.query_prefix}{query}{self.query_suffix}"

    def of_document(
        self, content: str | None, metadata: Mapping[str, Any] | None = None
    ) -> RankedText | None:
        """Put a document's metadata and content together, and prefix and suffix around them.

        Returns:
            None where there is neither content nor one of the fields: prefixes make no text of
            nothing, and the document stays unscored.
        """
        parts = list(self._values(metadata or {}))
        content = content or ""
        if not parts and not content.strip():
            return None
        before = self.document_prefix + "".join(part + self.meta_separator for part in parts)
        end = len(before) + len(content)
        return RankedText(f"{before}{content}{self.document_suffix}", len(before), end)

    def texts_of(
        self, documents: Iterable[tuple[str | None, Mapping[str, Any]]]
    ) -> list[str | None]:
        """Return what is ranked of documents, given the content and the metadata of each."""
        ranked = (self.of_document(content, metadata) for content, metadata in documents)
        return [None if it is None else it.text for it in ranked]

    def of_text(self, text: str, content: str) -> RankedText | None:
        """Put prefix and suffix around a text that already has the metadata in it.

        Args:
            text: As a framework writes it.
            content: What of it is the document's content.

        Returns:
            None where there is no content: metadata that nobody named is no reason to score it.
        """
        if not content.strip():
            return None
        start, end = _place_of(content, text)
        before = len(self.document_prefix)
        whole = f"{self.document_prefix}{text}{self.document_suffix}"
        return RankedText(whole, before + start, before + end)

    def _values(self, metadata: Mapping[str, Any]) -> Iterator[str]:
        for name in self.meta_fields:
            value = as_text(metadata.get(name))
            if value.strip():
                yield self.meta_template.format(name=name, value=value)


def as_text(value: object) -> str:
    """Write a metadata value as a text; None is an empty one.

    The members of lists and sets are separated by commas, those of sets in the order of their
    texts; of mappings each is written `name: value`.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        named = ((as_text(name), as_text(member)) for name, member in value.items())
        return ", ".join(f"{name}: {member}" for name, member in named if member.strip())
    if isinstance(value, AbstractSet):
        return ", ".join(sorted(filter(str.strip, map(as_text, value))))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return ", ".join(filter(str.strip, map(as_text, value)))
    return str(value)


def _place_of(content: str, text: str) -> Span:
    """Return where a framework's text has the content, which metadata mostly stands before.

    LlamaIndex strips what it puts together: blanks around the content may be missing. A template
    may also change the content: then it has no place, which is an empty one.
    """
    start = text.rfind(content)
    if start < 0:
        start = text.rfind(content.strip())
        if start < 0:
            return 0, 0
        start -= len(content) - len(content.lstrip())
    return start, start + len(content)


def _check_template(template: object) -> None:
    msg = f"meta_template must have {{value}} in it, and may have {{name}}, but got {template!r}"
    if not isinstance(template, str):
        raise InvalidRequestError(msg)
    try:
        named = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as exc:
        raise InvalidRequestError(msg) from exc
    if "value" not in named or not set(named) <= {"name", "value"}:
        raise InvalidRequestError(msg)
