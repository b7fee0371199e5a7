"""Examples to tensors: the ids that the engine would make, in chunks of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sie_core.local.tokenization import Pair, PairTokenizer
from sie_core.training.example import Example, Judged

CHUNK_PAIRS = 20
"""Pairs in one forward pass, all padded to the longest of them."""

_LENGTH_STEP = 16
"""Lengths are rounded up to a multiple: torch prepares each shape of product anew on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batcher:
    """Makes batches; `Trainer` calls it with the examples of a step.

    Attributes:
        pair_tokenizer: The engine's, so that training sees what scoring will see.
        max_length: Tokens of query and document together.
        documents_per_query: At most.
        has_types: Whether the model takes type ids.
        pad_token_id: What fills the rows.
    """

    pair_tokenizer: PairTokenizer
    max_length: int
    documents_per_query: int
    has_types: bool
    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return a batch.

        Returns:
            `chunks`: inputs of forward passes, which follow each other in `places`: where the
            scores go in [queries x documents]. `labels`, `teacher` and `mask`:
            [queries, documents].
        """
        documents = [self.chosen(example) for example in examples]
        width = max(map(len, documents))
        shape = (len(documents), width)
        labels, teacher = torch.zeros(shape), torch.zeros(shape)
        mask = torch.zeros(shape, dtype=torch.bool)
        pairs: list[tuple[int, Pair]] = []
        for row, (example, chosen) in enumerate(zip(examples, documents, strict=True)):
            mask[row, : len(chosen)] = True
            labels[row, : len(chosen)] = torch.tensor([one.label for one in chosen])
            teacher[row, : len(chosen)] = torch.tensor([one.teacher or 0.0 for one in chosen])
            texts = [one.text for one in chosen]
            made = self.pair_tokenizer.encode_pairs(example.query, texts, self.max_length)
            pairs += [(row * width + column, pair) for column, pair in enumerate(made)]
        pairs.sort(key=lambda placed: len(placed[1].token_ids))
        return {
            "chunks": [
                self._chunk([pair for _, pair in pairs[start : start + CHUNK_PAIRS]])
                for start in range(0, len(pairs), CHUNK_PAIRS)
            ],
            "places": torch.tensor([place for place, _ in pairs]),
            "labels": labels,
            "teacher": teacher,
            "mask": mask,
        }

    def chosen(self, example: Example) -> list[Judged]:
        """Return the documents that are scored: the relevant ones, but at least one other."""
        kept = example.relevant[: self.documents_per_query - 1]
        return kept + example.irrelevant[: self.documents_per_query - len(kept)]

    def _chunk(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        longest = max(len(pair.token_ids) for pair in pairs)
        width = min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, max(longest, self.max_length))
        ids = np.full((len(pairs), width), self.pad_token_id, np.int64)
        attention = np.zeros((len(pairs), width), np.int64)
        types = np.zeros((len(pairs), width), np.int64)
        for row, pair in enumerate(pairs):
            length = len(pair.token_ids)
            ids[row, :length] = pair.token_ids
            attention[row, :length] = 1
            types[row, pair.num_first : length] = 1
        made = {"input_ids": ids, "attention_mask": attention}
        if self.has_types:
            made["token_type_ids"] = types
        return {name: torch.from_numpy(array) for name, array in made.items()}
