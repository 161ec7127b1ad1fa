"""The kernels of an ONNX graph: what a device runs after fusion, the key of the latency table.

Fusion is described once, the same for every device: a convolution or matrix product takes along its BatchNorm,
its activation and the addition of an already computed shortcut. A device whose own fusion differs sums what it ran.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache

import onnx

from latency.errors import MeasurementError
from latency.graph.quantization import dequantized
from latency.graph.shapes import PRODUCTS, Shapes, attributes_of, folded, mixes_channels

ACTIVATIONS = frozenset("Relu Clip HardSwish HardSigmoid Sigmoid Tanh LeakyRelu".split())
"""Activations that fuse into the operation before them; others, SiLU among them, are kernels of their own."""

SAME_AS = {"globalaveragepool": "reducemean", "flatten": "reshape", "squeeze": "reshape", "unsqueeze": "reshape"}
"""Operations that exporters write in two ways."""

DENSE = frozenset(product.lower() for product in PRODUCTS)
"""Operations, as in kernels' types, of which every output reads every input channel."""

TRANSPOSED = frozenset({"convtranspose", "groupconvtranspose", "depthwisetranspose"})
"""Convolutions of which every position of the input makes a window of the output."""


@dataclass(frozen=True)
class Kernel:
    """One fused operation. `type` says what it does, the rest on what; sizes are those of the device's real call."""

    type: str  # "conv3x3s2+relu", "depthwise5x5s1+hardswish", "gemm", "groupconv3x3s1g16", "convtranspose2x2s2", …
    batch: int
    cin: int
    cout: int
    height: int  # of the input
    width: int
    out_height: int
    out_width: int

    @property
    def label(self) -> str:
        """One readable line: conv3x3s2+relu 32→64 @112×112."""
        return f"{self.type} {self.cin}→{self.cout} @{self.height}×{self.width}"


def family_of(kernel_type: str) -> str:
    """A type without its epilogue: "conv3x3s2"."""
    return kernel_type.partition("+")[0]


@cache
def operation_of(kernel_type: str) -> str:
    """A type without its window, group and epilogue: "conv"."""
    return re.match(r"[a-z]*", kernel_type).group()  # type: ignore[union-attr]


@cache
def is_product(kernel_type: str) -> bool:
    """Whether it multiplies by weights and adds up, as convolutions and linear layers of all kinds do."""
    return operation_of(kernel_type) in DENSE | TRANSPOSED | {"groupconv", "depthwise"}


@cache
def window_area(kernel_type: str) -> int:
    """Positions of the sliding window: 9 for "conv3x3s2+relu", 1 without a window."""
    window = re.search(r"(\d+)x(\d+)s", kernel_type)
    return int(window.group(1)) * int(window.group(2)) if window else 1


@cache
def group_size(kernel_type: str) -> int:
    """Input channels of each group of a grouped convolution: 16 for "groupconv3x3s1g16"."""
    return int(family_of(kernel_type).rpartition("g")[2])


def ungrouped(kernel_type: str) -> str:
    """What a grouped convolution is once a single group is left: "conv3x3s1" for "groupconv3x3s1g16"."""
    family, plus, epilogue = kernel_type.partition("+")
    return family.removeprefix("group").rpartition("g")[0] + plus + epilogue


KERNEL_FIELDS = tuple(field.name for field in fields(Kernel))


@dataclass(frozen=True)
class PlacedKernel:
    """A kernel and where it sits in its graph: its first input, its output, all its node and value names."""

    kernel: Kernel
    input: str
    output: str
    names: frozenset[str]

    @property
    def blocked(self) -> bool:
        """Whether runtimes have it for blocked channel layouts (NCHWc), in which vector units are kept busy."""
        return operation_of(self.kernel.type) in ("conv", "groupconv", "depthwise", "maxpool", "averagepool")


def find_kernels(model: onnx.ModelProto) -> list[PlacedKernel]:
    """All kernels of a model in execution order.

    Args:
        model: static shapes; they are inferred where the model does not state them. Of one that is quantized the kernels are
            those that it would have in float32.

    Raises:
        MeasurementError: when a shape is not static.
    """
    model = dequantized(model)
    try:
        return _placed(model)
    except MeasurementError:
        simpler = folded(model)
        if simpler is None:
            raise
        return _placed(simpler)


def _placed(model: onnx.ModelProto) -> list[PlacedKernel]:
    shapes = Shapes(model)
    return [_place(group, shapes) for group in _fused(model.graph)]


def _fused(graph: onnx.GraphProto) -> list[list[onnx.NodeProto]]:
    """Groups of nodes that run as one kernel, ordered by their first node."""
    nodes = [node for node in graph.node if node.op_type not in ("Constant", "Identity", "Dropout")]
    position = {name: index for index, node in enumerate(nodes) for name in node.output}
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            consumers.setdefault(name, []).append(index)
    outputs = {value.name for value in graph.output}
    taken: set[int] = set()
    groups = []
    for index in range(len(nodes)):
        if index in taken:
            continue
        group = [index]
        while extension := _extension(nodes, group, position, consumers, outputs):
            group += extension
        taken.update(group)
        groups.append([nodes[member] for member in group])
    return groups


def _extension(
    nodes: list[onnx.NodeProto],
    group: list[int],
    position: Mapping[str, int],
    consumers: Mapping[str, list[int]],
    outputs: set[str],
) -> list[int]:
    """The node that the kernel takes along next, if any."""
    tail = nodes[group[-1]]
    value = tail.output[0]
    following = consumers.get(value, [])
    if value in outputs:
        return []
    if len(following) != 1:
        return []
    (index,) = following
    node = nodes[index]
    if len(group) == 1 and _is_silu([tail, node]):
        fusable = True
    elif node.op_type in ACTIVATIONS:
        fusable = tail.op_type not in ACTIVATIONS
    elif node.op_type == "BatchNormalization":
        fusable = tail.op_type == "Conv"
    else:
        fusable = node.op_type == "Add" and _adds_shortcut(nodes, group, node, value, position)
    return [index] if fusable else []


def _adds_shortcut(
    nodes: list[onnx.NodeProto], group: list[int], add: onnx.NodeProto, value: str, position: Mapping[str, int]
) -> bool:
    """Whether `add` may run inside the product that ends in `value`: the other operand exists by then."""
    if nodes[group[0]].op_type not in PRODUCTS or any(nodes[i].op_type in ACTIVATIONS for i in group):
        return False
    other = next((name for name in add.input if name != value), None)
    return other is not None and position.get(other, -1) < group[0]


def _place(group: list[onnx.NodeProto], shapes: Shapes) -> PlacedKernel:
    head, tail = group[0], group[-1]
    source, axis = _read(head, shapes)
    batch, cin, height, width = shapes.sizes(source, axis)
    out_batch, cout, out_height, out_width = shapes.sizes(tail.output[0])
    if out_batch != batch:  # what only moves data may take the batch for something else
        entries = out_batch * cout * out_height * out_width
        cout, out_height, out_width = cin, max(1, entries // (batch * cin)), 1
    if head.op_type == "Concat":
        cin = cout  # it reads all of its inputs
    groups = int(attributes_of(head).get("group", 1))
    kind, epilogue = SAME_AS.get(head.op_type.lower(), head.op_type.lower()), group[1:]
    if _is_silu(group):
        kind, epilogue = "silu", []
    if mixes_channels(head, shapes.channel_axis.get(tail.output[0], 1), shapes.shapes):
        kind = "depthwise"
    if groups > 1:
        transposed = kind.removeprefix("conv")
        kind = f"depthwise{transposed}" if groups == cin == cout else f"groupconv{transposed}"
    window = _window(head, shapes) + (f"g{cin // groups}" if kind.startswith("groupconv") else "")
    kernel = Kernel(
        "+".join([kind + window, *_epilogue(epilogue)]),
        batch, cin, cout, height, width, out_height, out_width,
    )  # fmt: skip
    names = {node.name for node in group} | {name for node in group for name in node.output}
    return PlacedKernel(kernel, source, tail.output[0], frozenset(names))


def _read(node: onnx.NodeProto, shapes: Shapes) -> tuple[str, int | None]:
    """Which input a kernel is said to read, and which of its axes are its channels, None for those that it has. Of a product of
    two computed tensors it is the one that its channels do not come from, and the axis that is summed over."""
    computed = [name for name in node.input if name not in shapes.initializers]
    if node.op_type != "MatMul" or len(computed) < 2:
        return (computed or node.input)[0], None
    rank = len(shapes.shapes.get(node.output[0], ()))
    rows = shapes.channel_axis.get(node.output[0]) == rank - 2
    return node.input[rows], rank - 2 if rows else rank - 1


def _is_silu(nodes: Sequence[onnx.NodeProto]) -> bool:
    """x × sigmoid(x), which is how it is exported."""
    if [node.op_type for node in nodes] != ["Sigmoid", "Mul"]:
        return False
    sigmoid, product = nodes
    return set(product.input) == {sigmoid.input[0], sigmoid.output[0]}


def _epilogue(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """Operations after the first, as they add to the work: BatchNorm folds away."""
    return [node.op_type.lower() for node in nodes if node.op_type != "BatchNormalization"]


def _window(node: onnx.NodeProto, shapes: Shapes) -> str:
    """ "3x3s2" for anything with a sliding window, else nothing."""
    attributes = attributes_of(node)
    size = attributes.get("kernel_shape") or (shapes.shapes[node.input[1]][2:] if node.op_type == "Conv" else None)
    if not size:
        return ""
    return "x".join(map(str, size)) + f"s{(attributes.get('strides') or [1])[0]}"
