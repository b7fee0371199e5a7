"""The compiled kernels against transformers' own forward pass, on random checkpoints."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from sie_core.errors import InvalidRequestError
from sie_core.local import LocalClient, native
from sie_core.local.architecture import Architecture
from sie_core.local.bert import BertClassifier
from sie_core.local.encoder import PairEncoder
from sie_core.local.layers import Placement
from sie_core.local.native import NativeClassifier, NativeWorker
from sie_core.local.tokenization import Pair
from sie_core.local.weights import Weights
from sie_core.local.worker import GroupedWorker
from sie_core.models.sources import ModelFiles
from sie_core.types import Item

TOLERANCES = {"amx": 0.15, "amx-float32": 5e-5, "avx512": 5e-5, "avx2": 5e-5}
"""Of raw logits whose spread is about 1, by weights that amplify rounding."""

VOCAB_SIZE = 500
Make = Callable[..., Path]


@pytest.fixture(params=list(native.KERNELS))
def kernels(request: pytest.FixtureRequest) -> str:
    """Each set of kernels that this machine runs."""
    name: str = request.param
    if name not in native.available_kernels():
        pytest.skip(f"this build or processor has no {name} kernels")
    return name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Make:
    """Makes a BERT or XLM-R checkpoint with random weights."""

    def make(model_type: str = "bert", **overrides: Any) -> Path:
        from transformers import AutoConfig

        settings = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 1100,
            "num_labels": 1,
            "initializer_range": 0.2,
        }
        config = AutoConfig.for_model(model_type, **settings | overrides)
        torch.manual_seed(7)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # all zero otherwise
                    parameter.normal_(std=0.2)
                if "LayerNorm.weight" in name:
                    parameter.normal_(mean=1.0, std=0.2)
        folder = tmp_path_factory.mktemp(model_type)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text((tiny_bert / name).read_text())
        return folder

    return make


def make_pairs(lengths: list[int], *, seed: int = 0) -> list[Pair]:
    """Pairs of random ids; the first third is the query."""
    rng = np.random.default_rng(seed)
    pairs = []
    for length in lengths:
        ids = rng.integers(5, VOCAB_SIZE, length, dtype=np.int32)
        pairs.append(Pair(ids, max(1, length // 3), is_truncated=False))
    return pairs


def reference(folder: Path, pairs: list[Pair], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """What transformers computes, one pair at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    has_types = model.config.type_vocab_size > 1
    scores = []
    with torch.inference_mode():
        for pair in pairs:
            inputs = {"input_ids": torch.tensor([list(pair.token_ids)]).long()}
            if has_types:
                types = [int(i >= pair.num_first) for i in range(len(pair.token_ids))]
                inputs["token_type_ids"] = torch.tensor([types])
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            logits = model(**inputs).logits[0]
            scores.append((logits[1] - logits[0] if len(logits) > 1 else logits[0]).item())
    return np.array(scores)


def load(folder: Path, kernels: str) -> NativeClassifier:
    """Load a checkpoint for some kernels."""
    files = ModelFiles(name="test", folder=folder, source="folder")
    return NativeClassifier(Architecture.read(files), Weights.open(files), kernels)


LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 97, 130, 200]


@pytest.fixture(
    scope="module",
    params=[
        ("bert", {}),
        ("bert", {"num_labels": 2}),
        ("bert", {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 160}),
        ("bert", {"hidden_size": 128, "num_attention_heads": 2}),
        ("bert", {"hidden_size": 192, "num_attention_heads": 2}),
        ("bert", {"num_hidden_layers": 1}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"hidden_act": "relu"}),
        ("xlm-roberta", {"type_vocab_size": 1, "num_labels": 1}),
        ("roberta", {"type_vocab_size": 1, "num_labels": 2, "layer_norm_eps": 1e-5}),
    ],
)
def scored(request: pytest.FixtureRequest, checkpoint: Make) -> tuple[Path, np.ndarray]:
    """Checkpoints of all sizes, heads, activations, labels and families, and their scores."""
    model_type, overrides = request.param
    folder = checkpoint(model_type, **overrides)
    return folder, reference(folder, make_pairs(LENGTHS))


def test_scores_are_those_of_transformers(scored: tuple[Path, np.ndarray], kernels: str) -> None:
    """Whatever the sizes, heads, activation, labels and family."""
    folder, expected = scored

    scores = NativeWorker(load(folder, kernels))(make_pairs(LENGTHS))

    spread = max(1.0, expected.std())
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCES[kernels] * spread)


def test_bfloat16_loses_no_more_than_torch_does(checkpoint: Make) -> None:
    """The fast exponential and GELU add nothing to what rounding products costs anyway."""
    if "amx" not in native.available_kernels():
        pytest.skip("this build or processor has no amx kernels")
    folder = checkpoint(num_hidden_layers=4, hidden_size=128, num_attention_heads=4)
    pairs = make_pairs(LENGTHS * 2)
    expected = reference(folder, pairs)
    files = ModelFiles(name="test", folder=folder, source="folder")
    architecture, weights = Architecture.read(files), Weights.open(files)
    placement = Placement(torch.device("cpu"), torch.bfloat16)
    in_torch = GroupedWorker(
        BertClassifier(architecture, weights, placement), architecture, placement.device
    )(pairs)

    scores = NativeWorker(load(folder, "amx"))(pairs)

    def lost(found: list[float]) -> float:
        return float(np.sqrt(np.mean((np.array(found) - expected) ** 2)))

    assert lost(scores) < 1.25 * lost(in_torch)


def test_long_sequences_are_exact(checkpoint: Make, kernels: str) -> None:
    """Beyond a thousand tokens too, whose rows of scores have the size of a cache's page."""
    folder = checkpoint()
    pairs = make_pairs([1000, 3, 1024])

    scores = NativeWorker(load(folder, kernels))(pairs)

    expected = reference(folder, pairs)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCES[kernels])


def test_a_score_does_not_depend_on_its_company(checkpoint: Make, kernels: str) -> None:
    """Alone, with others, in any place, after larger batches: the same number to the last bit."""
    folder = checkpoint()
    worker = NativeWorker(load(folder, kernels))
    pairs = make_pairs(LENGTHS)

    together = worker(pairs)

    assert [worker([pair])[0] for pair in pairs] == together
    assert worker(pairs[::-1])[::-1] == together
    worker(make_pairs([700, 700]))
    assert worker(pairs[3:7]) == together[3:7]


def test_one_bad_sequence_spoils_no_other(checkpoint: Make, kernels: str) -> None:
    """A token whose embedding is not a number makes its own score one, and no neighbour's."""
    folder = checkpoint()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.embeddings.word_embeddings.weight"][4] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    pairs = make_pairs([20, 33, 47])
    expected = NativeWorker(load(folder, kernels))(pairs)
    bad = Pair(np.full(21, 4, np.int32), 21, is_truncated=False)

    worker = NativeWorker(load(folder, kernels))
    scores = worker([pairs[0], bad, *pairs[1:]])

    assert math.isnan(scores.pop(1))
    assert scores == expected
    assert worker(pairs) == expected


@pytest.mark.parametrize("factor", [1, 30, 1000])
def test_a_dominant_dimension_costs_the_others_little(checkpoint: Make, factor: float) -> None:
    """Digits are shared out by a row's largest value; float32 sums lose by it as well."""
    needed = {"amx-float32", "avx512"}
    if not needed <= set(native.available_kernels()):
        pytest.skip("this build or processor has no amx-float32 kernels")
    folder = checkpoint(hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if "LayerNorm.weight" in name:
            tensors[name][11] *= factor
        if name.endswith(("dense.weight", "query.weight", "key.weight", "value.weight")):
            tensors[name] *= 0.2  # as trained weights: scores amplify no rounding
    save_file(tensors, path, metadata={"format": "pt"})
    pairs = make_pairs(LENGTHS)
    exact = reference(folder, pairs, torch.float64)

    def lost(kernels: str) -> float:
        found = np.array(NativeWorker(load(folder, kernels))(pairs))
        return float(np.sqrt(np.mean((found - exact) ** 2)))

    assert lost("amx-float32") < 5 * lost("avx512") + 1e-7


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_give_no_number(
    checkpoint: Make, kernels: str, hidden_act: str, value: float
) -> None:
    """One weight that is not finite must not end as a score that looks like any other."""
    folder = checkpoint(hidden_act=hidden_act)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.0.intermediate.dense.weight"][5, 7] = value
    save_file(tensors, path, metadata={"format": "pt"})
    scores = NativeWorker(load(folder, kernels))(make_pairs([20, 33]))
    assert not np.isfinite(scores).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_are_read_in_the_file_s_own_format(
    checkpoint: Make, kernels: str, dtype: torch.dtype
) -> None:
    """Half precision files score as transformers does after it has widened them."""
    folder = checkpoint()
    path = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    tensors["bert.embeddings.word_embeddings.weight"][7, :3] = torch.tensor([3e-7, -0.0, 1e-4])
    save_file(tensors, path, metadata={"format": "pt"})
    pairs = [*make_pairs(LENGTHS), Pair(np.array([7, 7, 8], np.int32), 3, is_truncated=False)]

    scores = NativeWorker(load(folder, kernels))(pairs)

    expected = reference(folder, pairs)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCES[kernels])


def test_workers_run_at_once(checkpoint: Make, kernels: str) -> None:
    """Eight threads with a worker each give what one gives."""
    classifier = load(checkpoint(), kernels)
    batches = [make_pairs(LENGTHS, seed=seed) for seed in range(8)]
    expected = [NativeWorker(classifier)(pairs) for pairs in batches]
    found: list[list[list[float]]] = [[] for _ in batches]

    def run(index: int) -> None:
        worker = NativeWorker(classifier)
        found[index].extend(worker(batches[index]) for _ in range(10))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [[scores] * 10 for scores in expected]


def test_models_outside_the_blocks_are_left_to_torch(checkpoint: Make) -> None:
    """Heads of 8, widths that are no multiple of 32, and activations that C has not."""
    for overrides in (
        {"num_attention_heads": 8},
        {"intermediate_size": 100},
        {"hidden_act": "silu"},
    ):
        folder = checkpoint(**overrides)
        files = ModelFiles(name="test", folder=folder, source="folder")
        assert native.choose_kernels(Architecture.read(files), torch.float32) is None
        pairs = make_pairs([5, 20])
        encoder = PairEncoder.load(files, device=torch.device("cpu"), dtype=torch.float32)
        np.testing.assert_allclose(encoder.logits(pairs), reference(folder, pairs), atol=5e-5)


def test_the_environment_bounds_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`SIE_MAX_CPU_ISA` leaves out what is above it; `none` is torch; others are refused."""
    everything = native.available_kernels()
    for most in ("amx", "avx512", "avx2"):
        monkeypatch.setenv("SIE_MAX_CPU_ISA", most)
        above = {
            "amx": (),
            "avx512": ("amx", "amx-float32"),
            "avx2": ("amx", "amx-float32", "avx512"),
        }
        assert native.available_kernels() == tuple(k for k in everything if k not in above[most])
    monkeypatch.setenv("SIE_MAX_CPU_ISA", "none")
    assert native.available_kernels() == ()
    monkeypatch.setenv("SIE_MAX_CPU_ISA", "sse9")
    with pytest.raises(InvalidRequestError, match="'sse9'"):
        native.available_kernels()


def test_a_build_without_kernels_scores_in_torch(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on systems without a compiler: the same scores."""
    folder = checkpoint()
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "absent.so")
    native._library.cache_clear()
    try:
        files = ModelFiles(name="test", folder=folder, source="folder")
        encoder = PairEncoder.load(files, device=torch.device("cpu"), dtype=torch.float32)
        pairs = make_pairs(LENGTHS)
        np.testing.assert_allclose(encoder.logits(pairs), reference(folder, pairs), atol=5e-5)
    finally:
        native._library.cache_clear()


@pytest.mark.skipif("amx" not in native.available_kernels(), reason="no AMX here")
def test_the_library_is_used_where_it_can_be(checkpoint: Make) -> None:
    """float32 and bfloat16 each get their kernels without being asked for."""
    files = ModelFiles(name="test", folder=checkpoint(), source="folder")
    architecture = Architecture.read(files)
    assert native.choose_kernels(architecture, torch.bfloat16) == "amx"
    assert native.choose_kernels(architecture, torch.float32) == "amx-float32"
    assert native.choose_kernels(architecture, torch.float16) is None
    assert json.loads((files.folder / "config.json").read_text())["model_type"] == "bert"


def test_what_computes_is_said(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """`LocalClient.loaded` names the kernels, or torch where there are none for a model."""
    folder = checkpoint()
    for most in (None, "none"):
        if most:
            monkeypatch.setenv("SIE_MAX_CPU_ISA", most)
        available = native.available_kernels()
        client = LocalClient(mode="exact")
        client.score(str(folder), Item(text="a"), [Item(text="b")])
        (description,) = client.loaded().values()
        best = next((name for name in available if name != "amx"), None)
        assert description.endswith(f"by {best} kernels" if best else "by torch")
        client.close()
