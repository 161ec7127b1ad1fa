"""What is known of a network's channels while its graph is walked.

Every tensor carries flows: channel variables, one after another along one of its axes, and how many consecutive entries belong
to one channel of each. Layers make new variables, additions join them (union-find), concatenation lines them up, splitting and
slicing cut them into equal parts, permutations move them to another axis, grouped convolutions and norms let them shrink by
whole groups, activations and pooling pass them on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from latency.graph import operations
from latency.tracing.channels import Channels, Flows, Variables
from latency.tracing.nodes import shape_of


class Unfollowed(Exception):
    """A layer or an operation whose channels cannot be followed, and are left to it."""


class Walk:
    """The channels of all nodes so far, and what rules have found out about layers and tensors."""

    def __init__(self, module: fx.GraphModule, name: str) -> None:
        self.name = name
        self.modules = dict(module.named_modules())
        self.parameters = dict(module.named_parameters())
        self.variables = Variables()
        self.channels: dict[fx.Node, Channels] = {}
        self.constants: dict[fx.Node, list[str]] = {}  # what does not depend on the image, and why it has no channels to follow
        self.parts: dict[fx.Node, Channels] = {}  # several equal tensors at once: the channels of each
        self.layers: dict[str, tuple[str, Flows | int, Flows, int]] = {}  # name → kind, inputs, outputs, taps
        self.tensors: dict[str, tuple[Flows | int, ...]] = {}
        self.over_channels: dict[str, Channels] = {}  # node's name → those it computes over
        self.unfollowed: list[str] = []

    def carriers(self, node: fx.Node) -> list[fx.Node]:
        """Those inputs that have channels; numbers that are computed from parameters have none."""
        sources = [source for source in node.all_input_nodes if source in self.channels]
        return [source for source in sources if source not in self.constants or math.prod(shape_of(source)) > 1]

    def source(self, node: fx.Node) -> fx.Node:
        """The first of its inputs that have channels."""
        return self.carriers(node)[0]

    def input(self, node: fx.Node) -> Channels:
        """The channels of that one."""
        return self.channels[self.source(node)]

    def input_on(self, node: fx.Node, axis: int) -> Flows:
        """What `node` finds along that axis of its first input (see `on`)."""
        return self.on(node, self.source(node), axis)

    def on(self, node: fx.Node, source: fx.Node, axis: int) -> Flows:
        """What `node` finds along that axis of an input: its channels; or where others are its channels, these are kept, and
        so is what it finds."""
        channels = self.channels[source]
        if channels.axis == axis:
            return channels.flows
        if not self.variables.all_fixed(channels.flows):
            self.variables.pin(channels.flows)
            self.unfollowed.append(f"{self.owner(node)} works along axis {axis}, not along the channels")
        return (self.variables.new(shape_of(source)[axis], source.name, fixed=True),)

    def is_channels(self, node: fx.Node, axis: int) -> bool:
        """Whether its channels, of which some may go, lie along that axis."""
        channels = self.channels.get(node)
        return channels is not None and channels.axis == axis and not self.variables.all_fixed(channels.flows)

    def new(self, node: fx.Node, size: int) -> Flows:
        """Channels that `node` makes. A single one stays."""
        return (self.variables.new(size, str(node.target), fixed=size == 1),)

    def fixed(self, node: fx.Node) -> Channels:
        """Channels of a node that all stay, on axis 1."""
        shape = shape_of(node)
        return Channels((self.variables.new(shape[1], node.name, fixed=True),) if len(shape) > 1 else ())

    def scores(self, node: fx.Node) -> Channels:
        """Those of what tells of pairs of positions, and has none."""
        return Channels((self.variables.new(shape_of(node)[0], node.name, fixed=True),), 0)

    def bare(self, node: fx.Node) -> fx.Node | None:
        """The bare parameter or buffer that a node is, maybe in another shape; None for all else."""
        source = node
        while lies_along_one_axis(source) or repeats_for_images(source):
            source = source.all_input_nodes[0]
        return source if source.op == "get_attr" and source not in self.channels else None

    def kept_bare(self, node: fx.Node) -> Channels:
        """A bare parameter or buffer that keeps its shape."""
        name = str(node.target)
        for axis in self.tensors.get(name, ()):
            self.variables.pin(() if isinstance(axis, int) else axis)
        if name in self.parameters:
            self.tensors.setdefault(name, shape_of(node))
        self.constants.setdefault(node, [])
        return self.fixed(node)

    def owner(self, node: fx.Node) -> str:
        """How errors call it: by the layer it belongs to."""
        stack = node.meta.get("nn_module_stack")
        owner = str(node.target) if node.op == "call_module" else (next(reversed(stack)) if stack else "forward()")
        return f"layer '{owner}' (operation '{node.name}')"


def rewrite(node: fx.Node, function: Callable[..., Any], *arguments: Any) -> None:
    """`x.view(-1, 1280)` states a size that pruning changes; `function` does the same without."""
    node.op, node.target, node.args, node.kwargs = "call_function", function, (node.all_input_nodes[0], *arguments), {}


def lies_along_one_axis(node: fx.Node) -> bool:
    """Whether a node gives a bare parameter in another shape, all of it along one axis before and after."""
    shapes_it = node.target in operations.RESHAPING_FUNCTIONS | operations.UNSQUEEZING_FUNCTIONS or _adds_axes(node)
    if not shapes_it or shape_of(node) is None:
        return False
    source = node.all_input_nodes[0]
    if source.op != "get_attr" and not lies_along_one_axis(source):
        return False
    return all(math.prod(shape) == max(shape, default=1) for shape in (shape_of(node), shape_of(source)))


def repeats_for_images(node: fx.Node) -> bool:
    """Whether a node gives a bare parameter as it is, or once for every image, as class tokens are."""
    takes = operations.EXPANDING_FUNCTIONS | operations.REPEATING_FUNCTIONS | operations.INDEXING_FUNCTIONS
    if node.target not in takes or node.all_input_nodes[0].op != "get_attr":
        return False
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    return len(before) == len(after) > 1 and before[1:] == after[1:] and before[0] in (1, after[0])


def _adds_axes(node: fx.Node) -> bool:
    """Whether it indexes a tensor by nothing but new axes and whole ones."""
    index = node.args[1] if node.target in operations.INDEXING_FUNCTIONS else ()
    parts = index if isinstance(index, tuple) else (index,)
    return bool(parts) and all(part is None or part is ... or part == slice(None) for part in parts)
