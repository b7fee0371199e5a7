from __future__ import annotations

import json
from pathlib import Path

import pytest

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.models.checkpoint import check_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration and no weights."""
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_safe_weights_will_do(folder: Path) -> None:
    """Pickled copies beside them do no harm, since nobody reads them."""
    (folder / "model.safetensors").touch()
    (folder / "pytorch_model.bin").touch()
    check_folder(folder, allow_pickle=False)


def test_a_folder_without_configuration_is_not_a_model(tmp_path: Path) -> None:
    """The error says what a model folder is."""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        check_folder(tmp_path, allow_pickle=False)


def test_a_folder_without_weights_is_an_error(folder: Path) -> None:
    """A tokenizer and leftovers of training are no weights."""
    (folder / "tokenizer.json").touch()
    (folder / "training_args.bin").touch()
    with pytest.raises(ModelLoadError, match="holds no weights"):
        check_folder(folder, allow_pickle=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_need_consent(folder: Path, name: str) -> None:
    """They may run code on loading: the error names the file and the setting."""
    (folder / name).touch()
    with pytest.raises(UnsupportedModelError, match=rf"{name}.*allow_pickle=True"):
        check_folder(folder, allow_pickle=False)
    check_folder(folder, allow_pickle=True)


def test_a_missing_shard_is_named(folder: Path) -> None:
    """An interrupted copy of a large model is found out before it is loaded."""
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").touch()
    with pytest.raises(ModelLoadError, match=r"lacks 1 .* such as model-2\.safetensors"):
        check_folder(folder, allow_pickle=False)
    (folder / "model-2.safetensors").touch()
    check_folder(folder, allow_pickle=False)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": []}', "{}"])
def test_a_damaged_index_is_an_error(folder: Path, content: str) -> None:
    """Whatever stands in the file, the error names it."""
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"index\.json cannot be read"):
        check_folder(folder, allow_pickle=False)
