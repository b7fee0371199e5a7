"""Sentence encoders: one vector for a text, made as the model's sentence-transformers files say.

Where there are none, the mean of all tokens is taken, or the first token, of BAAI's encoders.
BAAI/bge-m3 also has a head for a vector per token, and scores by those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sie_core.errors import UnsupportedModelError
from sie_core.local.architecture import Architecture
from sie_core.local.hidden import HiddenStates, load_body
from sie_core.local.late_interaction import token_head
from sie_core.local.layers import Linear, Placement
from sie_core.local.module_files import (
    Module,
    SentenceSettings,
    read_config,
    read_modules,
    read_projection,
    read_settings,
)
from sie_core.local.projection import Dense, Projection, check_projection
from sie_core.local.text_encoder import DENSE, MULTIVECTOR, Head, Recipe, TextEncoder
from sie_core.local.texts import Text, TextForm, TextTokenizer
from sie_core.local.weights import Weights, read_tensors
from sie_core.models.sources import ModelFiles

_logger = logging.getLogger(__name__)

_COLBERT_HEAD = "colbert_linear"
_PICKLED = (
    "its multi-vector head is pickled (colbert_linear.pt), and loading a pickle can run code; if "
    "you trust its author, pass allow_pickle=True, or else put the same tensors beside it as "
    "colbert_linear.safetensors"
)

_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
_CLS, _LAST = "cls", "lasttoken"
_KNOWN_CLS = ("baai/bge-",)
"""Bare encoders by these beginnings of their names read the first token."""

_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How a Pooling's settings were spelt until 2025, in the order in which several are joined."""


def _reduced(rows: torch.Tensor, lengths: torch.Tensor, how: str) -> torch.Tensor:
    return torch.segment_reduce(rows, how, lengths=lengths, axis=0, unsafe=True)


_POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    _CLS: lambda rows, lengths: rows.index_select(0, lengths.cumsum(0) - lengths),
    _LAST: lambda rows, lengths: rows.index_select(0, lengths.cumsum(0) - 1),
    "mean": lambda rows, lengths: _reduced(rows, lengths, "mean"),
    "max": lambda rows, lengths: _reduced(rows, lengths, "max"),
    "mean_sqrt_len_tokens": lambda rows, lengths: (
        _reduced(rows, lengths, "sum") / lengths.sqrt()[:, None]
    ),
}
"""From rows of tokens and each text's number of them to one row for each text; [texts, hidden]."""


@dataclass(frozen=True, slots=True)
class DenseHead:
    """One vector for a text, in float32.

    Attributes:
        poolings: What is taken of its tokens; several are joined.
        projection: What follows.
        normalizes: Whether the vector is made of length 1.
        dims: Numbers of the vector.
    """

    poolings: tuple[str, ...]
    projection: Projection
    normalizes: bool
    dims: int

    def __call__(self, states: HiddenStates, texts: Sequence[Text]) -> list[NDArray[np.float32]]:
        """Return [dims] for each text."""
        del texts
        pooled = [_POOLINGS[name](states.rows, states.lengths) for name in self.poolings]
        vectors = self.projection(torch.cat(pooled, dim=1))
        if self.normalizes:
            vectors = nn.functional.normalize(vectors, dim=-1)
        return list(vectors.cpu().numpy())


def load(
    files: ModelFiles, *, device: torch.device, dtype: torch.dtype, allow_pickle: bool = False
) -> TextEncoder:
    """Load a sentence encoder. No code in its folder is ever run.

    Raises:
        UnsupportedModelError: There is no forward pass for such a model, or a module is unknown.
        ModelLoadError: Files are missing or broken, or weights do not fit the architecture.
    """
    architecture = Architecture.read(files, is_classifier=False)
    weights = Weights.open(files, allow_pickle=allow_pickle)
    placement = Placement(device, dtype)
    modules, settings = read_modules(files), read_settings(files)
    poolings = _read_poolings(files, modules, settings)
    width = architecture.hidden_size * len(poolings)
    projection = read_projection(files, modules, width, placement.exact, allow_pickle=allow_pickle)
    last = projection.layers[-1:]
    dense = DenseHead(
        poolings=poolings,
        projection=projection,
        normalizes=_normalizes(files, modules),
        dims=len(last[0].linear.weight) if last else width,
    )
    tokens, absent = _read_colbert_head(files, architecture, placement, allow_pickle=allow_pickle)
    heads: dict[str, Head] = {DENSE: dense} | tokens
    reads_all = bool(tokens) or poolings != (_CLS,)
    return TextEncoder(
        files.name,
        architecture,
        load_body(architecture, weights, placement, reads_all=reads_all),
        TextTokenizer.load(files.folder, lowercases=settings.lowercases),
        Recipe(
            query=_form(settings.query_prompt, settings, architecture, skips_first=bool(tokens)),
            document=_form(
                settings.document_prompt, settings, architecture, skips_first=bool(tokens)
            ),
            heads=heads,
            absent=absent,
            is_mean=True,  # as FlagEmbedding scores
        ),
    )


def _form(
    prompt: str, settings: SentenceSettings, architecture: Architecture, *, skips_first: bool
) -> TextForm:
    longest = architecture.max_length
    return TextForm(
        max_length=min(settings.max_length or longest, longest),
        prompt=prompt,
        skips_first=skips_first,
    )


def _read_poolings(
    files: ModelFiles, modules: Sequence[Module], settings: SentenceSettings
) -> tuple[str, ...]:
    """Return the poolings of a model's files, or what stands in for them.

    Raises:
        UnsupportedModelError: A module or a pooling is not one of those computed here.
    """
    unknown = [module.kind for module in modules if module.kind not in _KINDS]
    if unknown:
        msg = f"{files.name} has the module {unknown[0]!r}; supported are {', '.join(_KINDS)}"
        raise UnsupportedModelError(msg)
    poolings = [module for module in modules if module.kind == "Pooling"]
    if not poolings:
        return (_assumed_pooling(files),)
    config = read_config(files, poolings[0])
    modes = _modes(config)
    for mode in modes:
        if mode not in _POOLINGS:
            msg = f"{files.name} is pooled by {mode!r}; supported are {', '.join(_POOLINGS)}"
            raise UnsupportedModelError(msg)
    has_prompt = settings.query_prompt or settings.document_prompt
    if has_prompt and not config.get("include_prompt", True):
        msg = (
            f"{files.name} leaves its prompts out of pooling (include_prompt of its Pooling), "
            "which is not computed here"
        )
        raise UnsupportedModelError(msg)
    return modes


def _modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is not None:
        return (named,) if isinstance(named, str) else tuple(named)
    return tuple(mode for key, mode in _LEGACY_MODES.items() if config.get(key)) or ("mean",)


def _assumed_pooling(files: ModelFiles) -> str:
    """Return what to take of a model whose files do not say it."""
    pooling = _CLS if files.name.lower().startswith(_KNOWN_CLS) else "mean"
    _logger.warning(
        "%s has no modules.json, which would say how its tokens become one vector: %s is taken, %s",
        files.name,
        "the first token" if pooling == _CLS else "the mean of all tokens",
        "normalised" if pooling == _CLS else "not normalised",
    )
    return pooling


def _normalizes(files: ModelFiles, modules: Sequence[Module]) -> bool:
    if modules:
        return any(module.kind == "Normalize" for module in modules)
    return files.name.lower().startswith(_KNOWN_CLS)


def _read_colbert_head(
    files: ModelFiles, architecture: Architecture, placement: Placement, *, allow_pickle: bool
) -> tuple[dict[str, Head], dict[str, str]]:
    """Return bge-m3's multi-vector head if its files have one, or why it cannot be had."""
    safe = files.folder / f"{_COLBERT_HEAD}.safetensors"
    pickled = files.folder / f"{_COLBERT_HEAD}.pt"
    if not safe.exists() and not pickled.exists():
        return {}, {}
    if not safe.exists() and not allow_pickle:
        return {}, {MULTIVECTOR: _PICKLED}
    path = safe if safe.exists() else pickled
    tensors = read_tensors(files, path)
    exact = placement.exact
    weight = check_projection(tensors["weight"], architecture.hidden_size, str(path))
    bias = exact(tensors["bias"]) if "bias" in tensors else None
    projection = Projection([Dense(Linear(exact(weight), bias))])
    return {MULTIVECTOR: token_head(projection)}, {}
