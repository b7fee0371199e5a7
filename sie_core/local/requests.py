"""Calls, checked: their arguments with nothing left to doubt. What is wrong is named here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from sie_core import long_documents
from sie_core.errors import InvalidRequestError
from sie_core.long_documents import LongDocuments
from sie_core.ranking import check_score_space, check_top_k
from sie_core.types import Item, ScoreSpace, encodable

if TYPE_CHECKING:
    from sie_core.local.lora import Adapter

_PLAIN_SCORE_OPTIONS = (
    "max_length",
    "max_document_length",
    "score_space",
    "batch_size",
    "lora",
)
SCORE_OPTIONS = (*_PLAIN_SCORE_OPTIONS, *long_documents.OPTIONS)
ENCODE_OPTIONS = ("max_length", "batch_size", "is_query")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """One checked `score` call.

    Attributes:
        model: As the caller named it.
        query: Item with a text, or with a multivector.
        instruction: What the query is to be read by, if anything.
        items: Items with a text or a multivector each.
        max_length: Tokens per sequence; None for the model's own.
        max_document_length: Tokens of an item's text, by itself; None for as many as fit.
        score_space: What is asked for; None for the model's own.
        batch_size: Sequences per forward pass at most.
        lora: The adapter asked for, a folder or a name; None for the model as it is.
        adapter: The same, once it is loaded.
        long_documents: What is done with items that are longer than the model reads.
    """

    model: str
    query: Item
    instruction: str | None
    items: Sequence[Item]
    max_length: int | None = None
    max_document_length: int | None = None
    score_space: ScoreSpace | None = None
    batch_size: int | None = None
    lora: str | None = None
    adapter: Adapter | None = None
    long_documents: LongDocuments = field(default_factory=LongDocuments)

    @property
    def item_ids(self) -> list[str]:
        """Return the id of each item: the caller's, or one by its position."""
        return [item.get("id") or f"item-{i}" for i, item in enumerate(self.items)]

    @property
    def num_characters(self) -> float:
        """Count the characters of all texts; vectors are as many as one likes."""
        return _num_characters([self.query, *self.items])

    @property
    def query_text(self) -> str:
        """Return the query's text, for a model that reads texts alone.

        Raises:
            InvalidRequestError: It has none.
        """
        return _text_of(self.query, "query", self.model)

    @property
    def texts(self) -> list[str]:
        """Return the items' texts, for a model that reads texts alone.

        Raises:
            InvalidRequestError: An item has none.
        """
        return [_text_of(item, f"items[{i}]", self.model) for i, item in enumerate(self.items)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRequest:
    """One checked `encode` call.

    Attributes:
        model: As the caller named it.
        items: Items with a text each.
        is_single: Whether the caller gave one item, not a list.
        is_query: Whether the texts are queries.
        output_types: Which embeddings; None for the model's own.
        output_dtype: The number format of the embeddings; None for float32.
        instruction: What the texts are to be read by, if anything.
        max_length: Tokens per text; None for the model's own.
        batch_size: Texts per forward pass at most.
    """

    model: str
    items: Sequence[Item]
    is_single: bool = False
    is_query: bool = False
    output_types: tuple[str, ...] | None = None
    output_dtype: str | None = None
    instruction: str | None = None
    max_length: int | None = None
    batch_size: int | None = None

    @property
    def num_characters(self) -> float:
        """Count the characters of all texts."""
        return _num_characters(self.items)

    @property
    def texts(self) -> list[str]:
        """Return the items' texts."""
        return [item["text"] for item in self.items]


def with_instruction(instruction: str | None, text: str) -> str:
    """Return a text with the instruction that a caller gave before it."""
    return f"{instruction} {text}" if instruction else text


def check_score_request(
    model: str,
    query: Item,
    items: Sequence[Item],
    instruction: str | None,
    options: Mapping[str, Any] | None,
) -> ScoreRequest:
    """Check a `score` call's arguments.

    Raises:
        InvalidRequestError: One is wrong; the message names it.
    """
    _check_model(model)
    _check_items(items)
    _check_item(query, "query", may_be_vectors=True)
    _check_instruction(instruction)
    chosen = _check_options(options or {}, SCORE_OPTIONS)
    for i, item in enumerate(items):
        _check_item(item, f"items[{i}]", may_be_vectors=True)
    handling = LongDocuments.from_options(chosen)
    if chosen["max_document_length"] is not None and handling.how in ("max_passage", "error"):
        msg = (
            f"max_document_length={chosen['max_document_length']} cuts documents, and "
            f"long_documents={handling.how!r} is there so that none is cut: give one of them"
        )
        raise InvalidRequestError(msg)
    return ScoreRequest(
        model=model,
        query=query,
        instruction=instruction,
        items=items,
        long_documents=handling,
        **{name: chosen[name] for name in _PLAIN_SCORE_OPTIONS},
    )


def check_encode_request(
    model: str,
    items: Item | Sequence[Item],
    *,
    is_query: bool | None,
    output_types: Sequence[str] | None,
    output_dtype: str | None,
    instruction: str | None,
    options: Mapping[str, Any] | None,
) -> EncodeRequest:
    """Check an `encode` call's arguments.

    Raises:
        InvalidRequestError: One is wrong; the message names it.
    """
    _check_model(model)
    is_single = isinstance(items, Mapping)
    batch: Sequence[Item] = [cast("Item", items)] if is_single else cast("Sequence[Item]", items)
    _check_items(batch)
    _check_instruction(instruction)
    chosen = _check_options(options or {}, ENCODE_OPTIONS)
    if isinstance(output_types, str):
        msg = f"output_types must be a list such as ['dense'], but got {output_types!r}"
        raise InvalidRequestError(msg)
    for i, item in enumerate(batch):
        _check_item(item, "items" if is_single else f"items[{i}]")
    is_marked = chosen.pop("is_query")
    return EncodeRequest(
        model=model,
        items=batch,
        is_single=is_single,
        is_query=bool(is_marked if is_query is None else is_query),
        output_types=None if output_types is None else tuple(output_types),
        output_dtype=output_dtype,
        instruction=instruction,
        **chosen,
    )


def _check_model(model: str) -> None:
    if not isinstance(model, str) or not model.strip():
        msg = f"model must be a name or a folder, but got {model!r}"
        raise InvalidRequestError(msg)


def _check_items(items: Sequence[Item]) -> None:
    if isinstance(items, Mapping | str) or not isinstance(items, Sequence):
        msg = f"items must be a list of Item(text=…), but got {type(items).__name__}"
        raise InvalidRequestError(msg)


def _check_instruction(instruction: str | None) -> None:
    if instruction is not None and not isinstance(instruction, str):
        msg = f"instruction must be a string or None, but got {instruction!r}"
        raise InvalidRequestError(msg)


def _check_item(item: Item, name: str, *, may_be_vectors: bool = False) -> None:
    if not isinstance(item, Mapping):
        msg = f"{name} must be an Item(text=…), but got {type(item).__name__}: {item!r:.80}"
        raise InvalidRequestError(msg)
    text, item_id = item.get("text"), item.get("id")
    has_vectors = item.get("multivector") is not None
    if has_vectors and not may_be_vectors and text is None:
        msg = f"{name} holds a multivector: it is encoded already; encode an item with a text"
        raise InvalidRequestError(msg)
    if not (isinstance(text, str) or (text is None and has_vectors)):
        msg = f"{name} must have a text that is a string, but got {text!r:.80}"
        raise InvalidRequestError(msg)
    if text is not None and encodable(text) != text:
        msg = (
            f"the text of {name} has half a surrogate pair in it, which is no character: "
            f"{text!r:.80}; sie_core.types.encodable replaces it"
        )
        raise InvalidRequestError(msg)
    if item_id is not None and not isinstance(item_id, str):
        msg = f"the id of {name} must be a string, but got {item_id!r:.80}"
        raise InvalidRequestError(msg)


def _num_characters(items: Sequence[Item]) -> float:
    return sum(len(text) if (text := item.get("text")) is not None else math.inf for item in items)


def _text_of(item: Item, name: str, model: str) -> str:
    text = item.get("text")
    if text is None:
        msg = (
            f"{name} has vectors and no text, but {model} reads texts; only late-interaction "
            "models score vectors"
        )
        raise InvalidRequestError(msg)
    return text


def _check_options(options: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    unknown = sorted(set(options) - set(known))
    if unknown:
        msg = f"unknown option {unknown[0]!r}; a model in this process knows {', '.join(known)}"
        raise InvalidRequestError(msg)
    check_score_space(options.get("score_space"))
    lora = options.get("lora")
    if lora is not None and (not isinstance(lora, str) or not lora.strip()):
        msg = f"lora must be the name or the folder of an adapter, but got {lora!r}"
        raise InvalidRequestError(msg)
    for name in ("batch_size", "max_document_length"):
        check_top_k(options.get(name), name=name)
    return {name: options.get(name) for name in known}
