"""An ONNX model as a torch module: the same operations in the same order, one graph node for each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

from latency.errors import MeasurementError

Ints = Sequence[int]


def torch_module(model: onnx.ModelProto) -> tuple[fx.GraphModule, dict[str, str]]:
    """`model` as a module in eval mode, and the name of each of its graph's nodes → the ONNX value that it computes.

    Raises:
        MeasurementError: an operation that has no counterpart here.
    """
    root, graph, names = nn.Module(), fx.Graph(), dict[str, str]()
    known: dict[str, Any] = {}
    scales = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for number, tensor in enumerate(model.graph.initializer):
        known[tensor.name] = _initializer(root, graph, f"weight_{number}", tensor, setting=tensor.name in scales)
    for number, value in enumerate(model.graph.input):
        known[value.name] = graph.placeholder(f"input_{number}")
    for node in model.graph.node:
        inputs = tuple(known[name] if name else None for name in node.input)
        computed = graph.call_function(_operation(node), inputs, _attributes(node))
        outputs = _outputs(graph, node, computed)
        known |= outputs
        names |= {computed.name: node.output[0]} | {one.name: output for output, one in outputs.items()}
    graph.output(tuple(known[value.name] for value in model.graph.output))
    return fx.GraphModule(root, graph).eval(), names


def _initializer(root: nn.Module, graph: fx.Graph, name: str, tensor: onnx.TensorProto, setting: bool) -> Any:
    """A buffer; settings of operations (shapes, axes, bounds), as whole numbers and scalars are, stand in the graph."""
    array = numpy_helper.to_array(tensor)
    if setting or (array.dtype.kind in "iu" and array.ndim <= 1):
        return array.tolist()
    if array.ndim == 0:
        return array.item()
    root.register_buffer(name, torch.from_numpy(array.copy()))
    return graph.get_attr(name)


def _outputs(graph: fx.Graph, node: onnx.NodeProto, computed: fx.Node) -> dict[str, fx.Node]:
    """Graph nodes of a node's outputs, by name: `computed` itself, or what it holds where there are several."""
    if len(node.output) == 1:
        return {node.output[0]: computed}
    return {name: graph.call_function(operator.getitem, (computed, place)) for place, name in enumerate(node.output)}


def _operation(node: onnx.NodeProto) -> Callable[..., Any]:
    if node.op_type not in OPERATIONS:
        raise MeasurementError(f"operation '{node.op_type}' (node '{node.name}') has no PyTorch counterpart in device 'torch'.")
    return OPERATIONS[node.op_type]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    values = {name: numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for name, v in values.items()}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


PADDING = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""Modes of ONNX's Pad, as torch calls them."""

NEAREST = {"asymmetric floor": "nearest", "half_pixel round_prefer_ceil": "nearest-exact"}
"""How ONNX's Resize takes the nearest, as torch calls it."""

SMOOTH = {"linear": ("linear", "bilinear", "trilinear"), "cubic": (None, "bicubic", None)}
"""Its other modes, as torch calls them for one, two and three axes."""

PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners")
"""Where these take the old positions to be, all of which torch knows."""

# One function for each operation: its inputs in ONNX's order, its attributes under ONNX's names. Attributes that only
# repeat what shapes say, or that the traced networks never set, are taken by `_`.


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Ints | None = None, pads: Ints | None = None,
    dilations: Ints | None = None, group: int = 1, **_: Any,
) -> Tensor:  # fmt: skip
    rank = weight.dim() - 2
    x, padding = _padded(x, pads, rank)
    convolution: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return convolution(x, weight, bias, strides or [1] * rank, padding, dilations or [1] * rank, group)


def _convtranspose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Ints | None = None, pads: Ints | None = None,
    output_padding: Ints | None = None, dilations: Ints | None = None, group: int = 1, **_: Any,
) -> Tensor:  # fmt: skip
    rank = weight.dim() - 2
    ones, none = [1] * rank, [0] * rank
    convolution: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    padding, more = list((pads or none)[:rank]), output_padding or none
    return convolution(x, weight, bias, strides or ones, padding, more, group, dilations or ones)


def _padded(x: Tensor, pads: Ints | None, rank: int, value: float = 0.0) -> tuple[Tensor, Ints]:
    """The padding that torch's operation applies itself, after what is not symmetric has been added here."""
    pads = pads or [0] * (2 * rank)
    before, after = list(pads[:rank]), list(pads[rank:])
    if before == after:
        return x, before
    return _pad(x, [*before, *after], value), [0] * rank


def _maxpool(
    x: Tensor, *, kernel_shape: Ints, strides: Ints | None = None, pads: Ints | None = None, dilations: Ints | None = None,
    ceil_mode: int = 0, **_: Any,
) -> Tensor:  # fmt: skip
    rank = len(kernel_shape)
    x, padding = _padded(x, pads, rank, float("-inf"))
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d)[rank - 1]
    return pool(x, kernel_shape, strides or [1] * rank, padding, dilations or [1] * rank, bool(ceil_mode))


def _averagepool(
    x: Tensor, *, kernel_shape: Ints, strides: Ints | None = None, pads: Ints | None = None, ceil_mode: int = 0,
    count_include_pad: int = 0, **_: Any,
) -> Tensor:  # fmt: skip
    rank = len(kernel_shape)
    pool: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d)[rank - 1]
    padding = list((pads or [0] * rank)[:rank])
    return pool(x, kernel_shape, strides or [1] * rank, padding, bool(ceil_mode), bool(count_include_pad))


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    a = a.mT if transA else a
    if alpha == beta == 1.0:
        return F.linear(a, b if transB else b.mT, c)
    product = alpha * (a @ (b.mT if transB else b))
    return product if c is None else product + beta * c


def _batchnorm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, **_: Any) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def _layernorm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _instancenorm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    return torch.clamp(x, low, high)


def _hardsigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def _reduced_by(how: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, **_: Any) -> Tensor:
        return how(x, dim=list(axes or range(x.dim())), keepdim=bool(keepdims))

    return reduced


def _globalpool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


def _reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(shape)])


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(x.shape[:axis].numel(), -1)


def _depthtospace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "DCR":  # the rows and columns of a block before its channels
        x = x.unflatten(1, (blocksize**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(x, blocksize)


def _spacetodepth(x: Tensor, *, blocksize: int) -> Tensor:
    return F.pixel_unshuffle(x, blocksize).unflatten(1, (-1, blocksize**2)).transpose(1, 2).flatten(1, 2)


def _resize(
    x: Tensor, roi: object = None, scales: Sequence[float] | None = None, sizes: Ints | None = None, *, mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel", nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75, antialias: int = 0, **_: Any,
) -> Tensor:  # fmt: skip
    size = list(sizes or [])[2:] or [int(old * scale) for old, scale in zip(x.shape[2:], (scales or [])[2:], strict=True)]
    place, smooth = coordinate_transformation_mode, SMOOTH.get(mode)
    called = smooth[len(size) - 1] if smooth else NEAREST.get(f"{place} {nearest_mode}")
    if called is None or (smooth and place not in PLACES) or (mode == "cubic" and cubic_coeff_a != -0.75) or antialias:
        raise MeasurementError(f"operation 'Resize' ({mode}, {place}) has no PyTorch counterpart in device 'torch'.")
    return F.interpolate(x, size, mode=called, align_corners=place == "align_corners" if smooth else None)


def _where(condition: Tensor | bool, x: Tensor, y: Tensor) -> Tensor:
    if isinstance(condition, bool):
        condition = torch.full((), condition, device=x.device)
    return torch.where(condition, x, y)


def _concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def _split(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, num_outputs: int = 1) -> tuple[Tensor, ...]:
    return x.split(list(sizes) if sizes else -(-x.shape[axis] // num_outputs), axis)


def _gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    if isinstance(indices, int):
        return x.select(axis, indices)
    index = torch.as_tensor(indices, device=x.device)
    return x.index_select(axis, index.flatten()).unflatten(axis, index.shape)


def _gathernd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise MeasurementError("operation 'GatherND' with batch dimensions has no PyTorch counterpart in device 'torch'.")
    return x[tuple(indices.unbind(-1))]


def _transpose(x: Tensor, *, perm: Ints) -> Tensor:
    return x.permute(list(perm))


def _slice(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    for axis, *bounds in zip(axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True):
        size = x.shape[axis]
        taken = range(size)[slice(*bounds)]
        if taken.step < 0:  # torch does not step backwards
            x, taken = x.flip(axis), range(size - 1 - taken.start, size - 1 - taken.stop, -taken.step)
        x = x[(slice(None),) * (axis % x.dim()) + (slice(taken.start, taken.stop, taken.step),)]
    return x


def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _pad(x: Tensor, pads: Ints, value: float = 0.0, axes: Ints | None = None, *, mode: str = "constant") -> Tensor:
    """`pads` are the begins of the last axes, then their ends."""
    if axes is not None or mode not in PADDING:
        raise MeasurementError(f"operation 'Pad' with axes, or mode '{mode}', has no PyTorch counterpart in device 'torch'.")
    rank = len(pads) // 2
    padded = [place for place in range(rank) if pads[place] or pads[rank + place]]
    first = min(padded, default=rank)  # torch reflects the last axes only
    flat = [size for place in reversed(range(first, rank)) for size in (pads[place], pads[rank + place])]
    return F.pad(x, flat, PADDING[mode], value if mode == "constant" else None)


def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def _leakyrelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x, slope.flatten())


def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _cast(x: Tensor, *, to: int, **_: Any) -> Tensor:
    return x.to(torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(to))).dtype)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": torch.matmul, "BatchNormalization": _batchnorm,
    "LayerNormalization": _layernorm, "InstanceNormalization": _instancenorm, "ConvTranspose": _convtranspose,
    "MaxPool": _maxpool, "AveragePool": _averagepool, "GlobalAveragePool": _globalpool,
    "ReduceMean": _reduced_by(torch.mean), "ReduceMax": _reduced_by(torch.amax), "ReduceSum": _reduced_by(torch.sum),
    "ReduceL2": _reduced_by(torch.linalg.vector_norm),
    "Relu": F.relu, "Clip": _clip, "LeakyRelu": _leakyrelu, "Elu": _elu, "Gelu": _gelu, "PRelu": _prelu,
    "Sigmoid": torch.sigmoid, "HardSigmoid": _hardsigmoid, "HardSwish": F.hardswish, "Tanh": torch.tanh,
    "Softplus": F.softplus, "Softmax": _softmax, "Erf": torch.erf, "Sqrt": torch.sqrt,
    "Exp": torch.exp, "Log": torch.log, "Pow": torch.pow, "Abs": torch.abs, "Neg": torch.neg, "Sign": torch.sign,
    "Sin": torch.sin, "Cos": torch.cos, "Reciprocal": torch.reciprocal, "Softsign": F.softsign, "Not": torch.logical_not,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Equal": torch.eq,
    "And": torch.logical_and,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Where": _where,
    "Max": torch.maximum, "Min": torch.minimum,
    "Concat": _concat, "Split": _split, "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose,
    "Gather": _gather, "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Pad": _pad,
    "Resize": _resize, "DepthToSpace": _depthtospace, "SpaceToDepth": _spacetodepth,
    "GatherND": _gathernd, "Identity": _same, "Dropout": _same, "Cast": _cast,
}  # fmt: skip
"""What the ONNX files of traced convolutional networks consist of."""
