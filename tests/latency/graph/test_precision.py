"""Models in lower precision: valid, and close to what they were made of."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import latency
from latency.devices.ort_int8 import quantized
from latency.graph.precision import lowered, require_precision
from latency.graph.shapes import PRODUCTS


@pytest.fixture(scope="module", params=["mobilenet_v2", "tinynet:tiny_convnext", "tinynet:halves"])
def model(request) -> bytes:
    net = request.getfixturevalue("traced")(request.param)
    return net.onnx(net.nearest_widths(0.5))


def scores(model: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(model)
    (image,) = session.get_inputs()
    kind = np.float16 if image.type == "tensor(float16)" else np.float32
    return session.run(None, {image.name: np.random.default_rng(0).standard_normal(image.shape).astype(kind)})[0]


@pytest.mark.parametrize(
    ("lower", "tolerance"),
    [(lambda model: lowered(model, "fp16"), 0.02), (lambda model: lowered(model, "int8"), 0.4), (quantized, 0.2)],
    ids=["fp16", "int8", "int8 of ONNX Runtime"],
)
def test_a_lowered_model_is_valid_and_close(model: bytes, lower: Callable[[bytes], bytes], tolerance: float) -> None:
    low = lower(model)
    onnx.checker.check_model(onnx.load_from_string(low), full_check=True)
    exact = scores(model)
    assert np.abs(scores(low) - exact).max() < tolerance * np.abs(exact).max()


def test_in_fp16_nothing_is_left_of_float32(model: bytes) -> None:
    graph = onnx.load_from_string(lowered(model, "fp16")).graph
    assert not [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert not [value for value in [*graph.input, *graph.output] if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]


def test_in_int8_every_product_with_weights_reads_quantized_values_and_weights(model: bytes) -> None:
    before, graph = onnx.load_from_string(model).graph, onnx.load_from_string(lowered(model, "int8")).graph
    maker = {node.output[0]: node.op_type for node in graph.node}
    weights = {tensor.name for tensor in before.initializer}
    weighted = {node.output[0] for node in before.node if node.op_type in PRODUCTS and node.input[1] in weights}
    products = [node for node in graph.node if node.output[0] in weighted]
    assert len(products) == len(weighted) > 0
    assert all(maker[name] == "DequantizeLinear" for node in products for name in node.input[:2])


def test_biases_that_layers_share_are_no_obstacle() -> None:
    """As PyTorch's older exporter shares them, through Identity; every convolution computes in whole numbers all the same."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((4, 4, 3, 3)).astype(np.float32), f"w{index}") for index in range(2)]
    bias = numpy_helper.from_array(np.zeros(4, np.float32), "bias")
    nodes = [
        helper.make_node("Identity", ["bias"], ["same"], "identity"),
        helper.make_node("Conv", ["images", "w0", "bias"], ["between"], "first"),
        helper.make_node("Conv", ["between", "w1", "same"], ["scores"], "second"),
    ]
    values = [helper.make_tensor_value_info(name, 1, [1, 4, size, size]) for name, size in (("images", 8), ("scores", 4))]
    graph = helper.make_graph(nodes, "shared", values[:1], values[1:], [*weights, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = onnx.load_from_string(quantized(model.SerializeToString())).graph.node
    maker = {node.output[0]: node.op_type for node in made}
    assert {maker[name] for node in made if node.op_type == "Conv" for name in node.input} == {"DequantizeLinear"}


def test_what_is_quantized_already_stays(model: bytes) -> None:
    once = quantized(model)
    assert once != model
    assert quantized(once) == once


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_float32_is_left_alone(model: bytes, precision: str) -> None:
    assert lowered(model, precision) == model


def test_a_precision_that_is_not_offered_is_refused() -> None:
    with pytest.raises(latency.DeviceUnavailable, match="'int3' given; device 'ort' measures fp32"):
        require_precision("int3", ("fp32",), "ort")
