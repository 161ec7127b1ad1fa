"""Quantized models have the kernels of the models that they were made of."""

import io
import warnings
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from latency.devices.ort_int8 import quantized
from latency.graph.kernels import find_kernels
from latency.graph.precision import lowered
from latency.graph.quantization import dequantized, slower_int8, stated_precision


class Noise:
    """Two batches to calibrate by."""

    def __init__(self, model: bytes) -> None:
        (images,) = onnx.load_from_string(model).graph.input
        rng, shape = np.random.default_rng(0), [one.dim_value for one in images.type.tensor_type.shape.dim]
        self._batches = iter([{images.name: rng.standard_normal(shape, dtype=np.float32)} for _ in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def in_quantized_operations(model: bytes, **options: object) -> bytes:
    """QLinearConv and its like instead of pairs."""
    options = {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8, **options}
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(onnx.load_from_string(model), made, Noise(model), **options)
    return made.getvalue()


@pytest.mark.parametrize("name", ["tinynet:gates", "resnet18", "tinynet:tiny_convnext"])
@pytest.mark.parametrize(
    "lower",
    [quantized, in_quantized_operations, lambda model: lowered(model, "int8")],
    ids=["ONNX Runtime's", "ONNX Runtime's operations", "ours"],
)
def test_kernels_are_those_of_the_float_model(lower, name: str, traced) -> None:
    """ReLU among them, which ONNX Runtime's quantization takes away; what does not wait for each other may change places."""
    net = traced(name)
    model = net.onnx(net.nearest_widths(0.5))
    low = onnx.load_from_string(lower(model))
    before = low.SerializeToString()
    assert parts(low) == parts(onnx.load_from_string(model))
    assert low.SerializeToString() == before


def parts(model: onnx.ModelProto) -> Counter[tuple[str, int]]:
    """How often each operation makes so many channels."""
    kernels = [one.kernel for one in find_kernels(model)]
    return Counter((part, kernel.cout) for kernel in kernels for part in kernel.type.split("+"))


def test_operations_that_only_older_exporters_write_are_known_too() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32), "w")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, size, size]) for name, size in (("x", 8), ("y", 1))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    low = onnx.load_from_string(in_quantized_operations(model.SerializeToString()))
    made = {node.op_type for node in low.graph.node}
    assert {"QLinearConv", "QLinearLeakyRelu", "QLinearAveragePool", "QLinearGlobalAveragePool"} <= made
    assert [one.kernel for one in find_kernels(low)] == [one.kernel for one in find_kernels(model)]


def chain(zero: np.ndarray | None) -> onnx.ModelProto:
    """conv → Q → DQ → max pooling → Q → DQ, weights in int8."""
    pair = ["scale", "zero"] if zero is not None else ["scale"]
    nodes = [
        helper.make_node("DequantizeLinear", ["w0", "scale"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", *pair], ["b"]),
        helper.make_node("DequantizeLinear", ["b", *pair], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
        helper.make_node("QuantizeLinear", ["d", *pair], ["e"]),
        helper.make_node("DequantizeLinear", ["e", *pair], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.ones((4, 4, 3, 3), np.int8), "w0"), numpy_helper.from_array(np.float32(0.1), "scale")]
    tensors += [] if zero is None else [numpy_helper.from_array(zero, "zero")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, size, size]) for name, size in (("x", 8), ("y", 5))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("zero", "first"),
    [
        (None, "conv3x3s1+relu"),
        (np.uint8(0), "conv3x3s1+relu"),
        (np.uint8(7), "conv3x3s1"),
        (np.int8(0), "conv3x3s1"),
        (np.int8(-128), "conv3x3s1+relu"),
    ],
)
def test_a_range_that_begins_at_zero_stands_for_relu(zero: np.ndarray | None, first: str) -> None:
    """After a pooling it says nothing new."""
    model = chain(zero)
    onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(dequantized(model), full_check=True)
    assert [one.kernel.type for one in find_kernels(model)] == [first, "maxpool2x2s1"]
    assert {node.op_type for node in dequantized(model).graph.node} <= {"Conv", "Relu", "MaxPool", "Identity"}


@pytest.mark.parametrize("way", [QuantFormat.QOperator, QuantFormat.QDQ])
@pytest.mark.parametrize(
    ("activations", "weights", "in_operations", "in_pairs"),
    [
        (QuantType.QUInt8, QuantType.QInt8, "", ""),
        (QuantType.QInt8, QuantType.QInt8, "activations in int8", ""),
        (QuantType.QUInt8, QuantType.QUInt8, "weights in uint8", "weights in uint8"),
    ],
)
def test_a_model_says_what_makes_its_int8_another(
    way: QuantFormat, activations: QuantType, weights: QuantType, in_operations: str, in_pairs: str, traced
) -> None:
    net = traced("resnet18")
    model = net.onnx(net.nearest_widths(0.1))
    low = in_quantized_operations(model, quant_format=way, activation_type=activations, weight_type=weights)
    assert slower_int8(onnx.load_from_string(low)) == (in_operations if way == QuantFormat.QOperator else in_pairs)
    assert not slower_int8(onnx.load_from_string(model))


def test_a_model_says_in_which_precision_it_computes(traced) -> None:
    net = traced("resnet18")
    model = net.onnx(net.nearest_widths(0.1))
    precisions = {"fp32": model, "fp16": lowered(model, "fp16"), "int8": quantized(model)}
    assert {name: stated_precision(onnx.load_from_string(one)) for name, one in precisions.items()} == {
        name: name for name in precisions
    }
    assert dequantized(float_model := onnx.load_from_string(model)) is float_model
