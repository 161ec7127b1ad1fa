"""Models that state a lower precision themselves: which it is, and what they compute but for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latency.graph.shapes import PRODUCTS

PAIR = ("QuantizeLinear", "DequantizeLinear")


class QuantizedOperation(NamedTuple):
    """One that computes in int8 itself, without a pair around it: the operation it stands for, which of its inputs are that
    operation's (all others are scales, zero points and biases), and which is its output's zero point."""

    plain: str
    inputs: slice
    zero: int


ONE, TWO, EVERY = slice(0, 1), slice(0, 4, 3), slice(2, None, 3)

QUANTIZED = {
    "QLinearConv": QuantizedOperation("Conv", TWO, 7),
    "QLinearMatMul": QuantizedOperation("MatMul", TWO, 7),
    "QGemm": QuantizedOperation("Gemm", TWO, 8),
    "QLinearAdd": QuantizedOperation("Add", TWO, 7),
    "QLinearMul": QuantizedOperation("Mul", TWO, 7),
    "QLinearConcat": QuantizedOperation("Concat", EVERY, 1),
    "QLinearGlobalAveragePool": QuantizedOperation("GlobalAveragePool", ONE, 4),
    "QLinearAveragePool": QuantizedOperation("AveragePool", ONE, 4),
    "QLinearLeakyRelu": QuantizedOperation("LeakyRelu", ONE, 4),
    "QLinearSigmoid": QuantizedOperation("Sigmoid", ONE, 4),
    "QLinearSoftmax": QuantizedOperation("Softmax", ONE, 4),
}
"""ONNX's own, and those of ONNX Runtime's quantizer beside them (its operators' documentation, domain com.microsoft)."""

RECTIFIED = PRODUCTS | {"BatchNormalization", "Add"}
"""Operations whose ReLU a quantizer leaves to the range of what is quantized after them."""

WEIGHTED = frozenset(name for name, operation in QUANTIZED.items() if operation.plain in PRODUCTS)
"""Those of them whose input 2 is the zero point of what they read, and whose input 3 may be weights."""

NOT_PLAIN = ("channels_last", "opset")
"""Attributes that only quantized operations have."""


def stated_precision(model: onnx.ModelProto) -> str:
    """ "int8" of a model with DequantizeLinear, "fp16" of one with weights in float16; "fp32" of all others, which run in
    whatever precision their device makes of them."""
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return "int8"
    return "fp16" if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer) else "fp32"


def slower_int8(model: onnx.ModelProto) -> str:
    """What a model computes with that runs otherwise than what int8 means in a table (weights int8; activations uint8, or
    whatever pairs say): "weights in uint8", "activations in int8", or "".

    On one core of a Xeon with AMX, ONNX Runtime takes 3 and 16 times as long for the same MobileNetV1 (a script).
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = {node.input[1] for node in model.graph.node if node.op_type in PRODUCTS}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in weights and types.get(node.input[0]) == TensorProto.UINT8:
            return "weights in uint8"
        if node.op_type in WEIGHTED and types.get(node.input[3]) == TensorProto.UINT8:
            return "weights in uint8"
        if node.op_type in WEIGHTED and types.get(node.input[2]) == TensorProto.INT8:
            return "activations in int8"
    return ""


def dequantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The operations of a model, on the same shapes, as they are in float32: without QuantizeLinear and DequantizeLinear.

    Quantized weights become zeros, and a range that begins at 0 becomes the ReLU that it stands for.
    """
    if not any(node.op_type in PAIR for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(_in_float(model.graph, result.graph))
    return result


def _in_float(quantized: onnx.GraphProto, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes that compute what `quantized` does; weights for them go to `graph`."""
    tensors = {tensor.name: tensor for tensor in quantized.initializer}
    maker = {name: node.op_type for node in quantized.node for name in node.output}
    same: dict[str, str] = {}
    for node in quantized.node:
        inputs = [same.get(name, name) for name in node.input]
        if node.op_type in QUANTIZED:
            yield from _plain(node, inputs, tensors, graph)
        elif node.op_type not in PAIR:
            unchanged = onnx.NodeProto()
            unchanged.CopyFrom(node)
            unchanged.input[:] = inputs
            yield unchanged
        elif inputs[0] in tensors and node.op_type == "DequantizeLinear":
            _add_zeros(graph, node.output[0], tensors[inputs[0]])
        elif node.op_type == "QuantizeLinear" and maker.get(inputs[0]) in RECTIFIED and _begins_at_zero(node, 2, tensors):
            same[node.output[0]] = f"{inputs[0]}_rectified"
            yield helper.make_node("Relu", inputs[:1], [same[node.output[0]]])
        else:
            same[node.output[0]] = inputs[0]
    for value in graph.output:
        if value.name in same:
            yield helper.make_node("Identity", [same[value.name]], [value.name])


def _plain(
    node: onnx.NodeProto, inputs: list[str], tensors: Mapping[str, TensorProto], graph: onnx.GraphProto
) -> Iterator[onnx.NodeProto]:
    """The operation that a quantized one stands for, and its ReLU."""
    operation = QUANTIZED[node.op_type]
    read = inputs[operation.inputs]
    for place, name in enumerate(read):
        if name in tensors:
            read[place] = f"{name}_of_{node.output[0]}"
            _add_zeros(graph, read[place], tensors[name])
    rectified = operation.plain in RECTIFIED and _begins_at_zero(node, operation.zero, tensors)
    made = f"{node.output[0]}_before_relu" if rectified else node.output[0]
    plain = helper.make_node(operation.plain, read, [made], node.name)
    plain.attribute.extend(attribute for attribute in node.attribute if attribute.name not in NOT_PLAIN)
    yield plain
    if rectified:
        yield helper.make_node("Relu", [made], node.output)


def _add_zeros(graph: onnx.GraphProto, name: str, like: TensorProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.zeros(like.dims, np.float32), name))


def _begins_at_zero(node: onnx.NodeProto, place: int, tensors: Mapping[str, TensorProto]) -> bool:
    """Whether the smallest whole number stands for 0.0, which the input at `place` says."""
    if len(node.input) <= place:
        return True  # uint8
    zero = tensors.get(node.input[place])
    if zero is None:
        return False
    value = numpy_helper.to_array(zero)
    return bool((value == np.iinfo(value.dtype).min).all())
