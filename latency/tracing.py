"""Tracing: an ordinary module becomes a `Network`.

The module is traced with torch.fx and run once for its shapes, and layers of derived classes become torch's own. Then every
node's channels are followed by the rules of `latency.rules`; any layer or operation that cannot be followed has all of its
channels left to it, and what is free in the end are the genes.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence

from torch import fx, nn

from latency import operations
from latency.axis import AnyAxis, Axis, concatenated
from latency.channels import Channels, Flows
from latency.derived import lift
from latency.errors import TraceError
from latency.network import Gene, Layer, Network, width_choices
from latency.rules import Rules, Unfollowed, lies_along_one_axis
from latency.symbolic import graph_of, shape_of

DEFAULT_ALIGN = 8
"""Widths are multiples of this unless asked otherwise: odd widths are slow on every device we know."""


def trace(
    module: nn.Module,
    input_shape: Sequence[int] = (1, 3, 224, 224),
    *,
    align: int = DEFAULT_ALIGN,
    name: str | None = None,
) -> Network:
    """Trace `module` for one image batch of `input_shape` [N, C, H, W].

    Args:
        module: any CNN that torch.fx can trace; it is copied, not changed, and traced in eval mode.
        input_shape: shape of its only input, batch first.
        align: genes may take multiples of this; 1 gives the paper's own grid of 31 widths.
        name: how tables and reports call it; default: the class name.

    Raises:
        TraceError: naming the layer, the operation and what to do.

    Example:
        >>> net = trace(torchvision.models.mobilenet_v2(), (1, 3, 224, 224))
        >>> net.genes[0]
        Gene(name='features.0.0', max_width=32, choices=(8, 16, 24, 32))
    """
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 4 or min(shape) < 1:
        raise TraceError(f"input_shape={tuple(input_shape)} given; expected four positive sizes (N, C, H, W).")
    if align < 1:
        raise TraceError(f"align={align} given; expected a positive whole number.")
    name = name or type(module).__name__
    graph_module = graph_of(copy.deepcopy(module).eval(), shape, name)
    lift(graph_module)
    return _Tracer(graph_module, name, _blocks(module)).network(shape, align)


def _blocks(module: nn.Module) -> dict[str, str]:
    """For each submodule the outermost enclosing module that is more than a sequence; itself where there is none."""
    sequences = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    blocks: dict[str, str] = {}
    for name, submodule in module.named_modules():
        parent = name.rpartition(".")[0]
        inherited = blocks.get(parent, "")
        blocks[name] = inherited or ("" if isinstance(submodule, sequences) or not name else name)
    return blocks


class _Tracer(Rules):
    """One walk over the graph; `network` is its only public method."""

    def __init__(self, module: fx.GraphModule, name: str, blocks: dict[str, str]) -> None:
        super().__init__(module)
        self.module = module
        self.name = name
        self.blocks = blocks

    def network(self, input_shape: tuple[int, ...], align: int) -> Network:
        for node in self.module.graph.nodes:
            self._visit(node)
        self.module.graph.eliminate_dead_code()
        self.module.recompile()
        genes, index = self._genes(align)

        def axis(flows: Flows | int) -> AnyAxis:
            if isinstance(flows, int):
                return Axis(flows)
            roots = self.variables.roots(flows)
            return concatenated([Axis(self.variables.entries(f), index.get(f.variable), f.per_channel) for f in roots])

        layers = tuple(
            Layer(name, kind, axis(inputs), axis(outputs), taps, self.blocks[name])
            for name, (kind, inputs, outputs, taps) in self.layers.items()
        )
        tensors = {name: tuple(axis(flow) for flow in flows) for name, flows in self.tensors.items()}
        parameters = tuple(name for name, _ in self.module.named_parameters() if name in tensors)
        unfollowed = tuple(self.unfollowed)
        return Network(self.name, self.module, input_shape, genes, layers, tensors, parameters, align, unfollowed)

    def _genes(self, align: int) -> tuple[tuple[Gene, ...], dict[int, int]]:
        free = self.variables.free()
        genes = [
            Gene(one.maker, one.size, width_choices(one.size, math.lcm(align, one.multiple)), one.multiple)
            for one in free.values()
        ]
        return tuple(genes), {root: position for position, root in enumerate(free)}

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._image(node)
        elif node.op == "output":
            self._pin_inputs(node)
        elif shape_of(node) is None:
            return  # sizes and other plain numbers carry no channels
        elif node.op == "get_attr":
            if not all(self._joins(user) for user in node.users):
                self.unfollowed.append(f"parameter or buffer '{node.target}' is no summand or factor")
                self.channels[node] = self._kept_bare(node)
        elif self._bare(node) is None:
            try:
                self.channels[node] = self._part(node) or self._followed(node)
            except Unfollowed as reason:
                self.channels[node] = self._left_alone(node, str(reason))

    def _joins(self, user: fx.Node) -> bool:
        """Whether what uses a bare parameter adds it to something, or multiplies by it, maybe in another shape, or asks for
        its size."""
        if lies_along_one_axis(user):
            return all(other.target in operations.JOINING_FUNCTIONS for other in user.users)
        return shape_of(user) is None or user.target in operations.JOINING_FUNCTIONS

    def _part(self, node: fx.Node) -> Channels | None:
        """Of one of several equal tensors."""
        picks = node.target is operator.getitem and isinstance(node.args[1], int)
        return self.parts.get(node.all_input_nodes[0]) if picks else None

    def _pin_inputs(self, node: fx.Node) -> None:
        for flows in self._flows_into(node):
            self.variables.pin(flows)

    def _flows_into(self, node: fx.Node) -> list[Flows]:
        carried = [carriers.get(source) for source in node.all_input_nodes for carriers in (self.channels, self.parts)]
        return [channels.flows for channels in carried if channels]

    def _followed(self, node: fx.Node) -> Channels:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        rule = self._function_rule(node) if module is None else self._module_rule(node, module)
        carriers = self._carriers(node)
        if self.constants.issuperset(carriers):
            raise Unfollowed("computes with bare parameters alone")
        if not all(self.channels[source].flows for source in carriers):
            raise Unfollowed("works on something without channels")
        if len(shape_of(node)) < 2 and rule != self._split:
            raise Unfollowed("leaves nothing that has channels")
        return rule(node, module)

    def _left_alone(self, node: fx.Node, what: str) -> Channels:
        """What goes in keeps all of its channels, and so does what comes out, and all parameters keep their shapes."""
        lost = not all(map(self.variables.all_fixed, self._flows_into(node)))
        self._pin_inputs(node)
        if self._parameters_kept(node) or lost:
            self.unfollowed.append(f"{self._owner(node)} {what}")
        if self.constants.issuperset(self._carriers(node)):
            self.constants.add(node)
        return self._fixed(node)

    def _parameters_kept(self, node: fx.Node) -> bool:
        """Whether the node has or reads any; they keep their shapes."""
        bare = [source for source in map(self._bare, node.all_input_nodes) if source]
        for source in bare:
            self._kept_bare(source)
        if node.op != "call_module":
            return bool(bare)
        layer, prefix = self.modules[str(node.target)], str(node.target)
        own = [*layer.named_parameters(prefix), *layer.named_buffers(prefix)]
        self.tensors.update({name: tuple(tensor.shape) for name, tensor in own})
        return bool(own)

    def _image(self, node: fx.Node) -> None:
        if self.channels:
            raise self._error(node, "is a second input", "Trace a module with one image input.")
        self.channels[node] = self._fixed(node)

    def _error(self, node: fx.Node, what: str, advice: str) -> TraceError:
        return TraceError(f"{self.name}: {self._owner(node)} {what}. {advice}")
