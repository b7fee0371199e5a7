"""The files that sentence-transformers and PyLate leave beside a body: modules, pooling, prompts.

`modules.json` lists what follows what: a Transformer in the folder itself, a Pooling, perhaps some
Dense, perhaps a Normalize, each with a folder of its own for its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.projection import Projection, read_dense
from sie_core.local.weights import Weights
from sie_core.models.checkpoint import CONFIG, read_json
from sie_core.models.sources import ModelFiles

_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
)
"""Where a Transformer's settings stand; the last two in old checkpoints."""

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""The names that a document's prompt may have, in the order they are looked for."""


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json.

    Attributes:
        kind: The last part of its class's name: `Transformer`, `Pooling`, `Dense`, `Normalize`.
        path: Its folder, below the model's.
    """

    kind: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceSettings:
    """What sentence-transformers' files say about texts.

    Attributes:
        max_length: Tokens of a text; None if they say nothing.
        lowercases: Whether texts are lowercased.
        query_prompt: Put before queries.
        document_prompt: Put before documents.
    """

    max_length: int | None = None
    lowercases: bool = False
    query_prompt: str = ""
    document_prompt: str = ""


def read_modules(files: ModelFiles) -> list[Module]:
    """Return what `modules.json` lists; empty where there is none.

    Raises:
        UnsupportedModelError: The Transformer is not in the model's own folder.
        ModelLoadError: It cannot be read.
    """
    path = files.folder / "modules.json"
    if not path.exists():
        return []
    entries = read_json(path)
    try:
        modules = [
            Module(kind=entry["type"].rpartition(".")[2], path=entry.get("path", ""))
            for entry in entries
        ]
    except (AttributeError, KeyError, TypeError) as exc:
        msg = f"{path} is no list of modules: {exc!r}"
        raise ModelLoadError(msg) from exc
    if not modules or modules[0] != Module("Transformer", ""):
        first = modules[0] if modules else None
        msg = (
            f"{files.name} begins with {first}; what runs here begins with a Transformer whose "
            "files are in the model's own folder"
        )
        raise UnsupportedModelError(msg)
    return modules


def read_config(files: ModelFiles, module: Module) -> Mapping[str, Any]:
    """Return a module's config.json."""
    config: Mapping[str, Any] = read_json(files.folder / module.path / CONFIG)
    return config


def read_projection(
    files: ModelFiles,
    modules: Sequence[Module],
    num_in: int,
    convert: Callable[[torch.Tensor], torch.Tensor],
    *,
    allow_pickle: bool,
) -> Projection:
    """Read all Dense modules, in their order.

    Args:
        files: The model's folder.
        modules: What `read_modules` returned.
        num_in: The width that comes into the first.
        convert: Puts a tensor where it will run.
        allow_pickle: Whether their weights may be pickled.
    """
    layers = []
    for module in modules:
        if module.kind != "Dense":
            continue
        folder = files.folder / module.path
        where = ModelFiles(name=files.name, folder=folder, source=files.source)
        weights = Weights.open(where, allow_pickle=allow_pickle)
        config = dict(read_config(files, module))
        layer = read_dense(config, weights, num_in=num_in, where=str(folder), convert=convert)
        num_in = len(layer.linear.weight)
        layers.append(layer)
    return Projection(layers)


def read_settings(files: ModelFiles) -> SentenceSettings:
    """Read how texts are cut, lowercased and prompted.

    Raises:
        ModelLoadError: A file cannot be read, or a number in it makes no sense.
    """
    sentence: Mapping[str, Any] = {}
    for name in _SENTENCE_CONFIGS:
        if (files.folder / name).exists():
            sentence = read_json(files.folder / name)
            break
    path = files.folder / "config_sentence_transformers.json"
    general: Mapping[str, Any] = read_json(path) if path.exists() else {}
    max_length = sentence.get("max_seq_length")
    is_count = isinstance(max_length, int) and not isinstance(max_length, bool) and max_length > 0
    if max_length is not None and not is_count:
        msg = f"max_seq_length of {files.name} must be a positive integer, but is {max_length!r}"
        raise ModelLoadError(msg)
    prompts = {name: text or "" for name, text in (general.get("prompts") or {}).items()}
    default = general.get("default_prompt_name")
    if default is not None and default not in prompts:
        msg = f"default_prompt_name {default!r} in {path} is none of its prompts"
        raise ModelLoadError(msg)
    otherwise = prompts[default] if default is not None else ""
    documents = (prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts)
    return SentenceSettings(
        max_length=max_length,
        lowercases=bool(sentence.get("do_lower_case", False)),
        query_prompt=prompts.get("query", otherwise),
        document_prompt=next(documents, otherwise),
    )
