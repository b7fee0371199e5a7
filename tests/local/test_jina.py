"""Jina's XLM-RoBERTa, whose repositories want code of theirs to be run: never, and not needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

from sie_core.local import LocalClient, native, release
from sie_core.local.architecture import Architecture
from sie_core.local.bert import tensor_shapes
from sie_core.local.weights import Weights
from sie_core.models.sources import ModelFiles
from sie_core.types import Item

QUERY = "how many people live in berlin"
TEXTS = ["berlin museum", "population of the city 😀", "", "river " * 200, "the band of the year"]
SELF = "roberta.encoder.layer.{}.attention.self.{}.{}"


def transformers_logits(jina: Path) -> list[float]:
    """Score with transformers' own XLM-RoBERTa, given Jina's tensors by the names of its own."""
    stored, tensors = load_file(jina / "model.safetensors"), {}
    renamed = {
        "emb_ln": "embeddings.LayerNorm",
        "encoder.layers": "encoder.layer",
        "mixer.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for name, tensor in stored.items():
        if "Wqkv" in name:
            index, part = name.split(".")[3], name.rpartition(".")[2]
            size = len(tensor) // 3
            for i, kind in enumerate(("query", "key", "value")):
                tensors[SELF.format(index, kind, part)] = tensor[i * size : (i + 1) * size]
            continue
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)  # noqa: PLW2901  one name after the other
        tensors[name] = tensor
    model = XLMRobertaForSequenceClassification(
        XLMRobertaConfig.from_json_file(jina / "config.json")
    )
    model.load_state_dict(tensors)
    tokenizer = AutoTokenizer.from_pretrained(jina)
    inputs = tokenizer(
        [QUERY] * len(TEXTS), TEXTS, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits: list[float] = model.eval()(**inputs).logits[:, 0].tolist()
    return logits


@pytest.mark.parametrize("instructions", ["none", "avx2", "avx512", "amx"])
def test_scores_are_those_of_transformers(
    tiny_jina: Path, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, by torch and by the compiled kernels; a sigmoid, as Jina's own code has it."""
    monkeypatch.setenv("SIE_MAX_CPU_ISA", instructions)
    release()  # the models that other instructions run
    expected = transformers_logits(tiny_jina)
    items = [Item(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    client = LocalClient(device="cpu", mode="exact")
    for space, wanted in (
        ("raw", expected),
        ("probability", torch.tensor(expected).sigmoid().tolist()),
    ):
        options = {} if space == "probability" else {"score_space": space}
        result = client.score(str(tiny_jina), Item(text=QUERY), items, options=options)
        found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
        assert [found[item["id"]] for item in items] == pytest.approx(wanted, abs=1e-4)
    [description] = client.loaded().values()
    assert ("kernels" in description) == bool(native.available_kernels())
    release()


def test_a_part_of_a_fused_tensor_is_no_copy(tiny_jina: Path) -> None:
    """Query, key and value are views of one tensor, in this order."""
    files = ModelFiles(name="test/jina", folder=tiny_jina, source="folder")
    weights = Weights.open(files)
    weights.check(tensor_shapes(Architecture.read(files)))
    parts = [weights[SELF.format(0, kind, "weight")] for kind in ("query", "key", "value")]
    size = parts[0].nbytes
    assert parts[0].untyped_storage().data_ptr() == parts[1].untyped_storage().data_ptr()
    assert [part.data_ptr() - parts[0].data_ptr() for part in parts] == [0, size, 2 * size]
