"""What a folder or a repository must hold for its weights to be loaded safely."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from sie_core.errors import ModelLoadError, UnsupportedModelError

CONFIG = "config.json"

_SAFE_WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json"})
_SAFE_INDEX = "model.safetensors.index.json"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_TRAINING_FILES = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt"})

_OTHER_FORMATS = {
    ".gguf": "llama.cpp (GGUF)",
    ".onnx": "ONNX Runtime",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
}
"""Ends of names of weights that other programs read, and what those are."""

SAFE_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.txt",  # vocab.txt, merges.txt
    "artifact.metadata",  # JSON, of ColBERT's own code
    "*.model",  # sentencepiece.bpe.model, tokenizer.model
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
)
"""What is taken from a repository: weights that are data only, settings, and the tokenizer."""

PICKLED_HEADS = ("colbert_linear.pt",)
"""Taken too where pickles are allowed: BAAI/bge-m3 has its multi-vector head in one."""

OTHER_RUNTIMES = ("onnx/*", "openvino/*", "original/*")
"""Copies of the weights for other runtimes, left behind."""


def read_json(path: Path) -> Any:
    """Return what a JSON file of a model holds.

    Raises:
        ModelLoadError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        msg = f"{path} could not be read: {exc}"
        raise ModelLoadError(msg) from exc


def check_folder(folder: Path, *, allow_pickle: bool) -> None:
    """Raise unless `folder` holds a configuration and complete weights that may be loaded.

    Raises:
        ModelLoadError: Something is missing.
        UnsupportedModelError: The weights are pickled, and that is not allowed.
    """
    names = [path.name for path in folder.iterdir()]
    if CONFIG not in names:
        _refuse_other_formats(names, where=str(folder))
        msg = f"{folder} has no {CONFIG}; a model folder is what `save_pretrained` writes"
        raise ModelLoadError(msg)
    check_weights(names, where=str(folder), allow_pickle=allow_pickle)
    if missing := _missing_shards(folder):
        msg = (
            f"{folder} lacks {len(missing)} of the files named in {_SAFE_INDEX}, such as "
            f"{missing[0]}; download the model again"
        )
        raise ModelLoadError(msg)


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def check_adapter_folder(folder: Path) -> None:
    """Raise unless `folder` holds an adapter that may be loaded, as PEFT's `save_pretrained` does.

    Raises:
        ModelLoadError: Something is missing.
        UnsupportedModelError: Its weights are pickled.
    """
    check_adapter_files([path.name for path in folder.iterdir()], where=str(folder))


def check_adapter_files(files: Collection[str], *, where: str) -> None:
    """Raise unless `files` are those of an adapter that may be loaded.

    Args:
        files: Paths relative to the folder or repository.
        where: How an error names that folder or repository.
    """
    if ADAPTER_CONFIG not in files:
        msg = f"{where} has no {ADAPTER_CONFIG}; an adapter is what PEFT's `save_pretrained` writes"
        raise ModelLoadError(msg)
    if ADAPTER_WEIGHTS in files:
        return
    pickled = sorted(name for name in files if name.startswith("adapter_model."))
    if pickled:
        msg = (
            f"{where} has only pickled weights ({', '.join(pickled)}), and loading a pickle can "
            f"run code; save the adapter anew with PEFT, which writes {ADAPTER_WEIGHTS}"
        )
        raise UnsupportedModelError(msg)
    msg = f"{where} holds no weights: there is no {ADAPTER_WEIGHTS}"
    raise ModelLoadError(msg)


def check_weights(files: Collection[str], *, where: str, allow_pickle: bool) -> None:
    """Raise unless one of `files` holds weights that may be loaded.

    Args:
        files: Paths relative to the folder or repository.
        where: How an error names that folder or repository.
        allow_pickle: Whether pickled weights will do.
    """
    if not _SAFE_WEIGHTS.isdisjoint(files):
        return
    pickled = pickled_weights(files)
    if not pickled:
        _refuse_other_formats(files, where=where)
        msg = f"{where} holds no weights: there is no model.safetensors"
        raise ModelLoadError(msg)
    if not allow_pickle:
        msg = (
            f"{where} has only pickled weights ({', '.join(pickled)}), and loading a pickle can "
            "run code. If you trust its author, pass SourceSettings(allow_pickle=True); better, "
            "convert it to model.safetensors, or take a revision or model that has it"
        )
        raise UnsupportedModelError(msg)


def _refuse_other_formats(files: Collection[str], *, where: str) -> None:
    """Raise if `files` hold something that is known, but is no model that can be loaded.

    Raises:
        UnsupportedModelError: An adapter, or weights for other programs alone.
    """
    if "adapter_config.json" in files:
        msg = (
            f"{where} holds a LoRA adapter, not a model; name the model that it was trained on "
            f'(base_model_name_or_path in its adapter_config.json), and pass options={{"lora": '
            f'"{where}"}} in the call'
        )
        raise UnsupportedModelError(msg)
    for suffix, what in _OTHER_FORMATS.items():
        found = sorted(name for name in files if name.endswith(suffix))
        if found:
            msg = (
                f"{where} has weights for {what} alone ({found[0]}); models are loaded from "
                "safetensors: take the repository that this was converted from"
            )
            raise UnsupportedModelError(msg)


def pickled_weights(files: Collection[str]) -> list[str]:
    """Return those of `files` that hold pickled weights, unless there are safe ones too."""
    if not _SAFE_WEIGHTS.isdisjoint(files):
        return []
    return sorted(
        name
        for name in files
        if PurePosixPath(name).suffix in _PICKLE_SUFFIXES
        and "/" not in name
        and name not in _TRAINING_FILES
    )


def _missing_shards(folder: Path) -> list[str]:
    """Return the weight files that the index names and `folder` lacks."""
    index = folder / _SAFE_INDEX
    if (folder / "model.safetensors").exists() or not index.exists():
        return []
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, AttributeError, TypeError) as exc:
        msg = f"{index} cannot be read: {exc!r}; download the model again"
        raise ModelLoadError(msg) from exc
    return sorted(name for name in shards if not (folder / name).exists())
