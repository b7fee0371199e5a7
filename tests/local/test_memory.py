"""Bytes are counted as they are, and bounds on them are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sie_core.errors import InvalidRequestError, ResourceExhaustedError
from sie_core.local import LocalClient, memory, native
from sie_core.local.encoder import PairEncoder
from sie_core.local.registry import REGISTRY
from sie_core.models.sources import ModelFiles
from sie_core.types import Item

QUERY, ITEMS = Item(text="how many people live in berlin"), [Item(text="berlin"), Item(text="city")]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PairEncoder:
    """Load a checkpoint on the CPU."""
    files = ModelFiles(name="tiny", folder=folder, source="folder")
    return PairEncoder.load(files, device=torch.device("cpu"), dtype=dtype)


def test_tensors_are_counted_once_wherever_they_are() -> None:
    """In lists, mappings and objects of this package; other things hold none."""
    tensor = torch.zeros(10)
    assert memory.count_bytes([tensor, {"a": tensor}], tensor, "text", object()) == 40


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_xlmr", "tiny_modernbert"])
def test_a_model_in_torch_holds_what_its_files_say(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """In float32; the estimate from the files' headers is the same."""
    folder = request.getfixturevalue(fixture)
    encoder = load(folder)
    numbers = memory.estimate_bytes(folder, torch.float32)
    assert encoder.num_bytes == numbers
    assert memory.estimate_bytes(folder, torch.bfloat16) == numbers // 2


@pytest.mark.parametrize("kernels", list(native.KERNELS))
def test_a_model_in_the_kernels_is_counted_as_they_hold_it(
    kernels: str, make_tiny_bert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own order pads numbers, or splits them into digits of three bytes."""
    if kernels not in native.available_kernels():
        pytest.skip(f"this build or processor has no {kernels} kernels")
    from transformers import BertConfig, BertForSequenceClassification

    folder = make_tiny_bert()
    config = BertConfig.from_pretrained(folder)
    config.hidden_size, config.num_attention_heads, config.intermediate_size = 64, 2, 96
    BertForSequenceClassification(config).save_pretrained(folder)
    monkeypatch.setenv("SIE_MAX_CPU_ISA", native.KERNELS[kernels])
    dtype = torch.bfloat16 if kernels == "amx" else torch.float32
    encoder = load(folder, dtype)
    assert kernels in encoder.computed_by
    least = 0.75 if kernels == "amx-float32" else 1.0
    assert encoder.num_bytes >= least * memory.estimate_bytes(folder, dtype)
    assert encoder.num_bytes < 3 * memory.estimate_bytes(folder, torch.float32)


def test_a_broken_file_is_estimated_by_its_size(tmp_path: Path) -> None:
    """Loading it will say what is wrong with it."""
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    assert memory.estimate_bytes(tmp_path, torch.float32) == 100


@pytest.mark.usefixtures("released")
def test_a_client_keeps_as_many_models_as_it_may(tiny_bert: Path, tiny_xlmr: Path) -> None:
    """And scores with each, whichever had to leave."""
    with LocalClient(mode="exact", max_loaded_models=1) as client:
        first = client.score(str(tiny_bert), QUERY, ITEMS)["scores"]
        client.score(str(tiny_xlmr), QUERY, ITEMS)
        assert list(client.loaded()) == [str(tiny_xlmr)]
        assert client.score(str(tiny_bert), QUERY, ITEMS)["scores"] == first
        assert len(REGISTRY.loaded()) == 1


@pytest.mark.usefixtures("released")
def test_a_budget_that_one_model_exceeds_is_an_error(tiny_bert: Path) -> None:
    """It names both numbers; a budget of that size will do."""
    num_bytes = memory.estimate_bytes(tiny_bert, torch.float32)
    with (
        LocalClient(mode="exact", memory_budget_bytes=num_bytes - 1) as client,
        pytest.raises(ResourceExhaustedError, match=rf"{num_bytes:,} bytes.*{num_bytes - 1:,}"),
    ):
        client.score(str(tiny_bert), QUERY, ITEMS)
    with LocalClient(mode="exact", memory_budget_bytes=num_bytes) as client:
        assert client.score(str(tiny_bert), QUERY, ITEMS)


@pytest.mark.parametrize("name", ["max_loras", "max_loaded_models", "memory_budget_bytes"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_a_bound_is_an_integer_of_at_least_1(name: str, value: Any) -> None:
    """The error names it and the value."""
    with pytest.raises(InvalidRequestError, match=f"{name} must be .* but got {value}"):
        LocalClient(**{name: value})


def test_mapped_files_that_were_written_to_are_told_from_replaced_ones(tmp_path: Path) -> None:
    """A new file by an old name harms nobody who has the old one."""
    for name in ("model-1.safetensors", "model-2.safetensors", "model-3.safetensors"):
        (tmp_path / name).write_bytes(b"old")
    stamps = memory.stamp_weights(tmp_path)
    assert memory.overwritten(stamps) == []
    with (tmp_path / "model-1.safetensors").open("ab") as file:
        file.write(b"more")
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").replace(tmp_path / "model-2.safetensors")
    (tmp_path / "model-3.safetensors").unlink()
    assert memory.overwritten(stamps) == [tmp_path / "model-1.safetensors"]
