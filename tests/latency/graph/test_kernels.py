"""Kernels of graphs: fusion against lists written by hand, sizes against the resized template."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency.errors import MeasurementError
from latency.graph.kernels import find_kernels
from latency.graph.shapes import static_shapes


def test_kernels_of_the_tiny_network(tiny_network) -> None:
    kernels = [one.kernel.label for one in tiny_network.template.kernels]
    assert kernels == [
        "conv3x3s2+relu 3→16 @16×16",
        "conv1x1s1+relu 16→32 @8×8",
        "depthwise3x3s1+relu 32→32 @8×8",
        "reducemean 32→32 @8×8",
        "conv1x1s1+relu 32→8 @1×1",
        "conv1x1s1+sigmoid 8→32 @1×1",
        "mul 32→32 @8×8",
        "conv1x1s1+add 32→16 @8×8",
        "conv3x3s2+relu 16→48 @8×8",
        "averagepool2x2s2 48→48 @4×4",
        "reshape 48→192 @2×2",
        "gemm+relu 192→24 @1×1",
        "gemm 24→10 @1×1",
    ]


@pytest.mark.parametrize(
    "name",
    "mobilenet_v2 resnet18 efficientnet_b0 tinynet:small_densenet resnext50_32x4d tinynet:tiny_convnext shufflenet_v2_x0_5 "
    "tinynet:gates tinynet:widening tinynet:hourglass tinynet:classed".split(),
)
def test_resized_kernels_are_those_of_the_resized_model(name: str, traced, rng, random_widths) -> None:
    """The symbolic view (template kernels with axes) and the concrete one (the structure's own graph) agree."""
    net = traced(name)
    (widths,) = random_widths(net, rng, 1)
    axes = zip(net.template.kernels, net.template.kernel_axes, strict=True)
    symbolic = [replace(one.kernel, cin=cin.length(widths), cout=cout.length(widths)) for one, (cin, cout) in axes]
    assert [one.kernel for one in find_kernels(onnx.load_from_string(net.onnx(widths)))] == symbolic


def graph(nodes: list[onnx.NodeProto], channels: int = 4, size: int | str = 8) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [helper.make_tensor(f"w{i}", TensorProto.FLOAT, [4, 4, 1, 1], [0.0] * 16) for i in range(3)]
    return helper.make_model(
        helper.make_graph(nodes, "g", [image], [output], weights), opset_imports=[helper.make_opsetid("", 17)]
    )


def types(model: onnx.ModelProto) -> list[str]:
    return [one.kernel.type for one in find_kernels(model)]


def test_a_value_with_two_consumers_ends_its_kernel() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    assert types(graph(nodes)) == ["conv1x1s1+relu", "conv1x1s1+add+relu"]


def test_a_shortcut_is_added_by_the_later_of_two_convolutions() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node("Conv", ["x", "w1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    assert types(graph(nodes)) == ["conv1x1s1", "conv1x1s1+add"]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("axes", "cin"), [([-1], 4), ([1], 4), ([0, 1], 4), ([2], 4)])
def test_channels_are_found_after_unsqueeze_and_squeeze(constant: bool, axes: list[int], cin: int) -> None:
    """Their axes may be an initializer or, as older exports have it, a constant among the nodes."""
    tensor = helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes)
    rank = 4 + len(axes)
    where = 1 + sum(place <= 1 + earlier for earlier, place in enumerate(sorted(axis % rank for axis in axes)))
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[where, *(axis for axis in range(rank) if axis != where)]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[*range(1, where + 1), 0, *range(where + 1, rank)]),
        helper.make_node("Squeeze", ["c", "axes"], ["d"]),
        helper.make_node("Conv", ["d", "w0"], ["y"]),
    ]
    model = graph([helper.make_node("Constant", [], ["axes"], value=tensor)] * constant + nodes, size=6)
    model.graph.initializer.extend([] if constant else [tensor])
    assert [one.kernel.cin for one in find_kernels(model)] == [cin] * 5


def test_unknown_axes_leave_channels_where_they_were() -> None:
    assert types(graph([helper.make_node("Squeeze", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])])) == ["reshape+relu"]


def test_silu_is_recognised_as_a_pair() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    assert types(graph(nodes)) == ["conv1x1s1", "silu"]


def test_a_dynamic_size_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no static shape"):
        find_kernels(graph([helper.make_node("Conv", ["x", "w0"], ["y"])], size="height"))


def test_shapes_are_inferred_without_looking_at_weights(tiny_network) -> None:
    """As ONNX infers them from the whole model; the sizes of a Reshape and the scales of a Resize are no weights."""
    model = onnx.load_from_string(tiny_network.onnx(tiny_network.max_widths))
    x = model.graph.node[0].output[0]
    model.graph.node.extend(
        [
            helper.make_node("Resize", [x, "", "scales"], ["larger"]),
            helper.make_node("Reshape", ["larger", "sizes"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["last"]),
        ]
    )
    channels, *sides = static_shapes(model)[x][1:]
    pixels = 4 * int(np.prod(sides))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(values), name)
        for name, values in [
            ("scales", np.array([1, 1, 2, 2], np.float32)),
            ("sizes", [1, channels, pixels]),
            ("weight", np.ones((pixels, 3), np.float32)),
        ]
    )
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    whole = {one.name: tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim) for one in inferred.value_info}
    found = static_shapes(model)
    assert found["last"] == (1, channels, 3)
    assert {name: found[name] for name in whole} == whole
    assert len(model.graph.initializer) == len({one.name for one in model.graph.initializer} & found.keys())


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (1, 0, 2, 3), (1, 2, 3, 0), (3, 2, 1, 0)])
def test_wherever_channels_are_moved_all_entries_are_counted(order: tuple[int, ...]) -> None:
    shape = (2, 6, 4, 5)
    moved = [shape[axis] for axis in order]
    nodes = [
        helper.make_node("Transpose", ["images"], ["moved"], perm=order),
        helper.make_node("Softmax", ["moved"], ["scores"]),
    ]
    given, made = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)
        for name, sizes in (("images", shape), ("scores", moved))
    )
    model = helper.make_model(helper.make_graph(nodes, "g", [given], [made]), opset_imports=[helper.make_opsetid("", 17)])
    for kernel in (placed.kernel for placed in find_kernels(model)):
        assert kernel.batch * kernel.cin * kernel.height * kernel.width == 240
        assert kernel.batch * kernel.cout * kernel.out_height * kernel.out_width == 240


def test_what_takes_the_batch_for_something_else_moves_as_many_entries() -> None:
    """Windows of attention: 64 rows of 12 channels become one image."""
    node = helper.make_node("Reshape", ["images", "sizes"], ["scores"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [64, 12])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 8, 8, 12])],
        [numpy_helper.from_array(np.array([1, 8, 8, 12]), "sizes")],
    )
    (placed,) = find_kernels(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    kernel = placed.kernel
    assert kernel.batch * kernel.cin * kernel.height * kernel.width == 64 * 12
    assert kernel.batch * kernel.cout * kernel.out_height * kernel.out_width == 64 * 12
