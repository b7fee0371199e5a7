"""What a model folder holds, told from its small files and the headers of its weights."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from sie_core.errors import ModelLoadError
from sie_core.models.checkpoint import CONFIG
from sie_core.models.recognition import Kind, read_json, recognise

_MAX_HEADER_BYTES = 100_000_000
"""More than any header has; a file that claims more is none."""

_SHAPE = {
    "vocab_size": "vocabulary",
    "hidden_size": "hidden size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed-forward size",
    "max_position_embeddings": "positions",
}
"""The sizes that all families name alike in config.json, and what they are called here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderDescription:
    """What a folder holds.

    Attributes:
        folder: Where it is.
        kind: What it is recognised as.
        architectures: The classes in its config.json.
        shape: Sizes by name, those that its config.json has.
        num_parameters: Numbers in its safetensors; None where it has none.
        dtypes: Their formats.
        num_bytes: Size of the safetensors files.
    """

    folder: str
    kind: Kind
    architectures: tuple[str, ...]
    shape: dict[str, int]
    num_parameters: int | None
    dtypes: tuple[str, ...]
    num_bytes: int


def describe(folder: Path) -> FolderDescription:
    """Tell what a model folder holds, without reading weights.

    Raises:
        UnsupportedModelError: Nothing that runs here; the message says what was found.
        ModelLoadError: A file cannot be read.
    """
    kind = recognise(folder)
    config = read_json(folder / CONFIG)
    named = config.get("architectures") or ()
    files = sorted(folder.glob("*.safetensors"))
    tensors = [tensor for path in files for tensor in _read_header(path)]
    return FolderDescription(
        folder=str(folder),
        kind=kind,
        architectures=(named,) if isinstance(named, str) else tuple(named),
        shape={
            name: config[key] for key, name in _SHAPE.items() if isinstance(config.get(key), int)
        },
        num_parameters=sum(count for _, count in tensors) if files else None,
        dtypes=tuple(sorted({dtype for dtype, _ in tensors})),
        num_bytes=sum(path.stat().st_size for path in files),
    )


def _read_header(path: Path) -> list[tuple[str, int]]:
    """Return the number format and the count of numbers of each tensor in a safetensors file.

    The format: eight bytes with the length of a JSON object, and that object.
    """
    try:
        with path.open("rb") as file:
            [length] = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        return [
            (str(entry["dtype"]), math.prod(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError) as exc:
        msg = f"{path} is no safetensors file that can be read: {exc}"
        raise ModelLoadError(msg) from exc
