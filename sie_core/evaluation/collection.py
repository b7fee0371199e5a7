"""A collection: documents, queries, and judgements of which document answers which query.

Documents are read as a stream, from the beginning each time, because a corpus may be larger than
memory; queries and judgements are held.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sie_core.errors import DatasetError, InvalidRequestError

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: query id -> document id -> grade; a grade of 1 or more is relevant."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus."""

    id: str
    text: str
    title: str = ""

    def passage(self, *, with_title: bool) -> str:
        """Return what is indexed and scored: the text, after its title as BEIR has it."""
        return f"{self.title} {self.text}" if with_title and self.title else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Documents, queries and judgements under one name.

    Attributes:
        name: For people.
        read_documents: Returns all documents, read anew with every call.
        queries: Texts by query id, in the data's order.
        qrels: Judgements, which may name queries and documents that are not here.
        identity: What tells this data from other or changed data; can be written as JSON.
        num_documents: How many there are, where that is known without reading them.
        num_left_out: Queries that cannot be measured: without text, or without anything relevant.
    """

    name: str
    read_documents: Callable[[], Iterator[Document]]
    queries: Mapping[str, str]
    qrels: Qrels
    identity: Mapping[str, Any]
    num_documents: int | None = None
    num_left_out: int = 0

    def drawn(self, num_queries: int | None, *, seed: int) -> Collection:
        """Keep the queries that can be measured, or a random sample of these.

        Args:
            num_queries: How many to draw; None, or more than there are, keeps all.
            seed: Decides the draw.

        Raises:
            InvalidRequestError: `num_queries` is below 1.
            DatasetError: No query has both a text and a relevant document.
        """
        check_num_queries(num_queries)
        ids = [
            query_id
            for query_id, text in self.queries.items()
            if text.strip() and any(grade > 0 for grade in self.qrels.get(query_id, {}).values())
        ]
        if not ids:
            msg = (
                f"{self.name} has {len(self.queries)} queries and judgements for "
                f"{len(self.qrels)}, but no query with both a text and a relevant document; "
                "check that the ids are the same in both"
            )
            raise DatasetError(msg)
        num_left_out = len(self.queries) - len(ids)
        if num_queries is not None and num_queries < len(ids):
            kept = set(random.Random(seed).sample(ids, num_queries))
            ids = [query_id for query_id in ids if query_id in kept]
        return replace(
            self,
            queries={query_id: self.queries[query_id] for query_id in ids},
            qrels={query_id: self.qrels[query_id] for query_id in ids},
            num_left_out=num_left_out,
        )


def check_num_queries(num_queries: int | None) -> None:
    """Raise InvalidRequestError unless it is None or at least 1."""
    if num_queries is not None and num_queries < 1:
        msg = f"the number of queries must be at least 1, but got {num_queries}"
        raise InvalidRequestError(msg)
