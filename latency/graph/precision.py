"""A model of float32 in a lower precision, stated in the model itself: runtimes that take types literally need nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latency.errors import DeviceUnavailable
from latency.graph.shapes import PRODUCTS

SCALE = 1 / 32
"""Of activations: made up, on the assumption (not measured) that milliseconds do not depend on it; calibrate what
you ship."""


def require_precision(precision: str, offered: tuple[str, ...], device: str) -> None:
    """Raise DeviceUnavailable when a device does not offer a precision."""
    if precision not in offered:
        raise DeviceUnavailable(f"precision '{precision}' given; device '{device}' measures {', '.join(offered)}.")


def lowered(model: bytes, precision: str) -> bytes:
    """`model` for `precision`: "fp32" and "tf32" leave it, "fp16" converts all of it, "int8" quantizes its products.

    int8 is explicit quantization: weights per output channel, activations per tensor, both symmetric; biases, additions
    and everything that is no convolution or linear layer stay in float32 as the runtime fuses them.
    """
    if precision == "fp16":
        return _halved(onnx.load_from_string(model)).SerializeToString()
    if precision == "int8":
        return _quantized(onnx.load_from_string(model)).SerializeToString()
    return model


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    for tensor in [*graph.initializer, *_constants(graph)]:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            tensor.CopyFrom(half)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def _constants(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(SCALE, np.float32), "activation_scale"),
            numpy_helper.from_array(np.array(0, np.int8), "activation_zero"),
        ]
    )
    for node in graph.node:
        if node.op_type in PRODUCTS and node.input[1] in weights:
            nodes += _dequantized_input(node, done)
            nodes += _dequantized_weight(node, graph, weights, done)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _dequantized_input(product: onnx.NodeProto, done: set[str]) -> list[onnx.NodeProto]:
    """Quantize and dequantize what a product reads, once for each value."""
    name = product.input[0]
    product.input[0] = f"{name}_dequantized"
    if name in done:
        return []
    done.add(name)
    return _pair(name, "activation_scale", "activation_zero")


def _dequantized_weight(
    product: onnx.NodeProto, graph: onnx.GraphProto, weights: dict[str, TensorProto], done: set[str]
) -> list[onnx.NodeProto]:
    """A product's weight as whole numbers, dequantized per output channel."""
    name = product.input[1]
    product.input[1] = f"{name}_dequantized"
    if name in done:
        return []
    done.add(name)
    transposed = product.op_type != "Conv" and not any(a.name == "transB" and a.i for a in product.attribute)
    axis = 1 if transposed else 0
    weight = numpy_helper.to_array(weights[name])
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others), 1e-8).astype(np.float32) / 127
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    whole = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    weights[name].CopyFrom(numpy_helper.from_array(whole, name))
    graph.initializer.extend(
        [
            numpy_helper.from_array(scale, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}_zero"),
        ]
    )
    inputs = [name, f"{name}_scale", f"{name}_zero"]
    return [helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"{name}_dequantize", axis=axis)]


def _pair(name: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_quantized"], f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_quantized", scale, zero], [f"{name}_dequantized"], f"{name}_dequantize"),
    ]
