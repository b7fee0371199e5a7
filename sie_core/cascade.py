"""`Stage`: a cheaper model that scores first, so that the reranker's own has fewer to score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sie_core import long_documents
from sie_core.errors import InvalidRequestError

_WAYS_OF_READING = ("long_documents", "max_document_length")
"""Options of a stage that says by itself how it reads long documents."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A model that scores before another one, and how many candidates go on to that one.

    Attributes:
        model: Name or folder; it is asked of the same client as the reranker's own model.
        keep: How many go on, the best by this model's scores: a float below 1 is a part of them,
            rounded up; an integer is a number of them.
        instruction: For this model; the reranker's own is for its own model.
        options: For this model, such as `{"max_length": 128}`.

    Raises:
        InvalidRequestError: A model without a name, or a `keep` that is neither.
    """

    model: str
    keep: float
    instruction: str | None = field(default=None, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            msg = f"a stage's model must be a name or a folder, but got {self.model!r}"
            raise InvalidRequestError(msg)
        is_number = isinstance(self.keep, int | float) and not isinstance(self.keep, bool)
        is_count = isinstance(self.keep, int) and self.keep >= 1
        if not is_number or not (is_count or 0 < self.keep < 1):
            msg = (
                f"a stage's keep must be a part between 0 and 1, such as 0.3, or a number of "
                f"documents, but got {self.keep!r}"
            )
            raise InvalidRequestError(msg)

    def num_kept(self, num_candidates: int) -> int:
        """Return how many of so many candidates go on."""
        if isinstance(self.keep, int):
            return min(self.keep, num_candidates)
        return math.ceil(self.keep * num_candidates)

    def to_dict(self) -> dict[str, Any]:
        """Return it in a plain form, which `to_stages` reads; what is not set is left out."""
        more = {"instruction": self.instruction, "options": dict(self.options) or None}
        set_too = {name: it for name, it in more.items() if it is not None}
        return {"model": self.model, "keep": self.keep, **set_too}

    def arguments(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of its calls, where those of the reranker's own model are `shared`.

        What says where the model runs is the same, and what is done with long documents, unless the
        stage says how it reads them; instruction and other options are the stage's own.
        """
        options = dict(self.options)
        given = shared.get("options") or {}
        inherited = ["batch_size"]
        if options.keys().isdisjoint(_WAYS_OF_READING):
            inherited += long_documents.OPTIONS
        for name in inherited:
            if name in given:
                options.setdefault(name, given[name])
        own = {"instruction": self.instruction, "options": options or None}
        return {
            **{name: it for name, it in shared.items() if name not in own},
            **{name: it for name, it in own.items() if it is not None},
        }


def to_stages(given: object) -> tuple[Stage, ...]:
    """Return the stages of a `cascade` argument: `Stage` objects, pairs `(model, keep)`, or maps.

    Raises:
        InvalidRequestError: It is something else.
    """
    if given is None:
        return ()
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        msg = f"cascade must be a list such as [Stage('model', keep=0.3)], but got {given!r}"
        raise InvalidRequestError(msg)
    return tuple(_to_stage(one) for one in given)


_FIELDS = {one.name for one in fields(Stage)}


def _to_stage(given: object) -> Stage:
    if isinstance(given, Stage):
        return given
    if isinstance(given, Mapping) and {"model", "keep"} <= given.keys() <= _FIELDS:
        return Stage(**given)
    if isinstance(given, Sequence) and not isinstance(given, str):
        try:
            model, keep = given
        except ValueError:
            pass
        else:
            return Stage(model, keep)
    msg = f"each stage of a cascade must be a Stage or a pair (model, keep), but got {given!r}"
    raise InvalidRequestError(msg)
