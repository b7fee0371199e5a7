"""LoRA adapters against PEFT's own scores: trained-looking adapters that PEFT itself saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sie_core import Item, LocalClient

QUERY = "how many people live in berlin"
TEXTS = ["berlin population people", "the museum is on the river", "banana", "paris " * 20]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("tiny_bert", {"target_modules": ["query", "value"]}),
    "bert-all-linear": ("tiny_bert", {"target_modules": "all-linear", "use_rslora": True}),
    "bert-regex": ("tiny_bert", {"target_modules": r".*layer\.1\..*dense"}),
    "bert-patterns": (
        "tiny_bert",
        {
            "target_modules": ["query", "key", "value"],
            "rank_pattern": {r"layer\.0\.attention\.self\.query": 2, "key": 6},
            "alpha_pattern": {"value": 3},
        },
    ),
    "xlmr": ("tiny_xlmr", {"target_modules": ["query", "dense"]}),
    "modernbert": ("tiny_modernbert", {"target_modules": ["Wqkv", "Wi"]}),
    "modernbert-all-linear": ("tiny_modernbert", {"target_modules": "all-linear"}),
}


def peft_scores(base: Path, adapter: Path, config: dict[str, Any]) -> list[float]:
    """Save an adapter with random weights to `adapter`, and score with it by PEFT."""
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    model = get_peft_model(
        model, LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=16, **config)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer([QUERY] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
    wanted = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        logits = model.eval()(**{key: inputs[key] for key in wanted if key in inputs}).logits
    return [float(logit) for logit in logits[:, 0]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_pefts(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In float32, within 1e-4."""
    fixture, config = CASES[case]
    base = request.getfixturevalue(fixture)
    expected = peft_scores(base, tmp_path / "adapter", config)
    with LocalClient(mode="exact", device="cpu") as client:
        options = {"lora": str(tmp_path / "adapter"), "score_space": "raw"}
        items = [Item(id=str(i), text=text) for i, text in enumerate(TEXTS)]
        result = client.score(str(base), Item(text=QUERY), items, options=options)
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    assert [found[str(i)] for i in range(len(TEXTS))] == pytest.approx(expected, abs=1e-4)
