from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sie_core.errors import ModelLoadError
from sie_core.models.onnx_weights import read_weights

if TYPE_CHECKING:
    from tests.models.conftest import OnnxWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test writes its ONNX file."""
    return tmp_path / "model.onnx"


def test_a_float_tensor_keeps_its_name_and_values(path: Path, onnx: OnnxWriter) -> None:
    """Biases and norms, which are not quantised, come out as they went in, raw or typed."""
    values = np.array([0.5, -1.25, 3.0], dtype=np.float32)
    tensors = [onnx.tensor("a.bias", values), onnx.tensor("b.bias", values, typed=True)]
    path.write_bytes(onnx.model(tensors=tensors))

    weights = read_weights(path)

    assert list(weights) == ["a.bias", "b.bias"]
    assert all(np.array_equal(weight, values) for weight in weights.values())
    assert all(weight.dtype == np.float32 for weight in weights.values())


def test_an_embedding_is_dequantised_in_place(path: Path, onnx: OnnxWriter) -> None:
    """(number - zero point) * scale, over the whole range of uint8, without wrapping around."""
    numbers = np.array([[0, 1], [200, 255]], dtype=np.uint8)
    tensors = onnx.quantized("embeddings.weight", numbers, scale=0.5, zero_point=200)
    path.write_bytes(onnx.model(tensors=tensors))

    weights = read_weights(path)

    assert list(weights) == ["embeddings.weight"]
    assert weights["embeddings.weight"].tolist() == [[-100.0, -99.5], [0.0, 27.5]]


def test_a_nameless_matrix_is_named_after_its_node_and_transposed(
    path: Path, onnx: OnnxWriter
) -> None:
    """The graph multiplies by [in, out]; PyTorch's linear layers are [out, in], contiguous."""
    numbers = np.array([[1, 2, 3], [4, 5, -128]], dtype=np.int8)
    tensors = onnx.quantized("onnx::MatMul_12", numbers, scale=2.0, zero_point=-1)
    inputs = ("x_quantized", "onnx::MatMul_12_quantized", "x_zero", "onnx::MatMul_12_zero_point")
    name = "/bert/encoder/layer.0/attention/self/query/MatMul_quant"
    nodes = [onnx.node("MatMulInteger", name, *inputs)]
    path.write_bytes(onnx.model(nodes=nodes, tensors=tensors))

    weights = read_weights(path)

    assert list(weights) == ["bert.encoder.layer.0.attention.self.query.weight"]
    (weight,) = weights.values()
    assert weight.tolist() == [[4.0, 10.0], [6.0, 12.0], [8.0, -254.0]]
    assert weight.flags.c_contiguous


def test_each_output_may_have_its_own_scale(path: Path, onnx: OnnxWriter) -> None:
    """Quantisation per channel: one scale and one zero point for each column of the graph."""
    numbers = np.array([[1, 1], [3, 3]], dtype=np.int8)
    tensors = [
        onnx.tensor("m_quantized", numbers),
        onnx.tensor("m_scale", np.array([1.0, 10.0], np.float32), typed=True),
        onnx.tensor("m_zero_point", np.array([0, -2], np.int8), typed=True),
    ]
    nodes = [onnx.node("MatMulInteger", "/dense/MatMul_quant", "x", "m_quantized")]
    path.write_bytes(onnx.model(nodes=nodes, tensors=tensors))

    assert read_weights(path)["dense.weight"].tolist() == [[1.0, 3.0], [30.0, 50.0]]


def test_tensors_that_are_not_weights_are_left_out(path: Path, onnx: OnnxWriter) -> None:
    """Shapes and positions, which are int64, are the graph's own business."""
    tensors = [
        onnx.tensor("position_ids", np.arange(4)),
        onnx.tensor("a.bias", np.ones(2, np.float32)),
    ]
    path.write_bytes(onnx.model(tensors=tensors))

    assert list(read_weights(path)) == ["a.bias"]


def test_a_file_cut_short_is_an_error_that_names_it(path: Path, onnx: OnnxWriter) -> None:
    """Wherever the file ends early, there is an error and no weights."""
    content = onnx.bert()
    for size in (0, 1, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ModelLoadError, match=r"model\.onnx is not an ONNX graph"):
            read_weights(path)


@pytest.mark.parametrize("content", [b"<!doctype html>", b"\xff" * 64, b"PK\x03\x04zip"])
def test_a_file_of_another_kind_is_an_error(path: Path, content: bytes) -> None:
    """An error page or an archive is not taken for a graph."""
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="is not an ONNX graph"):
        read_weights(path)


def test_a_matrix_of_unknown_layer_is_an_error(path: Path, onnx: OnnxWriter) -> None:
    """Guessing where a matrix belongs would give wrong scores silently."""
    tensors = onnx.quantized("onnx::MatMul_9", np.ones((2, 2), np.int8), scale=1.0, zero_point=0)
    path.write_bytes(onnx.model(tensors=tensors))
    with pytest.raises(ModelLoadError, match="no layer is known for onnx::MatMul_9"):
        read_weights(path)


def test_values_kept_in_another_file_are_an_error(path: Path, onnx: OnnxWriter) -> None:
    """Large graphs may keep their tensors outside, where this reader does not look."""
    outside = onnx.message((1, 2), (2, 1), (8, "a.bias"), (14, 1))
    path.write_bytes(onnx.model(tensors=[outside]))
    with pytest.raises(ModelLoadError, match=r"a\.bias are kept in another file"):
        read_weights(path)


def test_a_shape_that_the_values_do_not_fill_is_an_error(path: Path, onnx: OnnxWriter) -> None:
    """Five values cannot be a tensor of six."""
    short = onnx.message((1, 6), (2, 1), (9, np.ones(5, np.float32).tobytes()), (8, "a.bias"))
    path.write_bytes(onnx.model(tensors=[short]))
    with pytest.raises(ModelLoadError, match="is not an ONNX graph"):
        read_weights(path)
