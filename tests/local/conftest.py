"""Pairs made by hand, and what transformers' padded float32 forward says about them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch

    from sie_core.local.encoder import PairEncoder
    from sie_core.local.tokenization import Pair

LoadEncoder = Callable[..., "PairEncoder"]
MakePairs = Callable[["PairEncoder", list[int]], "list[Pair]"]
PaddedLogits = Callable[[Path, "list[Pair]"], "torch.Tensor"]


@pytest.fixture(scope="session")
def load_encoder() -> LoadEncoder:
    """A function that loads a folder for torch on the CPU, in float32 or the `dtype` named."""

    def load(folder: Path, dtype: str = "float32") -> PairEncoder:
        import torch

        from sie_core.local.encoder import PairEncoder
        from sie_core.models.sources import ModelFiles

        files = ModelFiles(name=folder.name, folder=folder, source="folder")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SIE_MAX_CPU_ISA", "none")
            return PairEncoder.load(files, device=torch.device("cpu"), dtype=getattr(torch, dtype))

    return load


@pytest.fixture(scope="session")
def make_pairs() -> MakePairs:
    """A function that makes pairs of random tokens, none of them padding, of given lengths."""

    def make(encoder: PairEncoder, lengths: list[int]) -> list[Pair]:
        from sie_core.local.tokenization import Pair

        dice, shape = random.Random(5), encoder.architecture
        tokens = [token for token in range(shape.vocab_size) if token != shape.pad_token_id]
        has_types = shape.type_vocab_size > 1
        return [
            Pair(
                np.array(dice.choices(tokens, k=length), np.int32),
                length // 2 + 1 if has_types else length,
                is_truncated=False,
            )
            for length in lengths
        ]

    return make


@pytest.fixture(scope="session")
def padded_logits() -> PaddedLogits:
    """A function that scores pairs in one padded batch by transformers."""

    def score(folder: Path, pairs: list[Pair]) -> torch.Tensor:
        import torch
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        shape = (len(pairs), max(len(pair.token_ids) for pair in pairs))
        inputs = {
            "input_ids": torch.full(shape, model.config.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
        }
        if getattr(model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
        for row, pair in enumerate(pairs):
            length = len(pair.token_ids)
            inputs["input_ids"][row, :length] = torch.tensor(pair.token_ids)
            inputs["attention_mask"][row, :length] = 1
            if "token_type_ids" in inputs:
                inputs["token_type_ids"][row, pair.num_first : length] = 1
        with torch.no_grad():
            logits: torch.Tensor = model(**inputs).logits
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]

    return score
