"""`Weights`: a checkpoint's tensors by name, mapped from its files and not copied.

A tensor that is taken shares memory with the file, which the system reads when it is touched and
drops when memory is short; nothing may be written into it. Names are transformers' own, in full
(`bert.encoder.layer.0.…`, `roberta.…`, `model.layers.0.…` for ModernBERT), whatever the file
leaves out, spells the older way, or spells as Jina's XLM-RoBERTa does (its query, key and value are
one tensor: each is a part of that, and no copy); `bert.tensor_shapes` and
`modernbert.tensor_shapes` list them::

    weights = Weights.open(files, allow_pickle=False)
    weights.check(bert.tensor_shapes(architecture))      # all there, of the right shapes
    weights["bert.embeddings.word_embeddings.weight"]    # torch.Tensor, in the file's dtype
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sie_core.errors import ModelLoadError
from sie_core.models.sources import ModelFiles

Shapes = Mapping[str, tuple[int, ...]]
"""Names of tensors and the shapes that they must have."""

_PREFIXES = ("bert.", "roberta.", "model.")
"""What stands before the names of a body's tensors, unless the body was saved by itself."""

_HEADS = ("classifier.", "head.")

_OTHERS = (*_HEADS, "linear.")
"""The names that stand beside a body's; `linear` is what projects the vectors of a ColBERT."""

_JINA_LAYER = re.compile(r"(.*\bencoder)\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_JINA_PARTS = {
    "mixer.Wqkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "mixer.out_proj": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}
"""What Jina's XLM-RoBERTa calls the parts of a layer, and what transformers calls each."""

_READ_ERRORS = (OSError, ValueError, LookupError, RuntimeError, TypeError, SafetensorError)
"""What reading a broken or unreadable file of weights raises."""


class Weights:
    """The tensors of one checkpoint.

    Args:
        files: The model's folder; named in errors.
        readers: For each tensor's name in the file, how to get it.
    """

    def __init__(
        self, files: ModelFiles, readers: Mapping[str, Callable[[], torch.Tensor]]
    ) -> None:
        self._files = files
        self._allow_pickle = False
        self._readers = {
            name: read
            for stored, read_stored in readers.items()
            for name, read in _under_modern_names(stored, read_stored)
        }
        self._is_bare = not any(name.startswith(_PREFIXES) for name in self._readers)

    @classmethod
    def open(cls, files: ModelFiles, *, allow_pickle: bool = False) -> Weights:
        """Map the files of a model's weights.

        Args:
            files: The model's folder.
            allow_pickle: Read `pytorch_model.bin` where there is nothing else. Only tensors are
                taken from it.

        Raises:
            ModelLoadError: A file is missing or is not what it claims to be.
        """
        try:
            weights = cls(files, _find_readers(files, allow_pickle=allow_pickle))
        except _READ_ERRORS as exc:
            raise _unreadable(files, exc) from exc
        weights._allow_pickle = allow_pickle
        return weights

    def reopen(self) -> Weights:
        """Map the files once more.

        All tensors taken from one mapping keep the whole of it, with every page that was read.
        What is to stay is taken from a mapping of its own, so that the rest can go.
        """
        return Weights.open(self._files, allow_pickle=self._allow_pickle)

    def __contains__(self, name: str) -> bool:
        return self._short(name) in self._readers

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self:
            raise self._lacking([name])
        try:
            return self._readers[self._short(name)]()
        except _READ_ERRORS as exc:
            raise _unreadable(self._files, exc) from exc

    def check(self, shapes: Shapes) -> None:
        """Raise unless every tensor is there and has its shape.

        Raises:
            ModelLoadError: One is missing, or does not fit config.json.
        """
        missing = sorted(name for name in shapes if name not in self)
        if missing:
            raise self._lacking(missing)
        for name, shape in shapes.items():
            found = tuple(self[name].shape)
            if found != shape:
                msg = (
                    f"the weights of {self._files.name} in {self._files.folder} could not be "
                    f"loaded: {name} has the shape {found}, but config.json wants {shape}"
                )
                raise ModelLoadError(msg)

    def _short(self, name: str) -> str:
        """Return a name without what a body that was saved by itself leaves out."""
        is_of_body = self._is_bare and not name.startswith(_OTHERS)
        return name.partition(".")[2] if is_of_body else name

    def _lacking(self, missing: list[str]) -> ModelLoadError:
        where = f"the weights of {self._files.name} in {self._files.folder}"
        if any(name.startswith(_HEADS) for name in missing):
            what = f"of a trained classifier, such as {missing[0]!r}: it is not a reranker"
        else:
            what = f"that its configuration wants, such as {missing[0]!r}"
        return ModelLoadError(f"{where} lack {len(missing)} tensors {what}")


def read_tensors(files: ModelFiles, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one small file beside a model's weights, safetensors or a pickle.

    Only tensors are taken from a pickle; whether it may be read at all is the caller's to know.

    Raises:
        ModelLoadError: It cannot be read, or holds something else.
    """
    try:
        if path.suffix != ".safetensors":
            return _load_pickle(path)
        readers = _map_safetensors(files, path.name)
        return {name: read() for name, read in readers.items()}
    except _READ_ERRORS as exc:
        raise _unreadable(files, exc) from exc


_Reader = Callable[[], torch.Tensor]


def _under_modern_names(stored: str, read: _Reader) -> Iterator[tuple[str, _Reader]]:
    """Yield what a stored tensor is called today, and how to read it: whole, or a part of it."""
    # LayerNorms once had a gamma and a beta.
    stem, dot, last = stored.rpartition(".")
    name = stem + dot + {"gamma": "weight", "beta": "bias"}.get(last, last)
    name = name.replace("emb_ln.", "embeddings.LayerNorm.")  # Jina's
    layer = _JINA_LAYER.match(name)
    parts = _JINA_PARTS.get(layer[3], ()) if layer else ()
    if layer is None or not parts:
        yield name, read
        return
    for index, part in enumerate(parts):
        whole = f"{layer[1]}.layer.{layer[2]}.{part}.{layer[4]}"
        yield whole, read if len(parts) == 1 else partial(_part, read, index, len(parts))


def _part(read: _Reader, index: int, count: int) -> torch.Tensor:
    """Return one of the equal parts of a tensor, sharing its memory."""
    return read().chunk(count)[index]


def _find_readers(
    files: ModelFiles, *, allow_pickle: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return how to read each tensor: from one file, from several with an index, or a pickle."""
    folder = files.folder
    if (folder / "model.safetensors").exists():
        return _map_safetensors(files, "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        readers: dict[str, Callable[[], torch.Tensor]] = {}
        for shard in sorted(set(shards.values())):
            readers |= _map_safetensors(files, shard)
        return readers
    pickles = sorted(folder.glob("pytorch_model*.bin")) if allow_pickle else []
    if not pickles:
        msg = "there is no model.safetensors"
        raise FileNotFoundError(msg)
    return {
        key: partial(_as_is, tensor)
        for path in pickles
        for key, tensor in _load_pickle(path).items()
    }


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        tensors: dict[str, torch.Tensor] = load(mmap=True)
    except RuntimeError:  # what torch wrote before 1.6 cannot be mapped
        tensors = load()
    except pickle.UnpicklingError as exc:  # whose text advises to run the code
        msg = f"{path.name} holds more than tensors, and running code is not allowed"
        raise ValueError(msg) from exc
    return tensors


def _map_safetensors(files: ModelFiles, name: str) -> dict[str, Callable[[], torch.Tensor]]:
    file: Any = safe_open(files.folder / name, framework="pt", device="cpu")
    return {key: partial(file.get_tensor, key) for key in file.keys()}  # noqa: SIM118  no mapping


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _unreadable(files: ModelFiles, error: Exception) -> ModelLoadError:
    msg = f"the weights of {files.name} in {files.folder} could not be loaded: {error}"
    return ModelLoadError(msg)
