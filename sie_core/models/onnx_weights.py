"""The weights of a BERT model, read back out of a quantised ONNX graph with numpy alone.

onnxruntime's dynamic quantisation stores each matrix as int8 or uint8 numbers with a scale and a
zero point: `weight = (number - zero_point) * scale`. Biases and norms stay float32 under the names
they had in PyTorch, and so do embeddings, with a suffix. The matrices of the linear layers have
lost their names, but the node that multiplies by one is still named after its layer.

An ONNX file is a protobuf message. The few fields needed are read here straight from the wire
format (https://protobuf.dev/programming-guides/encoding; field numbers from onnx.proto);
docs/decisions/0010-no-onnx-dependency.md says why.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sie_core.errors import ModelLoadError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""The wire types of protobuf."""

_MAX_VARINT_BITS = 64

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_OPERATOR = 1, 3, 4
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_FLOATS, _TENSOR_INT32S = 1, 2, 4, 5
_TENSOR_NAME, _TENSOR_RAW_DATA, _TENSOR_DATA_LOCATION = 8, 9, 14

_DTYPES: dict[int, npt.DTypeLike] = {1: "<f4", 2: "u1", 3: "i1"}
"""`TensorProto.DataType` -> numpy, as far as a quantised BERT needs it."""

_MATRIX_OPERATORS = frozenset({"MatMulInteger", "MatMul"})
"""Operators whose second input is a matrix of shape [in, out]."""

_QUANTIZED, _SCALE, _ZERO_POINT = "_quantized", "_scale", "_zero_point"
"""The suffixes of the three tensors that stand for one quantised tensor."""

Tensor = npt.NDArray[np.float32 | np.uint8 | np.int8]
FloatTensor = npt.NDArray[np.float32]


def read_weights(path: Path) -> dict[str, FloatTensor]:
    """Return the float32 weights in the ONNX file at `path`, named and shaped as in PyTorch.

    Linear layers come out as [out, in]. Names keep the prefix that the graph has: a cross-encoder's
    start with `bert.`, a bare encoder's with `embeddings.` and `encoder.`.

    Raises:
        ModelLoadError: The file is not an ONNX graph of this kind, or is damaged.
    """
    try:
        nodes, tensors = _read_model(memoryview(path.read_bytes()))
        return _name_weights(nodes, tensors)
    except (ValueError, LookupError, struct.error) as exc:
        msg = f"{path} is not an ONNX graph that weights can be read from: {exc}"
        raise ModelLoadError(msg) from exc


@dataclass(slots=True)
class _Node:
    """One operation of the graph."""

    name: str = ""
    operator: str = ""
    inputs: list[str] = field(default_factory=list)


def _name_weights(nodes: Sequence[_Node], tensors: Mapping[str, Tensor]) -> dict[str, FloatTensor]:
    """Give every weight the name and shape it has in PyTorch's state dict."""
    matrix_names = {
        node.inputs[1]: _layer_name(node)
        for node in nodes
        if node.operator in _MATRIX_OPERATORS and node.inputs[1] in tensors
    }
    weights: dict[str, FloatTensor] = {}
    for name, tensor in tensors.items():
        if _is_quantization_parameter(name, tensors):
            continue
        weight = (
            _dequantize(name, tensors) if name.endswith(_QUANTIZED) else _as_float(name, tensor)
        )
        if name in matrix_names:
            weights[f"{matrix_names[name]}.weight"] = np.ascontiguousarray(weight.T)
        else:
            weights[name.removesuffix(_QUANTIZED)] = weight
    _check_names(weights)
    return weights


def _layer_name(node: _Node) -> str:
    """Turn `/bert/pooler/dense/MatMul_quant` into `bert.pooler.dense`."""
    return ".".join(node.name.strip("/").split("/")[:-1])


def _is_quantization_parameter(name: str, tensors: Mapping[str, Tensor]) -> bool:
    return any(
        name.endswith(suffix) and name.removesuffix(suffix) + _QUANTIZED in tensors
        for suffix in (_SCALE, _ZERO_POINT)
    )


def _dequantize(name: str, tensors: Mapping[str, Tensor]) -> FloatTensor:
    """Return the real numbers that a quantised tensor stands for.

    Scale and zero point are single numbers, or one for each output, which is the last axis.
    """
    base = name.removesuffix(_QUANTIZED)
    zero_point = tensors[base + _ZERO_POINT].astype(np.float32)
    # float32 holds every int8 and uint8, and their differences, exactly.
    return (tensors[name].astype(np.float32) - zero_point) * _as_float(
        base + _SCALE, tensors[base + _SCALE]
    )


def _as_float(name: str, tensor: Tensor) -> FloatTensor:
    if tensor.dtype != np.float32:
        msg = f"{name} holds {tensor.dtype}, but is not marked as quantised"
        raise ValueError(msg)
    return tensor.astype(np.float32)


def _check_names(weights: Mapping[str, FloatTensor]) -> None:
    """Refuse a graph in which a weight could not be traced to a layer."""
    nameless = sorted(name for name in weights if "::" in name or name.startswith("."))
    if nameless or not weights:
        msg = f"no layer is known for {nameless[0]}" if nameless else "it holds no weights"
        raise ValueError(msg)


def _read_model(message: memoryview) -> tuple[list[_Node], dict[str, Tensor]]:
    """Return the operations and the constant tensors of a `ModelProto`."""
    nodes: list[_Node] = []
    tensors: dict[str, Tensor] = {}
    for graph in _submessages(message, _MODEL_GRAPH):
        nodes += [_read_node(node) for node in _submessages(graph, _GRAPH_NODE)]
        for initializer in _submessages(graph, _GRAPH_INITIALIZER):
            name, tensor = _read_tensor(initializer)
            if tensor is not None:
                tensors[name] = tensor
    return nodes, tensors


def _read_node(message: memoryview) -> _Node:
    node = _Node()
    for number, value in _fields(message):
        if number == _NODE_INPUT:
            node.inputs.append(_text(value))
        elif number == _NODE_NAME:
            node.name = _text(value)
        elif number == _NODE_OPERATOR:
            node.operator = _text(value)
    return node


def _read_tensor(message: memoryview) -> tuple[str, Tensor | None]:
    """Return a tensor's name and values; None where its type is not one that weights have."""
    fields: defaultdict[int, list[int | memoryview]] = defaultdict(list)
    for number, value in _fields(message):
        fields[number].append(value)
    name = "".join(_text(value) for value in fields[_TENSOR_NAME])
    if any(fields[_TENSOR_DATA_LOCATION]):
        msg = f"the values of {name or 'a tensor'} are kept in another file"
        raise ValueError(msg)
    data_type = sum(_all_integers(fields[_TENSOR_DATA_TYPE]))
    if data_type not in _DTYPES:
        return name, None
    dims = _all_integers(fields[_TENSOR_DIMS])
    dtype = _DTYPES[data_type]
    if integers := _all_integers(fields[_TENSOR_INT32S]):
        return name, np.array(integers, dtype=np.int64).astype(dtype).reshape(dims)
    data = b"".join(_bytes(value) for value in fields[_TENSOR_RAW_DATA] or fields[_TENSOR_FLOATS])
    return name, np.frombuffer(data, dtype=dtype).reshape(dims)


def _all_integers(values: Iterable[int | memoryview]) -> list[int]:
    return [number for value in values for number in _integers(value)]


def _submessages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (_bytes(value) for number, value in _fields(message) if number == wanted)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field: an integer, or the bytes of anything else."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            msg = f"wire type {wire_type} is not one of protobuf's"
            raise ValueError(msg)
        if position + length > len(message):
            msg = "it ends in the middle of a field"
            raise ValueError(msg)
        yield key >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the integer at `position`, seven bits a byte, and the position after it."""
    value = 0
    for shift in range(0, _MAX_VARINT_BITS + 6, 7):
        if position >= len(message):
            msg = "it ends in the middle of a number"
            raise ValueError(msg)
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 # the top bit says that more follows
            return value, position
    msg = "a number in it never ends"
    raise ValueError(msg)


def _integers(value: int | memoryview) -> list[int]:
    """Return a repeated integer field's numbers, packed or not, negative ones included."""
    numbers: list[int] = []
    if isinstance(value, int):
        numbers.append(value)
    else:
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            numbers.append(number)
    half = 1 << (_MAX_VARINT_BITS - 1)
    return [number - 2 * half if number >= half else number for number in numbers]


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        msg = f"the number {value} stands where bytes belong"
        raise ValueError(msg)  # noqa: TRY004 # about the file's content, not a caller's type
    return value


def _text(value: int | memoryview) -> str:
    return str(_bytes(value), "utf-8")
