"""One ONNX export per network, then any widths by slicing its initializers."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping, Set
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from latency.errors import TraceError
from latency.graph.axis import AnyAxis, Axis, concatenated, equal_part, kept, mesh
from latency.graph.kernels import PlacedKernel, find_kernels, operation_of
from latency.graph.shapes import (
    PRODUCTS,
    Reshaped,
    attributes_of,
    channel_axes,
    group_norms,
    mixes_channels,
    product_source,
    reshaped,
    static_shapes,
    whole_numbers,
)

if TYPE_CHECKING:
    from torch import nn

Tensors = Mapping[str, tuple[AnyAxis, ...]]

OPSET = 20
BIASED = PRODUCTS - {"MatMul"}
NORMS = frozenset({"BatchNormalization", "LayerNormalization", "InstanceNormalization"})
ELEMENTWISE = frozenset("Add Sub Mul Div Pow Max Min Where PRelu Equal Greater GreaterOrEqual Less LessOrEqual".split())
COUNTING = frozenset({"Resize", "Reshape"})
SHARING = PRODUCTS | NORMS | ELEMENTWISE | COUNTING | {"Concat"}
"""Operations that may read the same constants as others, which then are not the same when pruned."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata entry in which torch's export says from which module, and from which inside it, a node comes."""

SIGNATURE_KEY = "milliprune_signature"
"""Metadata entry of our ONNX models that says which network they are a structure of."""


def export_onnx(module: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """Export `module` in eval mode, BN folded, parameters keeping their names.

    BN is folded before, which saves the export a third to a half of its time, and by it where it still finds some. It is
    exported from contiguous memory: weights that lie channels last leave layout operations in the graph.

    Raises:
        TraceError: PyTorch cannot export it.
    """
    import torch

    from latency.graph.fold import fold_batch_norms

    module = fold_batch_norms(module) if isinstance(module, torch.fx.GraphModule) else copy.deepcopy(module).eval()
    module = module.to(memory_format=torch.contiguous_format)
    parameter = next(module.parameters(), torch.empty(0))
    image = torch.zeros(input_shape, dtype=parameter.dtype, device=parameter.device)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module, (image,), dynamo=True, verbose=False, opset_version=OPSET, input_names=["images"],
                output_names=["scores"],
            )  # fmt: skip
        except Exception as error:  # the exporter's, for whatever it meets
            raise TraceError(
                f"PyTorch cannot export the network to ONNX: {_root_cause(error)} Write that part of forward() "
                "with other operations."
            ) from error
        finally:
            logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    _drop_restriding(model)
    return model


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]


def _drop_restriding(model: onnx.ModelProto) -> None:
    """Where memory lies channels last, the export flattens what a global pooling gives and gathers it again as it was."""
    graph, numbers, shapes = model.graph, whole_numbers(model.graph), static_shapes(model)
    maker = {name: node for node in graph.node for name in node.output}
    for gather in [node for node in graph.node if node.op_type == "Gather"]:
        flat, order = maker.get(gather.input[0]), numbers.get(gather.input[1])
        if flat is None or flat.op_type != "Reshape" or order is None or shapes.get(flat.input[0]) != order.shape:
            continue
        if np.array_equal(order.ravel(), np.arange(order.size)) and shapes[flat.output[0]] == (order.size,):
            gather.CopyFrom(onnx.helper.make_node("Identity", flat.input[:1], gather.output, gather.name))
            graph.node.remove(flat)
    _drop_unread(graph)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


class Template:
    """The exported graph without weights, the full weights beside it, and the axes of both.

    Attributes:
        channels: the channel axis of every value in the graph.
        kernels: of the unpruned network, in execution order.
    """

    def __init__(self, name: str, signature: str, module: nn.Module, input_shape: tuple[int, ...], tensors: Tensors) -> None:
        model = export_onnx(module, input_shape)
        _compute_weights(model)
        _add_missing_biases(model.graph)
        _shrink_constants(model, module.state_dict().keys())
        _unshare_weights(model.graph, tensors)
        shapes = static_shapes(model)
        places = channel_axes(model.graph, shapes)
        self.channels, self._sliced = _annotate(model.graph, name, input_shape[1], tensors, shapes, places)
        self._weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.kernels: list[PlacedKernel] = find_kernels(model)
        self._counting = {name: one for name, one in _counting(model.graph, self.channels).items() if one[0].genes}
        self._skeleton = _skeleton(model, self._weights, {*self._sliced, *self._counting}, self.channels, shapes, places)
        self._skeleton.metadata_props.add(key=SIGNATURE_KEY, value=signature)

    def build(self, widths: np.ndarray) -> bytes:
        """The model of the structure `widths` (int64[L])."""
        model = onnx.ModelProto()
        model.CopyFrom(self._skeleton)
        for node in model.graph.node:
            if node.op_type == "Conv" and node.input[1] in self._sliced:
                _set_groups(node, self._sliced[node.input[1]], widths)
        for name, axes in self._sliced.items():
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(self._weights[name][mesh(kept(axes, widths))]), name)
            )
        for name, (axis, group) in self._counting.items():
            known, count = self._weights[name], max(1, int(axis.length(widths)) // group)
            sizes = known.dtype == np.int64
            rest = [-1] if len(known) == 3 else known[2:]  # of a group norm, or of a shape with positions
            array = np.array([known[0], count, *rest]) if sizes else known[:count]
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        return model.SerializeToString()

    @cached_property
    def kernel_axes(self) -> list[tuple[AnyAxis, AnyAxis]]:
        """Input and output channel axis of every kernel, in the order of `kernels`."""
        return [self._ends(one) for one in self.kernels]

    def _ends(self, one: PlacedKernel) -> tuple[AnyAxis, AnyAxis]:
        made = self._axis(one.output, one.kernel.cout)
        if operation_of(one.kernel.type) == "concat":
            return made, made
        read = self._axis(one.input, one.kernel.cin)
        return read, made if made.size == one.kernel.cout else read  # what mixes images with channels is said to make as many

    def _axis(self, value: str, size: int) -> AnyAxis:
        """The channel axis of a value, which has `size` entries: axis 1, unless an operation that is not followed moved it."""
        axis = self.channels.get(value)
        return axis if axis is not None and axis.genes else Axis(size)


def _compute_weights(model: onnx.ModelProto) -> None:
    """Weights that the graph computes from others, standardised ones, say, become initializers, as runtimes make of them."""
    graph, known, constant = model.graph, {tensor.name for tensor in model.graph.initializer}, []
    for node in graph.node:
        if known.issuperset(name for name in node.input if name):
            constant.append(node)
            known.update(node.output)
    made = {name for node in constant for name in node.output}
    wanted = sorted({name for node in graph.node if node.op_type in PRODUCTS for name in node.input[1:] if name in made})
    if not wanted:
        return
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted]
    alone = onnx.helper.make_graph(constant, graph.name, [], outputs, graph.initializer)
    evaluator = ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version))
    for name, array in zip(wanted, evaluator.run(None, {}), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in reversed(constant):
        read = {name for other in graph.node for name in other.input}
        if set(wanted).issuperset(node.output) or not read.intersection(node.output):
            graph.node.remove(node)


def _add_missing_biases(graph: onnx.GraphProto) -> None:
    """Zero biases where the export left them out: an untrained network has none, a trained one runs with them."""
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in BIASED and len(node.input) == 2 and node.input[1] in dims:
            weight = node.input[1]
            transposed = node.op_type == "ConvTranspose"
            outputs = dims[weight][1] * attributes_of(node)["group"] if transposed else dims[weight][0]
            node.input.append(f"{weight}_bias")
            graph.initializer.append(numpy_helper.from_array(np.zeros(outputs, dtype=np.float32), f"{weight}_bias"))


def _unshare_weights(graph: onnx.GraphProto, trained: Tensors) -> None:
    """A copy for every node that reads an initializer: the export shares equal ones, which are pruned differently."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    reader: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        if node.op_type not in SHARING:
            continue
        named = node.op_type in BIASED and node.input[1] in trained
        first = 2 if named else 0  # these weights keep their parameters' names
        for position, name in list(enumerate(node.input))[first:]:
            if name in tensors and reader.setdefault(name, number) != number:
                copied = graph.initializer.add()
                copied.CopyFrom(tensors[name])
                copied.name = node.input[position] = f"{name}_{number}_{position}"


def _shrink_constants(model: onnx.ModelProto, known: Set[str]) -> None:
    """What forward() makes, is one number everywhere, and meets something of the whole shape, is written as that number.

    Args:
        known: names of the module's own tensors, which stay as they are.
    """
    graph, shapes = model.graph, static_shapes(model)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in known}
    for node in graph.node:
        whole = [name for name in node.input if name not in constants and shapes.get(name) == shapes[node.output[0]]]
        for place, name in enumerate(node.input) if node.op_type in ELEMENTWISE and whole else ():
            array = numpy_helper.to_array(constants[name]) if name in constants else np.zeros(0)
            if array.size > 1 and (array == array.flat[0]).all():
                node.input[place] = f"{name}_number_{node.name}"
                number = array.flat[:1].reshape((1,) * array.ndim)
                graph.initializer.append(numpy_helper.from_array(number, node.input[place]))
    _drop_unread(graph)


def _annotate(
    graph: onnx.GraphProto,
    name: str,
    image_channels: int,
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    places: Mapping[str, int],
) -> tuple[dict[str, AnyAxis], dict[str, tuple[AnyAxis, ...]]]:
    """Channel axes of all values, axes of all initializers that widths change; follows the graph in order.

    Args:
        shapes, places: of each value, and which of its axes these are.
    """
    numbers, of_groups = whole_numbers(graph), {one.norm.output[0] for one in group_norms(graph)}
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    channels: dict[str, AnyAxis] = {graph.input[0].name: Axis(image_channels)}
    sliced: dict[str, tuple[AnyAxis, ...]] = {}
    for node in graph.node:
        known = [channels[name] for name in node.input if name in channels]
        if not known:
            continue  # constants computed in the graph
        axis = next((axis for axis in known if axis.genes), known[0])
        if node.op_type == "MatMul" and node.input[1] not in dims:
            source = product_source(node, places, shapes)
            axis = Axis(1) if source is None else channels[node.input[source[0]]]
        mixing = mixes_channels(node, places[node.output[0]], shapes)
        weighted = node.op_type in PRODUCTS and node.input[1] in dims and not mixing
        axes = _weight_axes(node, tensors) if weighted else None
        if weighted and axes is None and dims[node.input[1]][:2] == (attributes_of(node).get("group"), 1):
            axes = (axis, *map(Axis, dims[node.input[1]][1:]))  # a fixed filter for each channel
        if axes is None and not axis.genes:  # nothing that widths change: whatever it does, it stays as it is
            channels.update({name: Axis(shapes[name][1] if len(shapes[name]) > 1 else 1) for name in node.output if name})
            continue
        if weighted:
            if axes is None or tuple(a.size for a in axes) != dims[node.input[1]]:
                raise TraceError(
                    f"{name}: the ONNX export changed the weights of '{node.name}' ({node.input[1]}), so they "
                    "cannot be sliced. Please report the module; fusing by hand before tracing may help."
                )
            sliced[node.input[1]] = axes
            axis = axes[0] if node.op_type in ("Conv", "Gemm") else axes[1].repeated(attributes_of(node).get("group", 1))
            sliced.update({name: (axis,) for name in node.input[2:] if name})
        elif node.op_type in ELEMENTWISE or (node.op_type == "Concat" and not _along_channels(node, shapes, places)):
            place = places[node.output[0]] - len(shapes[node.output[0]])  # counted from the last axis on: these broadcast
            wide = [name for name in node.input if -place <= len(dims.get(name, ())) and dims[name][place] == axis.size]
            sliced.update({name: _at(place, axis, dims[name]) for name in wide})
        elif node.op_type in NORMS and node.output[0] not in of_groups:
            sliced.update(dict.fromkeys(node.input[1:], (axis,)))
        elif node.op_type == "DepthToSpace":
            axis = axis.merged(attributes_of(node)["blocksize"] ** 2)
        elif node.op_type == "SpaceToDepth":
            axis = axis.repeated(attributes_of(node)["blocksize"] ** 2)
        elif node.op_type in ("Reshape", "Flatten"):
            view = reshaped(shapes[node.input[0]], shapes[node.output[0]], places.get(node.input[0], 1))
            axis = _reshaped(axis, view, shapes[node.output[0]][places[node.output[0]]])
        elif node.op_type.startswith("Reduce") and places[node.input[0]] in numbers[node.input[1]] % len(shapes[node.input[0]]):
            axis = Axis(shapes[node.output[0]][1])
        elif node.op_type == "Concat":
            place = places[node.output[0]]
            axis = concatenated([channels.get(name) or Axis(shapes[name][place]) for name in node.input])
        elif node.op_type == "Pad" and node.input[1] in numbers:
            before, behind = numbers[node.input[1]].reshape(2, -1)[:, places[node.output[0]]]
            ends = [[Axis(int(size))] if size else [] for size in (before, behind)]
            axis = concatenated([*ends[0], axis, *ends[1]])
        elif node.op_type == "Split" and shapes[node.output[0]] != shapes[node.input[0]]:
            axis = equal_part(axis, axis.size // shapes[node.output[0]][places[node.output[0]]])
        channels.update(dict.fromkeys(node.output, axis))
    return channels, sliced


def _along_channels(concat: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, int]) -> bool:
    made = concat.output[0]
    return bool(attributes_of(concat)["axis"] % len(shapes[made]) == places[made])


def _reshaped(axis: AnyAxis, view: Reshaped | None, size: int) -> AnyAxis:
    """The axis after a reshape; where its entries are mixed with others', nothing of it may be pruned."""
    if view is None:
        return Axis(size)
    return concatenated([equal_part(axis, view.parts).repeated(view.each)] * view.times)


def _weight_axes(product: onnx.NodeProto, tensors: Tensors) -> tuple[AnyAxis, ...] | None:
    """Of a product's weight. A Linear at more than one position becomes a MatMul with its weight transposed and renamed; what
    module it comes from is noted beside it."""
    if product.op_type != "MatMul":
        return tensors.get(product.input[1])
    notes = {entry.key: entry.value for entry in product.metadata_props}
    scopes: list[str] = ast.literal_eval(notes.get(SCOPES, "['', '']"))
    axes = tensors.get(f"{scopes[-2]}.weight")
    return axes and axes[::-1]


def _counting(graph: onnx.GraphProto, channels: Mapping[str, AnyAxis]) -> dict[str, tuple[AnyAxis, int]]:
    """Initializers that have, or are sizes of which the second is, so many entries as an axis has groups of so many."""
    resizes = [node for node in graph.node if node.op_type == "Resize" and node.input[3:]]
    counting = {node.input[3]: (channels[node.output[0]], 1) for node in resizes}
    numbers = whole_numbers(graph)
    for one in group_norms(graph):
        axis = channels[one.restore.output[0]]
        group = axis.size // int(numbers[one.reshape.input[1]][1])
        counting |= dict.fromkeys((one.reshape.input[1], *one.norm.input[1:]), (axis, group))
        counting[one.restore.input[1]] = (axis, 1)
    return counting


def _at(place: int, axis: AnyAxis, sizes: tuple[int, ...]) -> tuple[AnyAxis, ...]:
    """Axes of a tensor of these sizes, one of them `axis`."""
    axes: list[AnyAxis] = [Axis(size) for size in sizes]
    axes[place] = axis
    return tuple(axes)


def _skeleton(
    model: onnx.ModelProto,
    weights: dict[str, np.ndarray],
    changing: set[str],
    channels: Mapping[str, AnyAxis],
    shapes: Mapping[str, tuple[int, ...]],
    places: Mapping[str, int],
) -> onnx.ModelProto:
    """The graph without anything that depends on the widths; `changing` are the initializers that do."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    graph = skeleton.graph
    del graph.value_info[:], graph.initializer[:], graph.metadata_props[:]
    reshapes = {node.input[1]: node.output[0] for node in graph.node if node.op_type == "Reshape"}
    for name, array in weights.items():
        made = reshapes.get(name, "")
        if name in changing:
            continue
        if made in channels and channels[made].genes:
            array = np.where(np.arange(len(array)) == places[made], -1, shapes[made])
        graph.initializer.append(numpy_helper.from_array(array, name))
    for node in graph.node:
        del node.metadata_props[:]
    return skeleton


def _set_groups(node: onnx.NodeProto, weight: tuple[AnyAxis, ...], widths: np.ndarray) -> None:
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = max(1, attribute.i * int(weight[0].length(widths)) // weight[0].size)
