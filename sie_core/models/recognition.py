"""What kind of model a folder holds, by its configuration and files alone. No weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.models.checkpoint import CONFIG

Kind = Literal["cross-encoder", "causal-reranker", "late-interaction", "dense"]
"""`cross-encoder`: one score for a pair, by an encoder with a classification head.
`causal-reranker`: one score for a pair, by what a language model would say next.
`late-interaction`: a vector for each token, compared by MaxSim (ColBERT).
`dense`: one vector for a text."""

_CAUSAL_TYPES = frozenset({"gemma", "qwen2", "qwen3"})
"""The language models whose rerankers run here."""


def recognise(folder: Path) -> Kind:
    """Tell what kind of model `folder` holds.

    Raises:
        UnsupportedModelError: None that runs here; the message says what was found.
        ModelLoadError: Its configuration cannot be read.
    """
    config = _read_json(folder / CONFIG)
    [architecture, *_] = config.get("architectures") or [""]
    if architecture.endswith("ForSequenceClassification"):
        _refuse_converted(folder, architecture, config.get("model_type"))
        return "cross-encoder"
    if not architecture and not (folder / "modules.json").exists():
        return "cross-encoder"  # a missing head is named where the weights are read
    is_causal = architecture.endswith("ForCausalLM") and config.get("model_type") in _CAUSAL_TYPES
    if is_causal and not _has_pooling(folder):
        return "causal-reranker"
    if architecture == "HF_ColBERT" or _is_colbert(folder):
        return "late-interaction"
    if architecture.endswith(("Model", "ForMaskedLM")) or (folder / "modules.json").exists():
        return "dense"
    msg = (
        f"{folder} holds a {architecture or config.get('model_type')!r}; what runs here are "
        "sequence classifiers with one or two labels, rerankers made of Qwen2, Qwen3 and Gemma, "
        "ColBERT models, and sentence encoders"
    )
    raise UnsupportedModelError(msg)


def _refuse_converted(folder: Path, architecture: str, model_type: str | None) -> None:
    """Raise UnsupportedModelError for a language model whose answers became a classifier's labels.

    Such conversions of Qwen3-Reranker leave the prompt, without which they say nothing, to whoever
    calls them.
    """
    if model_type in _CAUSAL_TYPES:
        msg = (
            f"{folder} holds a {architecture}, a causal-LM reranker converted to a classifier, "
            "whose files do not say what it is to be asked; use the original, such as "
            "Qwen/Qwen3-Reranker-0.6B, whose prompt is known here"
        )
        raise UnsupportedModelError(msg)


def _has_pooling(folder: Path) -> bool:
    """Tell an embedding model made of a language model by its list of modules."""
    path = folder / "modules.json"
    if not path.exists():
        return False
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return any(module["type"].endswith("Pooling") for module in modules)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        msg = f"{path} could not be read: {exc!r}"
        raise ModelLoadError(msg) from exc


def _is_colbert(folder: Path) -> bool:
    """Tell by the files that ColBERT's own code, or PyLate, leaves beside the weights."""
    if (folder / "artifact.metadata").exists():
        return True
    path = folder / "config_sentence_transformers.json"
    return path.exists() and _read_json(path).get("similarity_fn_name") == "MaxSim"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content.get("")
    except (OSError, ValueError, AttributeError) as exc:
        msg = f"{path} could not be read: {exc}"
        raise ModelLoadError(msg) from exc
    return content
