"""Tensors by name, whatever way they were saved, and mapped rather than copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sie_core.errors import ModelLoadError
from sie_core.local import bert
from sie_core.local.architecture import Architecture
from sie_core.local.weights import Weights
from sie_core.models.sources import ModelFiles

WORDS = "bert.embeddings.word_embeddings.weight"


def files_of(folder: Path) -> ModelFiles:
    """Name a folder."""
    return ModelFiles(name="test/model", folder=folder, source="folder")


def copy_of(checkpoint: Path, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Copy a checkpoint without its weights, and return them."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, tensors


def assert_complete(folder: Path, expected: dict[str, torch.Tensor], **how: bool) -> None:
    """Check that all tensors of a classifier are found and are those expected."""
    weights = Weights.open(files_of(folder), **how)
    shapes = bert.tensor_shapes(Architecture.read(files_of(folder)))
    weights.check(shapes)
    for name in shapes:
        assert torch.equal(weights[name], expected[name])


def test_one_file_is_mapped_and_not_copied(tiny_bert: Path) -> None:
    """Two tensors of the file lie in one mapping of it."""
    weights = Weights.open(files_of(tiny_bert))
    offset = weights["classifier.bias"].data_ptr() - weights[WORDS].data_ptr()
    assert abs(offset) < (tiny_bert / "model.safetensors").stat().st_size
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str((tiny_bert / "model.safetensors").resolve()) in maps.read_text()


def test_shards_are_found_by_their_index(tiny_bert: Path, tmp_path: Path) -> None:
    """A checkpoint of several files reads as one."""
    folder, tensors = copy_of(tiny_bert, tmp_path / "sharded")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_complete(folder, tensors)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_tensors_are_read_only_where_that_is_allowed(
    tiny_bert: Path, tmp_path: Path, *, is_zip: bool
) -> None:
    """`pytorch_model.bin`, also in the format that torch wrote before 1.6."""
    folder, tensors = copy_of(tiny_bert, tmp_path / "pickled")
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=is_zip)
    assert_complete(folder, tensors, allow_pickle=True)
    with pytest.raises(ModelLoadError, match=r"no model\.safetensors"):
        Weights.open(files_of(folder))


def test_a_pickle_with_code_in_it_is_not_run(tiny_bert: Path, tmp_path: Path) -> None:
    """Allowing pickles allows tensors, and nothing that runs."""
    folder, _ = copy_of(tiny_bert, tmp_path / "malicious")
    torch.save({"weight": _Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="holds more than tensors"):
        Weights.open(files_of(folder), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


class _Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._path,)


def test_older_names_and_a_body_saved_by_itself_are_understood(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """LayerNorm.gamma and .beta, and names without the leading `bert.`."""
    folder, tensors = copy_of(tiny_bert, tmp_path / "old")
    old = {
        name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert set(old).isdisjoint(name for name in tensors if not name.startswith("classifier"))
    save_file(old, folder / "model.safetensors")
    assert_complete(folder, tensors)


def test_a_shape_that_config_json_contradicts_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    """Weights of another size are an error before anything is computed with them."""
    folder, tensors = copy_of(tiny_bert, tmp_path / "other-size")
    tensors["classifier.weight"] = torch.zeros(1, 31)
    save_file(tensors, folder / "model.safetensors")
    weights = Weights.open(files_of(folder))
    with pytest.raises(
        ModelLoadError, match=r"classifier\.weight has the shape \(1, 31\).*\(1, 32"
    ):
        weights.check(bert.tensor_shapes(Architecture.read(files_of(folder))))
