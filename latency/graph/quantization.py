"""Models that state a lower precision themselves: which it is, and what they compute but for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latency.graph.shapes import PRODUCTS

PAIR = ("QuantizeLinear", "DequantizeLinear")

RECTIFIED = PRODUCTS | {"BatchNormalization", "Add"}
"""Operations whose ReLU a quantizer leaves to the range of what is quantized after them."""


def stated_precision(model: onnx.ModelProto) -> str:
    """ "int8" of a model with DequantizeLinear, "fp16" of one with weights in float16; "fp32" of all others, which run in
    whatever precision their device makes of them."""
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return "int8"
    return "fp16" if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer) else "fp32"


def dequantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The operations of a model, on the same shapes, without QuantizeLinear and DequantizeLinear.

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
    """Nodes of `quantized` without those pairs; weights for them go to `graph`."""
    tensors = {tensor.name: tensor for tensor in quantized.initializer}
    maker = {name: node.op_type for node in quantized.node for name in node.output}
    same: dict[str, str] = {}
    for node in quantized.node:
        inputs = [same.get(name, name) for name in node.input]
        if node.op_type not in PAIR:
            plain = onnx.NodeProto()
            plain.CopyFrom(node)
            plain.input[:] = inputs
            yield plain
        elif inputs[0] in tensors and node.op_type == "DequantizeLinear":
            zeros = np.zeros(tensors[inputs[0]].dims, np.float32)
            graph.initializer.append(numpy_helper.from_array(zeros, node.output[0]))
        elif node.op_type == "QuantizeLinear" and maker.get(inputs[0]) in RECTIFIED and _begins_at_zero(node, tensors):
            same[node.output[0]] = f"{inputs[0]}_rectified"
            yield helper.make_node("Relu", inputs[:1], [same[node.output[0]]])
        else:
            same[node.output[0]] = inputs[0]
    for value in graph.output:
        if value.name in same:
            yield helper.make_node("Identity", [same[value.name]], [value.name])


def _begins_at_zero(quantize: onnx.NodeProto, tensors: Mapping[str, TensorProto]) -> bool:
    """Whether its smallest whole number stands for 0.0."""
    if len(quantize.input) < 3:
        return True  # uint8
    zero = tensors.get(quantize.input[2])
    if zero is None:
        return False
    value = numpy_helper.to_array(zero)
    return bool((value == np.iinfo(value.dtype).min).all())
