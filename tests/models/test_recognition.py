"""What a folder is recognised as, or why it is refused; by small files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.models.checkpoint import check_folder
from sie_core.models.recognition import recognise

POOLING = [
    {"idx": 0, "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "type": "sentence_transformers.models.Pooling"},
]
PYLATE = {"similarity_fn_name": "MaxSim", "query_prefix": "[Q] ", "document_prefix": "[D] "}


def write(folder: Path, config: Any, **files: Any) -> Path:
    """Write a model folder's JSON files; `artifact__metadata` is artifact.metadata."""
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        path = folder / (name.replace("__", ".") if "__" in name else f"{name}.json")
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("architecture", "model_type", "kind"),
    [
        ("BertForSequenceClassification", "bert", "cross-encoder"),
        ("RobertaForSequenceClassification", "roberta", "cross-encoder"),
        ("XLMRobertaForSequenceClassification", "xlm-roberta", "cross-encoder"),
        ("ModernBertForSequenceClassification", "modernbert", "cross-encoder"),
        ("GemmaForCausalLM", "gemma", "causal-reranker"),
        ("Qwen2ForCausalLM", "qwen2", "causal-reranker"),
        ("Qwen3ForCausalLM", "qwen3", "causal-reranker"),
        ("HF_ColBERT", "bert", "late-interaction"),
        ("HF_ColBERT", "xlm-roberta", "late-interaction"),
        ("BertModel", "bert", "dense"),
        ("XLMRobertaModel", "xlm-roberta", "dense"),
        ("ModernBertModel", "modernbert", "dense"),
    ],
)
def test_the_class_in_the_configuration_decides(
    tmp_path: Path, architecture: str, model_type: str, kind: str
) -> None:
    """As a list of one, or as the bare name that some converters write."""
    for named in ([architecture], architecture):
        config = {"architectures": named, "model_type": model_type, "num_labels": 1}
        assert recognise(write(tmp_path, config)) == kind


@pytest.mark.parametrize("architectures", [None, []])
def test_without_a_class_the_files_decide(tmp_path: Path, architectures: Any) -> None:
    """Modules make a sentence encoder, ColBERT's files a ColBERT; else a head is looked for."""
    config = {"architectures": architectures, "model_type": "bert"}
    assert recognise(write(tmp_path, config)) == "cross-encoder"
    assert recognise(write(tmp_path, config, modules=POOLING)) == "dense"
    assert recognise(write(tmp_path, config, artifact__metadata={})) == "late-interaction"


def test_files_tell_a_colbert_from_a_sentence_encoder(tmp_path: Path) -> None:
    """colbertv2.0 names a BertModel too; PyLate's models name its similarity."""
    config = {"architectures": ["ModernBertModel"], "model_type": "modernbert"}
    assert recognise(write(tmp_path, config, modules=POOLING)) == "dense"
    assert (
        recognise(write(tmp_path, config, config_sentence_transformers=PYLATE))
        == "late-interaction"
    )


def test_a_masked_language_model_is_an_encoder_only_with_its_modules(tmp_path: Path) -> None:
    """Without them it is a pre-trained model, whose vectors mean nothing."""
    config = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    with pytest.raises(UnsupportedModelError, match=r"BertForMaskedLM without modules\.json"):
        recognise(write(tmp_path, config))
    assert recognise(write(tmp_path, config, modules=POOLING)) == "dense"


def test_several_classes_of_one_kind_will_do(tmp_path: Path) -> None:
    """Those of different kinds do not tell what the model is for."""
    same = {"architectures": ["BertModel", "BertForMaskedLM"], "model_type": "bert"}
    assert recognise(write(tmp_path, same, modules=POOLING)) == "dense"
    names = ["BertModel", "BertForSequenceClassification"]
    different = {"architectures": names, "model_type": "bert", "num_labels": 1}
    with pytest.raises(UnsupportedModelError, match=r"several architectures \(BertModel, BertFor"):
        recognise(write(tmp_path, different))


CLASSIFIER = "ForSequenceClassification"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            {"architectures": [f"Qwen3{CLASSIFIER}"], "model_type": "qwen3"},
            "Qwen3ForSequenceClassification, a language model made into a class.*Qwen3ForCausalLM",
        ),
        (
            {"architectures": [f"DebertaV2{CLASSIFIER}"], "model_type": "deberta-v2"},
            "DebertaV2ForSequenceClassification of the model_type 'deberta-v2'; what runs here",
        ),
        (
            {"architectures": [f"Bert{CLASSIFIER}"], "model_type": "bert", "num_labels": 3},
            r"3 labels \(LABEL_0, LABEL_1, LABEL_2\)",
        ),
        (
            {
                "architectures": [f"Bert{CLASSIFIER}"],
                "model_type": "bert",
                "id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"},
            },
            r"3 labels \(contradiction, entailment, neutral\)",
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
            "T5ForConditionalGeneration, an encoder with a decoder.*monoT5.*bge-reranker-v2-m3",
        ),
        (
            {
                "architectures": [f"New{CLASSIFIER}"],
                "model_type": "new",
                "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"},
            },
            r"NewForSequenceClassification.*code of its own.*auto_map.*never done",
        ),
        (
            {
                "architectures": ["JinaBertForMaskedLM"],
                "model_type": "bert",
                "auto_map": {"AutoConfig": "configuration_bert.JinaBertConfig"},
            },
            "JinaBertForMaskedLM",
        ),
        ({"architectures": ["MPNetModel"], "model_type": "mpnet"}, "MPNetModel.*what runs here"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"model_type": "gpt2"}, "a model of the model_type 'gpt2'"),
        ({}, "a model of the model_type None"),
    ],
)
def test_what_does_not_run_here_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    """With what runs instead."""
    with pytest.raises(UnsupportedModelError, match=complaint):
        recognise(write(tmp_path, config, **({"modules": POOLING} if "auto_map" in config else {})))


def test_an_embedding_model_on_a_language_model_is_no_reranker(tmp_path: Path) -> None:
    """Qwen3-Embedding has the class of Qwen3-Reranker; its modules pool vectors."""
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    with pytest.raises(UnsupportedModelError, match="embedding model made of a language model"):
        recognise(write(tmp_path, config, modules=POOLING))


def test_a_sparse_encoder_is_refused(tmp_path: Path) -> None:
    """SPLADE has modules too, and none of them gives a dense vector."""
    config = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    modules = [{"type": "sentence_transformers.sparse_encoder.models.SpladePooling"}]
    with pytest.raises(UnsupportedModelError, match="sparse encoder"):
        recognise(write(tmp_path, config, modules=modules))


@pytest.mark.parametrize("config", [[1], "text", {"architectures": [3]}, {"architectures": 3}])
def test_a_configuration_that_is_none_is_a_load_error(tmp_path: Path, config: Any) -> None:
    """The file is named."""
    with pytest.raises(ModelLoadError, match=r"config\.json could not be read"):
        recognise(write(tmp_path, config))


def test_broken_modules_are_a_load_error(tmp_path: Path) -> None:
    """The file is named."""
    with pytest.raises(ModelLoadError, match=r"modules\.json could not be read"):
        recognise(write(tmp_path, {"model_type": "bert"}, modules={"type": "x"}))


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (["model.gguf"], r"weights for llama\.cpp \(GGUF\) alone \(model\.gguf\)"),
        (["config.json", "model.onnx", "tokenizer.json"], "weights for ONNX Runtime alone"),
        (["config.json", "tf_model.h5"], "weights for TensorFlow alone"),
        (["adapter_config.json", "adapter_model.safetensors"], r"LoRA adapter.*\"lora\""),
        (["config.json", "adapter_config.json"], r"LoRA adapter.*base_model_name_or_path"),
    ],
)
def test_weights_of_other_kinds_are_named(tmp_path: Path, files: list[str], complaint: str) -> None:
    """With what to do about it; safetensors beside them are all that counts."""
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedModelError, match=complaint):
        check_folder(tmp_path, allow_pickle=False)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    check_folder(tmp_path, allow_pickle=False)
