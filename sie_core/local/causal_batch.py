"""`CausalBatch`: decoder sequences of several callers as one row of tokens, and who sees what.

A prefix that the device has no keys and values of is computed in the same batch: its rows come
first, and the sequences behind it read its keys and values as they come out of each layer. Those
that are known are read from where they are kept. `key_rows` says for every sequence where its keys
are, in a pool of the kept ones followed by the batch's own::

    pool = torch.cat([*kept, own])             # [kept + rows, heads, head size]
    keys = pool.index_select(0, key_rows)      # of all sequences, one after the other
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sie_core.local.prefix import DecoderSequence, KeyValue, Prefix
from sie_core.local.tokenization import Int32s


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One run of rows that are attended to together: a prefix to compute, or a sequence.

    Attributes:
        row: Its first row.
        key: Its first key.
        length: Its rows.
        num_keys: What its last row sees: a prefix, if it has one, and its own rows.
    """

    row: int
    key: int
    length: int
    num_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalBatch:
    """A batch as the model reads it, on the CPU.

    Attributes:
        token_ids: Of new prefixes, then of the sequences; [rows].
        position_ids: The position of each in its prompt; [rows].
        spans: The new prefixes, then the sequences in the order given.
        new: The prefixes to compute.
        kept: For each prefix that is known, the keys and values of every layer.
        key_rows: Where each span's keys are in the pool; [keys]. None where each sees its own rows
            and nothing else.
    """

    token_ids: Int32s
    position_ids: Int32s
    spans: Sequence[Span]
    new: Sequence[Prefix]
    kept: Sequence[Sequence[KeyValue]]
    key_rows: Int32s | None

    @classmethod
    def of(cls, sequences: Sequence[DecoderSequence], device: torch.device) -> CausalBatch:
        """Lay out sequences, at least one, for a device."""
        prefixes = dict.fromkeys(s.prefix for s in sequences if s.prefix is not None)
        found = {prefix: prefix.kept(device) for prefix in prefixes}
        kept = {prefix: layers for prefix, layers in found.items() if layers is not None}
        new = [prefix for prefix in prefixes if prefix not in kept]
        pool_rows: dict[Prefix, Int32s] = {}
        num_rows = 0
        for prefix in kept:
            pool_rows[prefix] = _arange(num_rows, len(prefix))
            num_rows += len(prefix)
        first_row = num_rows
        spans, positions, key_rows, num_keys = [], [], [], 0
        parts: list[Prefix | DecoderSequence] = [*new, *sequences]
        for part in parts:
            own = _arange(num_rows, len(part.token_ids))
            seen = None if isinstance(part, Prefix) else part.prefix
            before = own[:0] if seen is None else pool_rows[seen]
            if isinstance(part, Prefix):
                pool_rows[part] = own
            spans.append(
                Span(
                    row=num_rows - first_row,
                    key=num_keys,
                    length=len(own),
                    num_keys=len(before) + len(own),
                )
            )
            positions.append(_arange(len(before), len(own)))
            key_rows += [before, own]
            num_rows += len(own)
            num_keys += len(before) + len(own)
        return cls(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            position_ids=np.concatenate(positions),
            spans=spans,
            new=new,
            kept=list(kept.values()),
            key_rows=np.concatenate(key_rows) if prefixes else None,
        )

    @property
    def num_rows(self) -> int:
        """Count the tokens that are computed."""
        return len(self.token_ids)

    @property
    def num_new_rows(self) -> int:
        """Count those of new prefixes."""
        return sum(map(len, self.new))

    @property
    def sequence_spans(self) -> Sequence[Span]:
        """Return the spans of the sequences alone."""
        return self.spans[len(self.new) :]

    @property
    def last_rows(self) -> Int32s:
        """Return each sequence's last row; [sequences]."""
        ends = [span.row + span.length - 1 for span in self.sequence_spans]
        return np.array(ends, np.int32)


def _arange(begin: int, count: int) -> Int32s:
    return np.arange(begin, begin + count, dtype=np.int32)
