"""Jina's XLM-RoBERTa, whose repositories want code of theirs to be run: never, and not needed."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

from sie_core.errors import UnsupportedModelError
from sie_core.local import LocalClient, native, release
from sie_core.local.architecture import Architecture
from sie_core.local.attention import GroupedAttention
from sie_core.local.bert import BertBody, tensor_shapes
from sie_core.local.layers import PackedInputs, Placement
from sie_core.local.packing import PackedBatch
from sie_core.local.tokenization import PairTokenizer
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


def rotary_hidden_states(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """Compute the last hidden states of one text by the formulas, a head and a layer at a time."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    num_heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    functional = torch.nn.functional

    def get(name: str) -> torch.Tensor:
        return tensors[f"roberta.{name}"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), eps
        )

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    def turned(x: torch.Tensor) -> torch.Tensor:
        # Component i of the first half and component i of the second are one point of a plane.
        half = x.shape[1] // 2
        exponents = torch.arange(half) / half
        angles = torch.arange(len(x))[:, None] / config["rotary_emb_base"] ** exponents
        a, b = x[:, :half], x[:, half:]
        return torch.cat(
            [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 1
        )

    x = get("embeddings.word_embeddings.weight")[token_ids]
    x = norm(x + get("embeddings.token_type_embeddings.weight")[0], "emb_ln")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{index}"
        heads = []
        query, key, value = linear(x, f"{layer}.mixer.Wqkv").chunk(3, 1)
        for q, k, v in zip(
            query.chunk(num_heads, 1),
            key.chunk(num_heads, 1),
            value.chunk(num_heads, 1),
            strict=True,
        ):
            weights = (turned(q) @ turned(k).T / q.shape[1] ** 0.5).softmax(1)
            heads.append(weights @ v)
        x = norm(x + linear(torch.cat(heads, 1), f"{layer}.mixer.out_proj"), f"{layer}.norm1")
        up = functional.gelu(linear(x, f"{layer}.mlp.fc1"))
        x = norm(x + linear(up, f"{layer}.mlp.fc2"), f"{layer}.norm2")
    return x


def test_rotary_positions_by_the_formula(tiny_rotary_jina: Path) -> None:
    """Every token's hidden state, of sequences of several lengths at once, as jina-colbert-v2's."""
    files = ModelFiles(name="test/jina", folder=tiny_rotary_jina, source="folder")
    architecture = Architecture.read(files)
    assert {layer.theta for layer in architecture.rotary_layers} == {20000.0}
    assert (architecture.position_offset, architecture.max_length) == (0, 128)
    weights = Weights.open(files)
    weights.check(tensor_shapes(architecture))
    placement = Placement(torch.device("cpu"), torch.float32)
    body = BertBody(architecture, weights, placement)
    tokenizer = PairTokenizer.load(tiny_rotary_jina)
    pairs = sorted(tokenizer.encode_pairs(QUERY, TEXTS, 128), key=lambda pair: -len(pair.token_ids))
    batch = PackedBatch.of(pairs, position_offset=architecture.position_offset)
    inputs, attention = PackedInputs.of(batch), GroupedAttention(batch, placement.device)
    with torch.inference_mode():
        found = body.all_tokens(inputs, attention)
        first = body.first_tokens(inputs, attention)
        expected = [rotary_hidden_states(tiny_rotary_jina, list(p.token_ids)) for p in pairs]
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)
    assert torch.allclose(first, torch.stack([x[0] for x in expected]), atol=1e-4)
    without = rotary_hidden_states(tiny_rotary_jina, list(reversed(pairs[0].token_ids)))
    assert not torch.allclose(without.flip(0), expected[0], atol=0.1)  # the order counts


def test_rotary_positions_run_in_torch(tiny_rotary_jina: Path) -> None:
    """The compiled kernels have none, and a classifier of such a body is scored all the same."""
    client = LocalClient(device="cpu", mode="exact")
    token_ids = (
        PairTokenizer.load(tiny_rotary_jina).encode_pairs(QUERY, TEXTS[:1], 128)[0].token_ids
    )
    first = rotary_hidden_states(tiny_rotary_jina, list(token_ids))[0]
    tensors = load_file(tiny_rotary_jina / "model.safetensors")
    dense = tensors["classifier.dense.weight"] @ first + tensors["classifier.dense.bias"]
    logit = (
        tensors["classifier.out_proj.weight"] @ dense.tanh() + tensors["classifier.out_proj.bias"]
    )
    [entry] = client.score(str(tiny_rotary_jina), Item(text=QUERY), [Item(text=TEXTS[0])])["scores"]
    assert entry["score"] == pytest.approx(logit.sigmoid().item(), abs=1e-4)
    [description] = client.loaded().values()
    assert description.endswith("computed by torch")


def test_positions_of_other_kinds_are_refused(tiny_jina: Path, tmp_path: Path) -> None:
    """With the kinds that are known."""
    config = json.loads((tiny_jina / "config.json").read_text())
    config["position_embedding_type"] = "relative_key"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"'relative_key'; .*'absolute', 'rotary'"):
        Architecture.read(ModelFiles(name="test/jina", folder=tmp_path, source="folder"))


@pytest.fixture
def tiny_jina_colbert(tiny_rotary_jina: Path, tmp_path: Path) -> Path:
    """The files of jina-colbert-v2: that body, a projection, and markers behind the vocabulary."""
    folder = shutil.copytree(tiny_rotary_jina, tmp_path / "tiny-jina-colbert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[QueryMarker]", "[DocumentMarker]"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "roberta" in k}
    words = "roberta.embeddings.word_embeddings.weight"
    more = torch.randn(2, tensors[words].shape[1], generator=torch.Generator().manual_seed(3))
    tensors[words] = torch.cat([tensors[words], 0.3 * more])
    tensors["linear.weight"] = torch.randn(
        12, tensors[words].shape[1], generator=torch.Generator().manual_seed(4)
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["HF_ColBERT"], "vocab_size": len(tensors[words])}
    (folder / "config.json").write_text(json.dumps(config))
    metadata = {
        "query_token_id": "[QueryMarker]",
        "doc_token_id": "[DocumentMarker]",
        "query_maxlen": 16,
        "doc_maxlen": 128,
        "mask_punctuation": True,
        "attend_to_mask_tokens": True,
    }
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return folder


def test_jina_colbert_gives_vectors_and_ranks_by_maxsim(tiny_jina_colbert: Path) -> None:
    """Markers, masks behind the query, rotary positions, projection and MaxSim by the formulas."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_jina_colbert)
    projection = load_file(tiny_jina_colbert / "model.safetensors")["linear.weight"]
    documents = ["berlin museum of the river", "the population of the city", "a song"]

    def vectors(text: str, marker: str, fill_to: int = 0) -> torch.Tensor:
        ids = [0, tokenizer.convert_tokens_to_ids(marker), *tokenizer.encode(text)[1:]]
        ids += [tokenizer.mask_token_id] * (fill_to - len(ids))
        hidden = rotary_hidden_states(tiny_jina_colbert, ids)
        kept = [i for i, token in enumerate(ids) if fill_to or token not in skipped]
        return torch.nn.functional.normalize(hidden[kept] @ projection.T, dim=1)

    # What ColBERT's own code leaves out of documents: the first token of each sign by itself.
    skipped = {tokenizer.encode(sign, add_special_tokens=False)[0] for sign in string.punctuation}
    query = vectors(QUERY, "[QueryMarker]", fill_to=16)
    expected = [vectors(text, "[DocumentMarker]") for text in documents]
    client, model = LocalClient(device="cpu", mode="exact"), str(tiny_jina_colbert)
    found = client.encode(model, [Item(text=text) for text in documents])
    for result, wanted in zip(found, expected, strict=True):
        assert torch.allclose(torch.from_numpy(result["multivector"]), wanted, atol=1e-4)
    result = client.score(model, Item(text=QUERY), [Item(id=t, text=t) for t in documents])
    maxsim = [(query @ wanted.T).max(1).values.sum().item() for wanted in expected]
    scores = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    assert [scores[text] for text in documents] == pytest.approx(maxsim, abs=1e-4)
