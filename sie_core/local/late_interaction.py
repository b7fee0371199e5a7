"""ColBERT checkpoints: which markers, lengths, masks and projection each layout has.

Two layouts are read:

- that of ColBERT's own code (`artifact.metadata` beside the weights, `linear.weight` among them):
  colbert-ir/colbertv2.0, answerdotai/answerai-colbert-small-v1, jinaai/jina-colbert-v2;
- PyLate's (`modules.json` with a `Dense` or more, `config_sentence_transformers.json` with the
  settings): lightonai/GTE-ModernColBERT-v1.

A query is filled up with masks that get vectors too; whether its tokens see them, the checkpoint's
settings say. A document's punctuation is read by the model and gets no vectors.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.architecture import Architecture
from sie_core.local.hidden import HiddenStates, load_body
from sie_core.local.layers import Linear, Placement
from sie_core.local.module_files import read_modules, read_projection, read_settings
from sie_core.local.projection import Dense, Projection, check_projection
from sie_core.local.text_encoder import MULTIVECTOR, Recipe, TextEncoder
from sie_core.local.texts import Text, TextForm, TextTokenizer
from sie_core.local.weights import Weights
from sie_core.models.checkpoint import read_json
from sie_core.models.sources import ModelFiles

METADATA = "artifact.metadata"

_PROJECTION = "linear.weight"
_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True, slots=True)
class TokenHead:
    """A vector of length 1 for each token: projected and normalised in float32.

    Attributes:
        projection: From hidden states to vectors.
        dims: Numbers of a vector.
    """

    projection: Projection
    dims: int

    def __call__(self, states: HiddenStates, texts: Sequence[Text]) -> list[NDArray[np.float32]]:
        """Return [kept tokens, dims] for each text."""
        lengths = states.lengths.tolist()
        begins = np.cumsum([0, *lengths[:-1]])
        kept = [
            np.arange(length) if text.kept is None else text.kept
            for text, length in zip(texts, lengths, strict=True)
        ]
        rows = np.concatenate([begin + places for begin, places in zip(begins, kept, strict=True)])
        chosen = states.rows.index_select(0, torch.from_numpy(rows).to(states.rows.device))
        vectors = nn.functional.normalize(self.projection(chosen), dim=-1).cpu().numpy()
        return np.split(vectors, np.cumsum([len(places) for places in kept])[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a ColBERT checkpoint says about itself.

    Attributes:
        query_marker: The token behind the first of a query; empty for none.
        document_marker: The same of a document.
        query_length: Tokens of a query, all included.
        document_length: Tokens of a document at most.
        fills_queries: Whether a query is filled up with masks to its length.
        sees_masks: Whether a query's tokens see those.
        skipped: Tokens of a document that get no vector.
    """

    query_marker: str
    document_marker: str
    query_length: int
    document_length: int
    fills_queries: bool
    sees_masks: bool
    skipped: tuple[int, ...]


def load(
    files: ModelFiles, *, device: torch.device, dtype: torch.dtype, allow_pickle: bool = False
) -> TextEncoder:
    """Load a ColBERT checkpoint. No code in it is ever run.

    Raises:
        UnsupportedModelError: There is no forward pass for such a model.
        ModelLoadError: Files are missing or broken, or weights do not fit the architecture.
    """
    architecture = Architecture.read(files, is_classifier=False)
    weights = Weights.open(files, allow_pickle=allow_pickle)
    placement = Placement(device, dtype)
    if (files.folder / "modules.json").exists() and _PROJECTION not in weights:
        modules = read_modules(files)
        projection = read_projection(
            files, modules, architecture.hidden_size, placement.exact, allow_pickle=allow_pickle
        )
        lowercases = read_settings(files).lowercases
        tokenizer = TextTokenizer.load(files.folder, lowercases=lowercases)
        settings = _read_pylate(files, tokenizer)
    else:
        tokenizer = TextTokenizer.load(files.folder)
        projection = read_linear(weights, architecture, placement.exact, where=str(files.folder))
        settings = _read_metadata(files, tokenizer)
    if not projection.layers:
        msg = f"{files.name} in {files.folder} has no projection: modules.json names no Dense"
        raise ModelLoadError(msg)
    return TextEncoder(
        files.name,
        architecture,
        load_body(architecture, weights, placement, reads_all=True),
        tokenizer,
        Recipe(
            query=_query_form(settings, tokenizer, architecture, files),
            document=_document_form(settings, tokenizer, architecture, files),
            heads={MULTIVECTOR: token_head(projection)},
        ),
    )


def token_head(projection: Projection) -> TokenHead:
    """Make a head of a projection that has a layer."""
    return TokenHead(projection, len(projection.layers[-1].linear.weight))


def read_linear(
    weights: Weights,
    architecture: Architecture,
    convert: Callable[[torch.Tensor], torch.Tensor],
    *,
    where: str,
) -> Projection:
    """Read the projection that stands beside a body's tensors as `linear`."""
    weight = check_projection(weights[_PROJECTION], architecture.hidden_size, where)
    bias = convert(weights["linear.bias"]) if "linear.bias" in weights else None
    return Projection([Dense(Linear(convert(weight), bias))])


def _query_form(
    settings: Settings, tokenizer: TextTokenizer, architecture: Architecture, files: ModelFiles
) -> TextForm:
    mask = _mask_id(tokenizer, files) if settings.fills_queries else None
    return TextForm(
        max_length=min(settings.query_length, architecture.max_length),
        marker=_token_id(tokenizer, settings.query_marker, files),
        mask=mask,
        are_masks_seen=settings.sees_masks,
    )


def _document_form(
    settings: Settings, tokenizer: TextTokenizer, architecture: Architecture, files: ModelFiles
) -> TextForm:
    return TextForm(
        max_length=min(settings.document_length, architecture.max_length),
        marker=_token_id(tokenizer, settings.document_marker, files),
        skipped=settings.skipped,
    )


def _read_metadata(files: ModelFiles, tokenizer: TextTokenizer) -> Settings:
    """Read the settings of ColBERT's own code; what is not said is its default."""
    path = files.folder / METADATA
    said: Mapping[str, Any] = read_json(path) if path.exists() else {}
    skipped: set[int] = set()
    if said.get("mask_punctuation", True):
        # The first token of each sign by itself is what ColBERT's own code leaves out.
        firsts = (tokenizer.first_id(sign) for sign in string.punctuation)
        skipped = {token for token in firsts if token is not None}
    return Settings(
        query_marker=said.get("query_token_id", "[unused0]"),
        document_marker=said.get("doc_token_id", "[unused1]"),
        query_length=_length(said.get("query_maxlen", 32), "query_maxlen", path),
        document_length=_length(said.get("doc_maxlen", 220), "doc_maxlen", path),
        fills_queries=True,
        sees_masks=bool(said.get("attend_to_mask_tokens", False)),
        skipped=tuple(sorted(skipped)),
    )


def _read_pylate(files: ModelFiles, tokenizer: TextTokenizer) -> Settings:
    """Read PyLate's settings; what is not said is its default."""
    path = files.folder / "config_sentence_transformers.json"
    said: Mapping[str, Any] = read_json(path) if path.exists() else {}
    words = _said(said, "skiplist_words", default=list(string.punctuation))
    tokens = (tokenizer.token_id(word) for word in words)
    fills_queries = bool(_said(said, "do_query_expansion", default=True))
    return Settings(
        query_marker=_said(said, "query_prefix", default="[Q] "),
        document_marker=_said(said, "document_prefix", default="[D] "),
        query_length=_length(_said(said, "query_length", default=32), "query_length", path),
        document_length=_length(
            _said(said, "document_length", default=180), "document_length", path
        ),
        fills_queries=fills_queries,
        sees_masks=fills_queries and bool(_said(said, "attend_to_expansion_tokens", default=False)),
        skipped=tuple(sorted({token for token in tokens if token is not None})),
    )


def _said(settings: Mapping[str, Any], name: str, *, default: Any) -> Any:
    value = settings.get(name)
    return default if value is None else value


def _length(value: object, name: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{name} in {path} must be a positive integer, but is {value!r}"
        raise ModelLoadError(msg)
    return value


def _token_id(tokenizer: TextTokenizer, marker: str, files: ModelFiles) -> int | None:
    """Return a marker's id, None where there is no marker.

    Raises:
        UnsupportedModelError: The tokenizer does not have it.
    """
    if not marker:
        return None
    found = tokenizer.token_id(marker)
    if found is None:
        msg = (
            f"the tokenizer of {files.name} has no token {marker!r}, which its settings put "
            "before texts"
        )
        raise UnsupportedModelError(msg)
    return found


def _mask_id(tokenizer: TextTokenizer, files: ModelFiles) -> int:
    for token in _MASKS:
        if (found := tokenizer.token_id(token)) is not None:
            return found
    msg = f"the tokenizer of {files.name} has no mask token, with which queries are filled up"
    raise UnsupportedModelError(msg)
