"""What kind of model a folder holds, by its configuration and files alone. No weights are read.

No code of a model is ever run: a repository that brings its own (`auto_map` in its config.json) is
refused, unless what it computes has a forward pass here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.models.checkpoint import CONFIG

Kind = Literal["cross-encoder", "causal-reranker", "late-interaction", "dense"]
"""`cross-encoder`: one score for a pair, by an encoder with a classification head.
`causal-reranker`: one score for a pair, by what a language model would say next.
`late-interaction`: a vector for each token, compared by MaxSim (ColBERT).
`dense`: one vector for a text."""

MAX_LABELS = 2
"""A reranker has one score, or two labels of which the second means relevant."""

_ENCODERS = {
    "Bert": "bert",
    "ModernBert": "modernbert",
    "Roberta": "roberta",
    "XLMRoberta": "xlm-roberta",
}
"""What the names of an encoder's classes begin with, and its `model_type`."""

_CAUSAL = {"Gemma": "gemma", "Qwen2": "qwen2", "Qwen3": "qwen3"}
"""The same for language models whose rerankers run here."""

_RUNS_HERE = (
    "what runs here are sequence classifiers with one or two labels, ColBERT models and sentence "
    "encoders made of BERT, RoBERTa, XLM-RoBERTa and ModernBERT, and rerankers made of Gemma, "
    "Qwen2 and Qwen3; `sie models` lists them"
)

_CLASSIFIER, _CAUSAL_LM, _MASKED_LM = "ForSequenceClassification", "ForCausalLM", "ForMaskedLM"
_T5 = frozenset({"T5ForConditionalGeneration", "MT5ForConditionalGeneration"})


def recognise(folder: Path) -> Kind:
    """Tell what kind of model `folder` holds.

    Raises:
        UnsupportedModelError: None that runs here; the message says what was found.
        ModelLoadError: Its configuration cannot be read.
    """
    return _Folder(folder).kind()


def count_labels(config: Mapping[str, Any]) -> int:
    """Return the number of a classifier's labels, 1 or 2.

    Raises:
        UnsupportedModelError: More labels: there is no one number to order by.
    """
    labels = config.get("id2label")
    if labels is None:
        num_labels = config.get("num_labels") or MAX_LABELS  # what transformers leaves unsaid
        labels = {i: f"LABEL_{i}" for i in range(num_labels)}
    if len(labels) not in {1, MAX_LABELS}:
        msg = (
            f"the model has {len(labels)} labels ({', '.join(map(str, labels.values()))}); a "
            "reranker has one score, or two labels of which the second means relevant"
        )
        raise UnsupportedModelError(msg)
    return len(labels)


class _Folder:
    """A model folder's small files.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = read_json(folder / CONFIG)
        self._modules = _read_modules(folder)

    def kind(self) -> Kind:
        """See `recognise`."""
        kinds: dict[Kind, str] = {}
        for architecture in self._architectures():
            kinds.setdefault(self._kind_of(architecture), architecture)
        if len(kinds) > 1:
            self._refuse(f"several architectures ({', '.join(kinds.values())})", "keep one of them")
        [kind] = kinds
        return kind

    def _architectures(self) -> list[str]:
        """Return the classes that config.json names; one empty name where it names none."""
        named = self._config.get("architectures") or [""]
        named = [named] if isinstance(named, str) else named
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            msg = (
                f"{self._folder / CONFIG} could not be read: architectures must be a list of "
                f"names, but is {named!r}"
            )
            raise ModelLoadError(msg)
        return named

    def _kind_of(self, architecture: str) -> Kind:
        if architecture.endswith(_CLASSIFIER):
            return self._classifier(architecture)
        if architecture in _T5:
            self._refuse(
                f"a {architecture}, an encoder with a decoder (as monoT5 is)",
                "choose a cross-encoder, such as BAAI/bge-reranker-v2-m3",
            )
        if architecture.endswith(_CAUSAL_LM):
            return self._causal(architecture)
        if architecture == "HF_ColBERT" or self._is_colbert():
            self._check_encoder(architecture)
            return "late-interaction"
        if self._has_module("SpladePooling"):
            self._refuse("a sparse encoder (SPLADE)", _RUNS_HERE)
        if not architecture and not self._modules:
            self._check_encoder(architecture)
            return "cross-encoder"  # a missing head is named where the weights are read
        if architecture.endswith(_MASKED_LM) and not self._modules:
            self._refuse(
                f"a {architecture} without modules.json: a model that fills in words, as "
                "pre-trained and sparse ones are",
                "a sentence encoder's modules.json says how its vectors are pooled",
            )
        if architecture and not architecture.endswith(("Model", _MASKED_LM)):
            self._refuse_architecture(architecture)
        self._check_encoder(architecture)
        return "dense"

    def _classifier(self, architecture: str) -> Kind:
        base = architecture.removesuffix(_CLASSIFIER)
        if base in _CAUSAL:
            self._refuse(
                f"a {architecture}, a language model made into a classifier, whose files do not "
                "say what it is to be asked",
                f"use the original, a {base}{_CAUSAL_LM} such as those that `sie models` lists",
            )
        self._check_encoder(architecture)
        count_labels(self._config)
        return "cross-encoder"

    def _causal(self, architecture: str) -> Kind:
        if _CAUSAL.get(architecture.removesuffix(_CAUSAL_LM)) != self._config.get("model_type"):
            self._refuse_architecture(architecture)
        if self._has_module("Pooling"):
            self._refuse(
                f"an embedding model made of a language model ({architecture})",
                "choose a sentence encoder, such as BAAI/bge-m3",
            )
        return "causal-reranker"

    def _check_encoder(self, architecture: str) -> None:
        """Raise unless a class's body is an encoder that runs here."""
        model_type = self._config.get("model_type")
        base = architecture
        for suffix in (_CLASSIFIER, _MASKED_LM, "Model"):
            base = base.removesuffix(suffix)
        is_unnamed = architecture in {"", "HF_ColBERT"}
        if is_unnamed and model_type not in _ENCODERS.values():
            self._refuse_architecture(architecture or "model")
        if not is_unnamed and _ENCODERS.get(base) != model_type:
            self._refuse_architecture(architecture)

    def _is_colbert(self) -> bool:
        """Tell by the files that ColBERT's own code, or PyLate, leaves beside the weights."""
        if (self._folder / "artifact.metadata").exists():
            return True
        path = self._folder / "config_sentence_transformers.json"
        return path.exists() and read_json(path).get("similarity_fn_name") == "MaxSim"

    def _has_module(self, name: str) -> bool:
        return any(module.rpartition(".")[2] == name for module in self._modules)

    def _refuse_architecture(self, architecture: str) -> NoReturn:
        wants_code = (
            ", whose repository wants code of its own to be run (auto_map in config.json); that "
            "is never done"
            if "auto_map" in self._config
            else ""
        )
        found = f"a {architecture} of the model_type {self._config.get('model_type')!r}"
        self._refuse(found + wants_code, _RUNS_HERE)

    def _refuse(self, found: str, advice: str) -> NoReturn:
        msg = f"{self._folder} holds {found}; {advice}"
        raise UnsupportedModelError(msg)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ModelLoadError: It cannot be read, or holds something else.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content.get("")
    except (OSError, ValueError, AttributeError) as exc:
        msg = f"{path} could not be read: {exc}"
        raise ModelLoadError(msg) from exc
    return content


def _read_modules(folder: Path) -> list[str]:
    """Return the types of sentence-transformers' modules; none where there are no such files.

    Raises:
        ModelLoadError: modules.json cannot be read.
    """
    path = folder / "modules.json"
    if not path.exists():
        return []
    try:
        return [str(module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError) as exc:
        msg = f"{path} could not be read: {exc!r}"
        raise ModelLoadError(msg) from exc
