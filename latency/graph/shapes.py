"""What ONNX graphs say of the tensors in them: shapes, and on which axis channels lie."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latency.errors import MeasurementError

OF_IMAGES = frozenset("Conv ConvTranspose BatchNormalization MaxPool AveragePool GlobalMaxPool GlobalAveragePool".split())
"""Operations whose channels lie on axis 1."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operations that multiply by weights and add up."""

MOST_SHAPE_VALUES = 64
"""Initializers of up to so many values may say of what shape something is (the sizes of a Reshape, the scales of a Resize)."""


def static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all values and initializers, inferred where the model does not state them; 0 where a size is open. What lies
    inside a group norm is of the shape that it is given."""
    graph, stated = model.graph, stated_values(model)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known = [value for value in stated if value.type.tensor_type.HasField("shape")]
    shapes |= {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in known}
    for one in group_norms(graph):
        inside = (one.reshape.output[0], one.norm.output[0])
        shapes |= dict.fromkeys(inside, shapes.get(one.reshape.input[0], ()))
    return shapes


def stated_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """All values with their types and shapes, inferred where the model does not state them."""
    graph = model.graph
    stated = [*graph.input, *graph.value_info, *graph.output]
    produced = {name for node in graph.node for name in node.output if name}
    if produced <= {value.name for value in stated}:
        return stated
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
    return [*inferred.input, *inferred.value_info, *inferred.output]


class GroupNorm(NamedTuple):
    """How one is exported: `reshape` to (N, groups, the rest), an instance norm, and the shape of before by `restore`."""

    reshape: onnx.NodeProto
    norm: onnx.NodeProto
    restore: onnx.NodeProto


def group_norms(graph: onnx.GraphProto) -> list[GroupNorm]:
    """All of a graph's."""
    maker = {name: node for node in graph.node for name in node.output}
    reader = {name: node for node in graph.node for name in node.input}
    norms = [node for node in graph.node if node.op_type == "InstanceNormalization"]
    chains = [(maker.get(norm.input[0]), norm, reader.get(norm.output[0])) for norm in norms]
    return [
        GroupNorm(before, norm, after)
        for before, norm, after in chains
        if before is not None and after is not None and before.op_type == after.op_type == "Reshape"
    ]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights by their shape only: no shape depends on their values, and inference copies them back and forth,
    most of the time that a prediction took."""
    graph = model.graph
    kept = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= MOST_SHAPE_VALUES]
    stated = {value.name for value in graph.input} | {tensor.name for tensor in kept}
    weights = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in stated
    ]
    light = helper.make_graph(
        graph.node,
        graph.name,
        [*graph.input, *weights],
        graph.output,
        kept,
        value_info=graph.value_info,
        sparse_initializer=graph.sparse_initializer,
    )
    return helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions)


class Shapes:
    """Shapes of all values and which of their axes is the channels."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.initializers = {tensor.name for tensor in model.graph.initializer}
        self.shapes = static_shapes(model)
        self.channel_axis = channel_axes(model.graph, self.shapes)

    def sizes(self, name: str, axis: int | None = None) -> tuple[int, int, int, int]:
        """(batch, channels, height, width) of a value; trailing axes beyond these are counted into the height.

        Args:
            axis: to be taken for the channels'; by default the one that is, or the last where none is.
        """
        shape = self.shapes.get(name)
        if shape is None or any(size < 1 for size in shape):
            raise MeasurementError(f"the model's value '{name}' has no static shape; export it with fixed input sizes.")
        shape = shape or (1,)  # a scalar
        axis = self.channel_axis.get(name, 1) if axis is None else axis
        axis = min(axis, len(shape) - 1) if axis >= 0 else len(shape) - 1
        channels = shape[axis] if len(shape) > 1 else 1
        if len(shape) == 4 and axis == 1:
            return shape[0], channels, shape[2], shape[3]
        batch = 1 if axis == 0 and len(shape) > 1 else shape[0]
        return batch, channels, math.prod(shape) // (batch * channels), 1


def channel_axes(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Which axis of each value holds the channels: 1 after what works on images, the last before and after a MatMul with
    weights; what moves axes, adds some or takes some away moves it. -1 where there are none, as in attention's scores."""
    axes: dict[str, int] = {}
    numbers, weights = whole_numbers(graph), {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        known = [axes[name] for name in node.input if name in axes]
        axis = next((one for one in known if one >= 0), -1 if known else 1)
        attributes = attributes_of(node)
        if node.op_type in OF_IMAGES and not mixes_channels(node, axis, shapes):
            axis = axes[node.input[0]] = 1
        elif node.op_type == "MatMul" and node.input[1] in weights:
            axis = axes[node.input[0]] = len(shapes.get(node.output[0], (0, 0))) - 1
        elif node.op_type == "MatMul":
            source = product_source(node, axes, shapes)
            axis = source[1] if source else -1
        elif axis < 0:
            pass
        elif node.op_type == "Transpose":
            axis = list(attributes["perm"]).index(axis)
        elif node.op_type == "GatherND":
            axis += len(shapes.get(node.output[0], ())) - len(shapes.get(node.input[0], ()))
        elif node.op_type == "Gather":
            rank = len(shapes.get(node.input[0], ()))
            axis += (attributes.get("axis", 0) % max(1, rank) < axis) * (len(shapes.get(node.output[0], ())) - rank)
        elif node.op_type in ("Squeeze", "Unsqueeze") and len(node.input) > 1 and node.input[1] in numbers:
            longer = node.input[0] if node.op_type == "Squeeze" else node.output[0]
            axis = _moved(node.op_type, axis, numbers[node.input[1]], len(shapes.get(longer, ())))
        elif node.op_type in ("Reshape", "Flatten"):
            view = reshaped(shapes.get(node.input[0], ()), shapes.get(node.output[0], ()), axis)
            axis = 1 if view is None else view.place
        elif not attributes.get("keepdims", 1):
            given = numbers.get(node.input[1], np.array(())) if node.input[1:] else attributes.get("axes", ())
            gone = {int(dim) % len(shapes.get(node.input[0], (0,))) for dim in given}
            axis = 1 if axis in gone or not gone else axis - sum(dim < axis for dim in gone)
        for output in node.output:
            axes[output] = axis
    return axes


def product_source(
    node: onnx.NodeProto, axes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int] | None:
    """From which input a MatMul of two computed tensors has its channels, and on which axis (see `product_axis`)."""
    rank = len(shapes.get(node.output[0], ()))
    return product_axis([axes.get(name, -1) - len(shapes.get(name, ())) for name in node.input], rank)


def product_axis(axes: Sequence[int], rank: int) -> tuple[int, int] | None:
    """From which of two factors a matrix product of that rank has its channels, and on which axis: the second's columns, else
    the first's rows. None where it sums over them.

    Args:
        axes: of the factors' channels, counted from the last on.
    """
    first, second = axes
    if second == -1:
        return 1, rank - 1
    return (0, rank - 2) if first == -2 else None


def mixes_channels(node: onnx.NodeProto, axis: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether it is a convolution along the channels, which lie on the last `axis` of (N, 1, C), as in ECA's gate."""
    single = node.op_type == "Conv" and shapes.get(node.input[1], ())[:2] == (1, 1)
    return single and axis == 2 and len(shapes.get(node.output[0], ())) == 3


class Reshaped(NamedTuple):
    """Where an axis lies after a reshape, and what it is there: the first of so many equal `parts` of it; or `times` the same,
    one after another, with `each` entries where one was."""

    place: int
    parts: int = 1
    times: int = 1
    each: int = 1


def reshaped(before: Sequence[int], after: Sequence[int], axis: int) -> Reshaped | None:
    """What a reshape makes of an axis that is not the first; None where its entries are mixed with others'. Of several axes
    that it is taken apart to, it is the last: (N, C, H, W) → (N, groups, C / groups, H, W), as shuffles begin, a ViT's
    (N, L, 3·h·d) → (N, L, 3, h, d), or (N, C, H, W) → (N·h, d, H, W)."""
    if axis >= len(before) or not all((*before, *after)):
        return None
    first, size = math.prod(before[:axis]), before[axis]
    starts = [math.prod(after[:place]) for place in range(len(after) + 1)]
    places = range(1, len(after))
    for place in places:
        if starts[place] == first and after[place] == size:
            return Reshaped(place)
    for place in places:
        if first % starts[place] == 0 and starts[place + 1] % (first * size) == 0:
            return Reshaped(place, times=first // starts[place], each=starts[place + 1] // (first * size))
    place = next((place for place in places if starts[place + 1] == first * size), 0)
    return Reshaped(place, parts=starts[place] // first) if place and starts[place] % first == 0 else None


def whole_numbers(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Axes, sizes and indices by name, be they initializers or constants among the nodes."""
    constants = {node.output[0]: attributes_of(node).get("value") for node in graph.node if node.op_type == "Constant"}
    tensors = {tensor.name: tensor for tensor in graph.initializer} | {name: one for name, one in constants.items() if one}
    return {name: numpy_helper.to_array(one) for name, one in tensors.items() if one.data_type == onnx.TensorProto.INT64}


def _moved(how: str, axis: int, places: np.ndarray, rank: int) -> int:
    """Where `axis` lies after Squeeze or Unsqueeze at `places` of the longer shape, of `rank` axes (0: unknown)."""
    if not rank:
        return axis
    sorted_places = sorted(int(place) % rank for place in places.ravel())
    if how == "Squeeze":
        return axis - sum(place < axis for place in sorted_places)
    axis = min(axis, max(0, rank - len(sorted_places) - 1))
    for place in sorted_places:
        axis += place <= axis
    return axis


def folded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The same without the shapes that its graph computes from constants, as ONNX Runtime folds them; None where it cannot."""
    try:
        import onnxruntime
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = os.path.join(folder, "folded.onnx")
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # of many classes, for whatever is wrong with a model from elsewhere
            return None
        return onnx.load(options.optimized_model_filepath)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
