"""Torch modules from ONNX models compute what ONNX Runtime computes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

import latency
from latency.devices.torch_graph import torch_module

FLOAT = onnx.TensorProto.FLOAT
NAMES = (
    "mobilenet_v2 mobilenet_v3_large efficientnet_b0 resnet18 tinynet:small_densenet googlenet regnet_y_400mf alexnet "
    "shufflenet_v2_x0_5 tinynet:tiny_convnext tinynet:halves tinynet:gates tinynet:derived tinynet:hourglass"
).split()


def agree(model: bytes, shape: tuple[int, ...]) -> dict[str, str]:
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    expected = onnxruntime.InferenceSession(model).run(None, {"images": image})[0]
    module, names = torch_module(onnx.load_from_string(model))
    with torch.no_grad():
        (computed,) = module(torch.from_numpy(image))
    np.testing.assert_allclose(computed.numpy(), expected, atol=1e-5 * float(np.abs(expected).max()))
    return names


@pytest.mark.parametrize("name", NAMES)
def test_networks_compute_the_same(name: str, traced, rng, random_widths) -> None:
    net = traced(name)
    (widths,) = random_widths(net, rng, 1)
    model = net.onnx(widths)
    names = agree(model, (1, 3, 64, 64))
    assert list(dict.fromkeys(names.values())) == [
        output for node in onnx.load_from_string(model).graph.node for output in node.output
    ]


def operation(kind: str, shape: tuple[int, ...], extra: dict[str, np.ndarray] | None = None, **attributes: object) -> bytes:
    """A model of one operation on `images` and `extra` inputs."""
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in (extra or {}).items()]
    node = helper.make_node(kind, ["images", *(extra or {})], ["scores"], **attributes)
    images, scores = (helper.make_tensor_value_info(*value) for value in (("images", FLOAT, shape), ("scores", FLOAT, None)))
    graph = helper.make_graph([node], "one", [images], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


F = np.float32
RNG = np.random.default_rng(1)


def resized(where: str, mode: str, **attributes: object) -> bytes:
    """By scales, or, where both axes shall have 7, by sizes."""
    scales, sizes = {"scales": np.array([1, 1, 2, 3], F)}, {"scales": np.zeros(0, F), "sizes": np.array([1, 2, 7, 7])}
    place = {"coordinate_transformation_mode": where, "mode": mode, **attributes}
    return operation("Resize", (1, 2, 5, 4), {"roi": np.zeros(0, F)} | (sizes if where == "align_corners" else scales), **place)


@pytest.mark.parametrize(
    "model",
    [
        operation("Conv", (1, 4, 9, 9), {"w": RNG.random((6, 2, 3, 3), F)}, group=2, pads=[0, 1, 2, 1], strides=[2, 2]),
        operation("Conv", (1, 4, 9, 9), {"w": RNG.random((6, 4, 3, 3), F)}, dilations=[2, 2]),
        operation("MaxPool", (1, 4, 9, 9), kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        operation("MaxPool", (1, 4, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        operation("AveragePool", (1, 4, 9, 9), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        operation("AveragePool", (1, 4, 9, 9), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        operation("HardSigmoid", (1, 4, 9, 9), alpha=0.2, beta=0.4),
        operation("Gemm", (3, 4), {"b": RNG.random((4, 5), F), "c": RNG.random(5, F)}, alpha=0.5),
        operation("Gather", (3, 4), {"i": np.array([2, 0, 1])}, axis=1),
        operation("ReduceMean", (2, 4, 5, 5), {"axes": np.array([2, 3])}, keepdims=0),
        operation("Reshape", (2, 4, 5, 5), {"shape": np.array([0, -1])}),
        operation("Transpose", (2, 4, 5), perm=[1, 2, 0]),
        operation(
            "Slice", (2, 6, 5), {"b": np.array([1, -3]), "e": np.array([99, -1]), "a": np.array([1, 2]), "s": np.array([2, 1])}
        ),
        operation(
            "Slice",
            (2, 6, 5),
            {"b": np.array([-1, 3]), "e": np.array([-99, 0]), "a": np.array([-1, 1]), "s": np.array([-1, -2])},
        ),
        operation("Squeeze", (2, 1, 5, 1), {"axes": np.array([1, -1])}),
        operation("Unsqueeze", (2, 5), {"axes": np.array([-1, 1])}),
        operation("Pad", (1, 2, 5, 5), {"pads": np.array([0, 0, 1, 0, 0, 0, 2, 3]), "value": np.array(0.5, F)}),
        operation("Pad", (1, 2, 5, 5), {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
        operation("Pad", (1, 2, 5, 5), {"pads": np.array([0, 0, 1, 2, 0, 0, 1, 0])}, mode="reflect"),
        operation("Pow", (2, 5), {"power": np.array(2.0, F)}),
        operation("LayerNormalization", (2, 5, 4), {"scale": RNG.random(4, F)}, epsilon=0.1),
        operation("Flatten", (2, 4, 5), axis=2),
        operation("Gelu", (2, 4)),
        operation("PRelu", (2, 4, 5, 5), {"slope": RNG.random((1, 4, 1, 1), F)}),
        operation("PRelu", (2, 4, 5, 5), {"slope": RNG.random((1, 1, 1, 1), F)}),
        operation("LeakyRelu", (2, 4), alpha=0.3),
        operation("Softmax", (2, 4), axis=0),
        operation("ConvTranspose", (1, 4, 5, 5), {"w": RNG.random((4, 3, 3, 3), F)}, strides=[2, 2], output_padding=[1, 1]),
        operation("DepthToSpace", (1, 24, 3, 4), blocksize=2, mode="CRD"),
        operation("DepthToSpace", (1, 24, 3, 4), blocksize=2),
        operation("SpaceToDepth", (1, 3, 4, 6), blocksize=2),
        resized("asymmetric", "nearest", nearest_mode="floor"),
        resized("half_pixel", "nearest", nearest_mode="round_prefer_ceil"),
        resized("half_pixel", "linear"),
        resized("pytorch_half_pixel", "cubic"),
        resized("align_corners", "linear"),
        resized("align_corners", "cubic"),
    ],
    ids=lambda model: onnx.load_from_string(model).graph.node[0].op_type,
)
def test_operations_with_their_attributes(model: bytes) -> None:
    shape = onnx.load_from_string(model).graph.input[0].type.tensor_type.shape
    agree(model, tuple(dim.dim_value for dim in shape.dim))


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(latency.MeasurementError, match=r"'Det'.*no PyTorch counterpart"):
        torch_module(onnx.load_from_string(operation("Det", (3, 3))))
    with pytest.raises(latency.MeasurementError, match=r"'Resize' \(nearest, align_corners\) has no PyTorch counterpart"):
        agree(resized("align_corners", "nearest"), (1, 2, 5, 4))
    with pytest.raises(latency.MeasurementError, match=r"'Resize' \(linear, asymmetric\)"):
        agree(resized("asymmetric", "linear", nearest_mode="floor"), (1, 2, 5, 4))
