"""Bytes: what a model holds, what one would hold, and giving back what nobody holds any more."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")

_LENGTH = struct.Struct("<Q")
"""A safetensors file begins with the length of its header (the format's own page says so)."""


def count_bytes(*parts: object) -> int:
    """Count the bytes of all tensors in `parts`, once each, mapped ones included.

    Looks into lists, mappings, dataclasses, and the attributes of objects of this package.
    """
    seen: set[int] = set()

    def walk(part: object) -> int:
        if id(part) in seen:
            return 0
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            return part.numel() * part.element_size()
        return sum(map(walk, _members(part)))

    return sum(map(walk, parts))


def _members(part: object) -> Iterable[object]:
    if isinstance(part, list | tuple):
        return part
    if isinstance(part, Mapping):
        return part.values()
    if dataclasses.is_dataclass(part):
        return [getattr(part, field.name) for field in dataclasses.fields(part)]
    return vars(part).values() if type(part).__module__.startswith("sie_core.") else ()


def estimate_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return what the weights in `folder` take in a number format, without reading them."""
    paths = _weight_files(folder)
    safe = [path for path in paths if path.suffix == ".safetensors"]
    try:
        if safe:
            return sum(map(_count_numbers, safe)) * dtype.itemsize
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        pass  # a broken file, which loading it will name
    return sum(path.stat().st_size for path in paths)


def _count_numbers(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > path.stat().st_size:
            msg = f"{path} has a header that is longer than the file"
            raise ValueError(msg)
        header = json.loads(file.read(length))
    return sum(math.prod(it["shape"]) for name, it in header.items() if name != "__metadata__")


class FileStamp(NamedTuple):
    """What tells whether a file is still the one that was read, and still has its content."""

    path: Path
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Stamp a file as it is now."""
        stat = path.stat()
        return cls(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def stamp_weights(folder: Path) -> tuple[FileStamp, ...]:
    """Stamp the files of weights in a model's folder."""
    return tuple(map(FileStamp.of, _weight_files(folder)))


def identify(folder: Path) -> str:
    """Name what is in the folder of a model or an adapter, and what computes it, by file stamps.

    Changed files, another version of this package or of torch: another name.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [(str(path.relative_to(folder)), *FileStamp.of(path)[1:]) for path in paths]
    said = repr((str(folder), stamps, _own_version(), torch.__version__))
    return hashlib.blake2b(said.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _own_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("sie-core")
    return "from a folder"


def overwritten(stamps: Iterable[FileStamp]) -> list[Path]:
    """Return those files whose content was changed in place since they were stamped.

    One that was replaced (renamed over, or deleted and written anew) is not among them: who mapped
    the old one keeps it as it was.
    """
    changed = []
    for old in stamps:
        try:
            now = FileStamp.of(old.path)
        except OSError:
            continue
        is_same_file = (now.device, now.inode) == (old.device, old.inode)
        if is_same_file and now != old:
            changed.append(old.path)
    return changed


def give_back() -> None:
    """Return to the system what was freed: the C library and torch keep it for later otherwise."""
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()  # does nothing where CUDA is not used
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; other C libraries have none, and most need none."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes = [ctypes.c_size_t]
    return trim


def _weight_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)})
