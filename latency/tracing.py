"""Tracing: an ordinary module becomes a `Network`.

The module is traced with torch.fx and run once for its shapes. Every tensor carries flows: channel variables, one
after another along its axis 1, and how many consecutive entries belong to one channel of each. Layers make new variables,
additions join them (union-find), concatenation lines them up, grouped convolutions let them shrink by whole groups,
activations and pooling pass them on, and any operation that cannot be followed has all of its channels left to it; what is
free in the end are the genes.
"""

from __future__ import annotations

import copy
import io
import math
import operator
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.ops import stochastic_depth

from latency.axis import AnyAxis, Axis, concatenated
from latency.errors import TraceError
from latency.network import Gene, Layer, Network, width_choices

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
    graph_module = _symbolic(copy.deepcopy(module).eval(), name)
    _propagate_shapes(graph_module, shape, name)
    return _Tracer(graph_module, name, _blocks(module)).network(shape, align)


def _symbolic(module: nn.Module, name: str) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(module)
    except Exception as error:  # torch.fx runs user code: anything may come out
        raise TraceError(
            f"{name} cannot be traced by torch.fx: {error} "
            "Move data-dependent control flow out of forward(), or wrap that part in a module of its own."
        ) from error


def _propagate_shapes(module: fx.GraphModule, shape: tuple[int, ...], name: str) -> None:
    parameter = next(module.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):  # where torch prints tracebacks of its own
            ShapeProp(module).propagate(torch.zeros(shape, dtype=parameter.dtype, device=parameter.device))
    except Exception as error:  # the user's forward() runs here
        cause = str(error.__cause__ or error).splitlines()[0]
        raise TraceError(f"{name} does not run on an input of shape {shape}: {cause}") from error


def _blocks(module: nn.Module) -> dict[str, str]:
    """For each submodule the outermost enclosing module that is more than a sequence; itself where there is none."""
    sequences = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    blocks: dict[str, str] = {}
    for name, submodule in module.named_modules():
        parent = name.rpartition(".")[0]
        inherited = blocks.get(parent, "")
        blocks[name] = inherited or ("" if isinstance(submodule, sequences) or not name else name)
    return blocks


@dataclass(frozen=True)
class _Flow:
    """One stretch of a tensor's axis 1: `per_channel` entries for each channel of variable `variable`."""

    variable: int
    per_channel: int = 1


_Flows = tuple[_Flow, ...]


@dataclass
class _Variables:
    """Union-find over channel variables; a set is fixed when any member is, and a multiple of all its members'."""

    parent: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    maker: list[str] = field(default_factory=list)
    fixed: list[bool] = field(default_factory=list)
    multiple: list[int] = field(default_factory=list)

    def new(self, size: int, maker: str, fixed: bool = False) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.maker.append(maker)
        self.fixed.append(fixed)
        self.multiple.append(1)
        return len(self.parent) - 1

    def entries(self, flow: _Flow) -> int:
        """Length of the stretch at full width."""
        return self.size[flow.variable] * flow.per_channel

    def pin(self, flows: _Flows) -> None:
        """Never prune these."""
        for flow in flows:
            self.fixed[self.root(flow.variable)] = True

    def restrict(self, flows: _Flows, entries: int) -> None:
        """Let every stretch shrink only by whole groups of `entries`."""
        for flow in flows:
            root = self.root(flow.variable)
            channels = entries // math.gcd(entries, flow.per_channel)
            self.multiple[root] = math.lcm(self.multiple[root], channels)

    def root(self, variable: int) -> int:
        while self.parent[variable] != variable:
            variable = self.parent[variable]
        return variable

    def join(self, a: int, b: int) -> int:
        """The set's name is its earliest member, so genes keep the order of the network."""
        low, high = sorted((self.root(a), self.root(b)))
        self.parent[high] = low
        self.fixed[low] = self.fixed[low] or self.fixed[high]
        self.multiple[low] = math.lcm(self.multiple[low], self.multiple[high])
        return low


PASSING_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.MaxPool1d, nn.AvgPool1d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.ZeroPad2d, nn.ReflectionPad2d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
)  # fmt: skip
PASSING_FUNCTIONS: frozenset[Any] = frozenset(
    {
        F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.softplus, F.hardswish,
        F.hardsigmoid, F.hardtanh, F.dropout, F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d, F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d,
        F.interpolate, torch.relu, torch.sigmoid, torch.tanh, torch.clamp, stochastic_depth,
        "relu", "sigmoid", "tanh", "clamp", "contiguous", "clone", "detach",
    }
)  # fmt: skip
JOINING_FUNCTIONS: frozenset[Any] = frozenset(
    {
        operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
        torch.add, torch.sub, torch.mul, "add", "add_", "sub", "sub_", "mul", "mul_",
    }
)  # fmt: skip
SPATIAL_FUNCTIONS: frozenset[Any] = frozenset({torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"})
RESHAPING_FUNCTIONS: frozenset[Any] = frozenset({torch.flatten, torch.reshape, "flatten", "view", "reshape"})
CONCATENATING_FUNCTIONS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate})
ADVICE = "Replace it, or keep it outside the traced module and trace the parts before and after on their own."


class _Unfollowed(Exception):
    """An operation whose channels cannot be followed, and may be left to it: it has no parameters."""


class _Tracer:
    """One walk over the graph; `network` is its only public method."""

    def __init__(self, module: fx.GraphModule, name: str, blocks: dict[str, str]) -> None:
        self.module = module
        self.name = name
        self.blocks = blocks
        self.modules = dict(module.named_modules())
        self.variables = _Variables()
        self.flows: dict[fx.Node, _Flows] = {}
        self.layers: dict[str, tuple[str, _Flows | int, _Flows, int]] = {}  # name → kind, inputs, outputs, taps
        self.tensors: dict[str, tuple[_Flows | int, ...]] = {}
        self.unfollowed: list[str] = []
        self.module_rules: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[..., _Flows]], ...] = (
            (nn.Conv2d, self._conv),
            (nn.Linear, self._linear),
            (nn.BatchNorm2d, self._batchnorm),
            (nn.BatchNorm1d, self._batchnorm),
            (nn.PReLU, self._prelu),
            (nn.Flatten, self._reshape),
            (PASSING_MODULES, self._pass),
        )

    def network(self, input_shape: tuple[int, ...], align: int) -> Network:
        for node in self.module.graph.nodes:
            self._visit(node)
        self.module.graph.eliminate_dead_code()
        self.module.recompile()
        genes, index = self._genes(align)

        def axis(flows: _Flows | int) -> AnyAxis:
            if isinstance(flows, int):
                return Axis(flows)
            roots = [self.variables.root(flow.variable) for flow in flows]
            sizes = [self.variables.entries(flow) for flow in flows]
            return concatenated([Axis(n, index.get(r), f.per_channel) for n, r, f in zip(sizes, roots, flows, strict=True)])

        layers = tuple(
            Layer(name, kind, axis(inputs), axis(outputs), taps, self.blocks[name])
            for name, (kind, inputs, outputs, taps) in self.layers.items()
        )
        tensors = {name: tuple(axis(flow) for flow in flows) for name, flows in self.tensors.items()}
        parameters = tuple(name for name, _ in self.module.named_parameters() if name in tensors)
        unfollowed = tuple(self.unfollowed)
        return Network(self.name, self.module, input_shape, genes, layers, tensors, parameters, align, unfollowed)

    def _genes(self, align: int) -> tuple[tuple[Gene, ...], dict[int, int]]:
        variables = self.variables
        roots = sorted({variables.root(v) for v in range(len(variables.parent))})
        free = [root for root in roots if not variables.fixed[root]]
        genes = []
        for root in free:
            size, multiple = variables.size[root], variables.multiple[root]
            choices = width_choices(size, math.lcm(align, multiple))
            genes.append(Gene(variables.maker[root], size, choices, multiple))
        return tuple(genes), {root: position for position, root in enumerate(free)}

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._image(node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                self.variables.pin(self.flows.get(source, ()))
        elif _shape(node) is None:
            return  # sizes and other plain numbers carry no channels
        elif node.op == "get_attr":
            raise self._error(node, "uses a bare parameter or buffer", "Put it into a layer torch.nn knows.")
        else:
            try:
                self.flows[node] = self._followed(node)
            except _Unfollowed as reason:
                self.flows[node] = self._left_alone(node, str(reason))

    def _followed(self, node: fx.Node) -> _Flows:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        rule = self._function_rule(node) if module is None else self._module_rule(node, module)
        if any(len(_shape(one)) < 2 for one in (node, *node.all_input_nodes) if one in self.flows or one is node):
            raise _Unfollowed("works on something without channels")
        return rule(node, module)

    def _left_alone(self, node: fx.Node, what: str) -> _Flows:
        """What goes in keeps all of its channels, and so does what comes out."""
        for source in node.all_input_nodes:
            self.variables.pin(self.flows.get(source, ()))
        self.unfollowed.append(f"{self._owner(node)} {what}")
        shape = _shape(node)
        return (_Flow(self.variables.new(shape[1], node.name, fixed=True)),) if len(shape) > 1 else ()

    def _image(self, node: fx.Node) -> None:
        if self.flows:
            raise self._error(node, "is a second input", "Trace a module with one image input.")
        self.flows[node] = (_Flow(self.variables.new(_shape(node)[1], str(node.target), fixed=True)),)

    def _module_rule(self, node: fx.Node, module: nn.Module) -> Callable[..., _Flows]:
        rule = next((rule for kinds, rule in self.module_rules if isinstance(module, kinds)), None)
        if rule is not None:
            return rule
        if [*module.parameters(), *module.buffers()]:
            raise self._error(node, f"is a {type(module).__name__}, whose parameters we cannot prune", ADVICE)
        raise _Unfollowed(f"is a {type(module).__name__}")

    def _function_rule(self, node: fx.Node) -> Callable[..., _Flows]:
        rules = (
            (PASSING_FUNCTIONS, self._pass),
            (JOINING_FUNCTIONS, self._join),
            (SPATIAL_FUNCTIONS, self._reduce),
            (RESHAPING_FUNCTIONS, self._reshape),
            (CONCATENATING_FUNCTIONS, self._concatenate),
        )
        for functions, rule in rules:
            if node.target in functions:
                return rule
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        raise _Unfollowed(f"calls {called}")

    def _conv(self, node: fx.Node, conv: nn.Conv2d) -> _Flows:
        if conv.padding_mode != "zeros":
            raise self._error(
                node, f"pads with '{conv.padding_mode}'", "Use padding_mode='zeros', or a padding layer before it."
            )
        height, width = _shape(node)[2:]
        taps = math.prod(conv.kernel_size) * height * width
        if conv.groups == 1:
            inputs: _Flows | int = self._input(node)
            outputs = self._new(node, conv.out_channels)
        else:
            inputs, outputs = conv.in_channels // conv.groups, self._grouped(node, conv)
        self._layer(node, conv, "conv", inputs, outputs, taps, conv.kernel_size)
        return outputs

    def _grouped(self, node: fx.Node, conv: nn.Conv2d) -> _Flows:
        """Outputs of a grouped convolution: pruning its input drops whole groups, and with them their outputs.

        Where that cannot be (fewer outputs than inputs, a group across a concatenation), neither side is pruned.
        """
        flows = self._input(node)
        group = conv.in_channels // conv.groups
        if conv.out_channels % conv.in_channels or any(self.variables.entries(flow) % group for flow in flows):
            self.variables.pin(flows)
            outputs = self._new(node, conv.out_channels)
            self.variables.pin(outputs)
            return outputs
        self.variables.restrict(flows, group)
        times = conv.out_channels // conv.in_channels
        return tuple(_Flow(flow.variable, flow.per_channel * times) for flow in flows)

    def _linear(self, node: fx.Node, linear: nn.Linear) -> _Flows:
        if len(_shape(node)) != 2:
            raise self._error(node, f"is a Linear applied to a tensor of {len(_shape(node))} axes", "Flatten it first.")
        outputs = self._new(node, linear.out_features)
        self._layer(node, linear, "linear", self._input(node), outputs, 1)
        return outputs

    def _batchnorm(self, node: fx.Node, module: nn.Module) -> _Flows:
        flows = self._input(node)
        name = str(node.target)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, tensor) is not None:
                self.tensors[f"{name}.{tensor}"] = (flows,)
        return flows

    def _pass(self, node: fx.Node, module: nn.Module | None) -> _Flows:
        if _shape(node)[1] != _shape(self._source(node))[1]:
            raise _Unfollowed("changes the number of channels")
        return self._input(node)

    def _prelu(self, node: fx.Node, prelu: nn.PReLU) -> _Flows:
        flows = self._input(node)
        self.tensors[f"{node.target}.weight"] = (flows if prelu.num_parameters > 1 else 1,)
        return flows

    def _join(self, node: fx.Node, module: nn.Module | None) -> _Flows:
        """Stretch by stretch; tensors whose stretches do not match keep all their channels."""
        channels, rank = _shape(node)[1], len(_shape(node))
        operands = [source for source in node.all_input_nodes if source in self.flows]
        if any(len(_shape(source)) != rank for source in operands):
            raise _Unfollowed("combines tensors of different ranks")
        first, *others = [self.flows[source] for source in operands if _shape(source)[1] == channels]
        for other in others:
            if self._layout(first) == self._layout(other):
                for a, b in zip(first, other, strict=True):
                    self.variables.join(a.variable, b.variable)
            else:
                self.variables.pin(first + other)
        return first

    def _layout(self, flows: _Flows) -> list[tuple[int, int]]:
        return [(self.variables.size[flow.variable], flow.per_channel) for flow in flows]

    def _concatenate(self, node: fx.Node, module: nn.Module | None) -> _Flows:
        dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if dim % len(_shape(node)) != 1:
            raise _Unfollowed(f"concatenates along axis {dim}")
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        return tuple(flow for tensor in tensors for flow in self.flows[tensor])

    def _reduce(self, node: fx.Node, module: nn.Module | None) -> _Flows:
        before, after = _shape(self._source(node)), _shape(node)
        dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dims = (dims,) if isinstance(dims, int) else dims
        if not dims or any(dim % len(before) < 2 for dim in dims) or after[:2] != before[:2]:
            raise _Unfollowed("reduces over the batch or the channels")
        return self._input(node)

    def _reshape(self, node: fx.Node, module: nn.Module | None) -> _Flows:
        """Flattening to (N, C·H·W) or (N, C, H·W), and (N, C) back to (N, C, 1, 1), whatever it is called."""
        before, after = _shape(self._source(node)), _shape(node)
        flows = self._input(node)
        if after == before:
            return flows
        if after == (*before, 1, 1):
            self._rewrite(node, operator.getitem, (slice(None), slice(None), None, None))
            return flows
        if after[:1] != before[:1] or (len(after) != 2 and not (len(after) == 3 and after[1] == before[1])):
            raise _Unfollowed(f"reshapes {before} to {after}")
        if node.op != "call_module":
            self._rewrite(node, torch.flatten, len(after) - 1)
        times = after[1] // before[1]
        return tuple(_Flow(flow.variable, flow.per_channel * times) for flow in flows)

    def _rewrite(self, node: fx.Node, function: Callable[..., Any], argument: Any) -> None:
        """`x.view(-1, 1280)` states a size that pruning changes; `function` does the same without."""
        source = self._source(node)
        node.op, node.target, node.args, node.kwargs = "call_function", function, (source, argument), {}

    def _new(self, node: fx.Node, size: int) -> _Flows:
        return (_Flow(self.variables.new(size, str(node.target))),)

    def _layer(
        self,
        node: fx.Node,
        module: nn.Conv2d | nn.Linear,
        kind: str,
        inputs: _Flows | int,
        outputs: _Flows,
        taps: int,
        window: tuple[int, ...] = (),
    ) -> None:
        name = str(node.target)
        if name in self.layers:
            raise self._error(node, "is called more than once", "Give every call a layer of its own.")
        self.layers[name] = (kind, inputs, outputs, taps)
        self.tensors[f"{name}.weight"] = (outputs, inputs, *window)
        if module.bias is not None:
            self.tensors[f"{name}.bias"] = (outputs,)

    def _source(self, node: fx.Node) -> fx.Node:
        return next(source for source in node.all_input_nodes if source in self.flows)

    def _input(self, node: fx.Node) -> _Flows:
        return self.flows[self._source(node)]

    def _error(self, node: fx.Node, what: str, advice: str) -> TraceError:
        return TraceError(f"{self.name}: {self._owner(node)} {what}. {advice}")

    def _owner(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack")
        owner = str(node.target) if node.op == "call_module" else (next(reversed(stack)) if stack else "forward()")
        return f"layer '{owner}' (operation '{node.name}')"


def _shape(node: fx.Node) -> Any:
    """The node's tensor shape; () for several tensors at once; None for a plain number or size."""
    meta = node.meta.get("tensor_meta")
    if meta is None:
        return None
    return tuple(meta.shape) if hasattr(meta, "shape") else ()
