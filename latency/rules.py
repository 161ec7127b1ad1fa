"""What layers and operations do to channels, a rule for each.

Every tensor carries flows: channel variables, one after another along one of its axes, and how many consecutive entries belong
to one channel of each. Layers make new variables, additions join them (union-find), concatenation lines them up, splitting and
slicing cut them into equal parts, permutations move them to another axis, grouped convolutions and norms let them shrink by
whole groups, activations and pooling pass them on.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from latency import operations
from latency.channels import Channels, Flow, Flows, Variables
from latency.symbolic import argument, shape_of

MOST_PARTS = 32
"""Equal parts of which unequal ones are made."""


class Unfollowed(Exception):
    """A layer or an operation whose channels cannot be followed, and are left to it."""


class Rules:
    """The channels of all nodes so far, and what each rule has found out about layers and tensors.

    A rule is given a node, and the module that the node calls, if any; it returns the channels of what comes out.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.modules = dict(module.named_modules())
        self.parameters = dict(module.named_parameters())
        self.variables = Variables()
        self.channels: dict[fx.Node, Channels] = {}
        self.constants: set[fx.Node] = set()  # what does not depend on the image
        self.parts: dict[fx.Node, Channels] = {}  # several equal tensors at once: the channels of each
        self.layers: dict[str, tuple[str, Flows | int, Flows, int]] = {}  # name → kind, inputs, outputs, taps
        self.tensors: dict[str, tuple[Flows | int, ...]] = {}
        self.unfollowed: list[str] = []
        self.module_rules: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[..., Channels]], ...] = (
            (nn.Conv2d, self._conv),
            (nn.Linear, self._linear),
            (nn.BatchNorm2d, self._batchnorm),
            (nn.BatchNorm1d, self._batchnorm),
            (nn.LayerNorm, self._layernorm),
            (nn.GroupNorm, self._groupnorm),
            (nn.PReLU, self._prelu),
            (nn.Flatten, self._reshape),
            (nn.GLU, self._glu),
            (operations.POINTWISE_MODULES, self._pass),
            (operations.POOLING_MODULES, self._pool),
        )

    def _module_rule(self, node: fx.Node, module: nn.Module) -> Callable[..., Channels]:
        rule = next((rule for kinds, rule in self.module_rules if isinstance(module, kinds)), None)
        if rule is not None:
            return rule
        raise Unfollowed(f"is a {type(module).__name__}")

    def _function_rule(self, node: fx.Node) -> Callable[..., Channels]:
        rules = (
            (operations.POINTWISE_FUNCTIONS, self._pass),
            (operations.POOLING_FUNCTIONS, self._pool),
            (operations.JOINING_FUNCTIONS, self._join),
            (operations.REDUCING_FUNCTIONS, self._reduce),
            (operations.RESHAPING_FUNCTIONS, self._reshape),
            (operations.CONCATENATING_FUNCTIONS, self._concatenate),
            (operations.CHUNKING_FUNCTIONS | operations.SPLITTING_FUNCTIONS, self._split),
            (frozenset({F.glu}), self._glu),
            (operations.PERMUTING_FUNCTIONS, self._permute),
            (operations.TRANSPOSING_FUNCTIONS, self._transpose),
            (operations.SQUEEZING_FUNCTIONS, self._squeeze),
            (operations.UNSQUEEZING_FUNCTIONS, self._unsqueeze),
            (operations.INDEXING_FUNCTIONS, self._index),
        )
        for functions, rule in rules:
            if node.target in functions:
                return rule
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        raise Unfollowed(f"calls {called}")

    def _bare(self, node: fx.Node) -> fx.Node | None:
        """The bare parameter or buffer that a node is, maybe in another shape; None for all else."""
        source = node.all_input_nodes[0] if lies_along_one_axis(node) else node
        return source if source.op == "get_attr" and source not in self.channels else None

    def _fixed(self, node: fx.Node) -> Channels:
        shape = shape_of(node)
        return Channels((self.variables.new(shape[1], node.name, fixed=True),) if len(shape) > 1 else ())

    def _kept_bare(self, node: fx.Node) -> Channels:
        """A bare parameter or buffer that keeps its shape."""
        name = str(node.target)
        for axis in self.tensors.get(name, ()):
            self.variables.pin(() if isinstance(axis, int) else axis)
        if name in self.parameters:
            self.tensors.setdefault(name, shape_of(node))
        self.constants.add(node)
        return self._fixed(node)

    def _conv(self, node: fx.Node, conv: nn.Conv2d) -> Channels:
        height, width = shape_of(node)[2:]
        taps = math.prod(conv.kernel_size) * height * width
        if conv.groups == 1:
            inputs: Flows | int = self._input_on(node, 1)
            outputs = self._new(node, conv.out_channels)
        else:
            inputs, outputs = conv.in_channels // conv.groups, self._grouped(node, conv)
        self._layer(node, conv, "conv", inputs, outputs, taps, conv.kernel_size)
        return Channels(outputs)

    def _grouped(self, node: fx.Node, conv: nn.Conv2d) -> Flows:
        """Outputs of a grouped convolution: pruning its input drops whole groups, and with them their outputs.

        Where that cannot be (fewer outputs than inputs, a group across a concatenation), neither side is pruned.
        """
        flows = self.variables.roots(self._input_on(node, 1))
        group = conv.in_channels // conv.groups
        if conv.out_channels % conv.in_channels or self._cuts_groups(flows, group):
            self.variables.pin(flows)
            outputs = self._new(node, conv.out_channels)
            self.variables.pin(outputs)
            return outputs
        self.variables.restrict(flows, group)
        times = conv.out_channels // conv.in_channels
        return tuple(Flow(flow.variable, flow.per_channel * times) for flow in flows)

    def _cuts_groups(self, flows: Flows, group: int) -> bool:
        """Whether a group of so many entries would lie across a concatenation."""
        return any(self.variables.entries(flow) % group for flow in flows)

    def _linear(self, node: fx.Node, linear: nn.Linear) -> Channels:
        """At more positions than one it is a pointwise convolution."""
        last, positions = len(shape_of(node)) - 1, math.prod(shape_of(node)[1:-1])
        inputs, outputs = self._input_on(node, last), self._new(node, linear.out_features)
        self._layer(node, linear, "linear" if last == 1 else "conv", inputs, outputs, positions)
        return Channels(outputs, last)

    def _batchnorm(self, node: fx.Node, module: nn.Module) -> Channels:
        flows = self._input_on(node, 1)
        name = str(node.target)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, tensor) is not None:
                self._for_each(flows, f"{name}.{tensor}")
        return Channels(flows)

    def _for_each(self, flows: Flows, name: str) -> None:
        """A tensor of so many entries; where it was used before, these are the same channels, or all are kept."""
        (known,) = self.tensors.setdefault(name, (flows,))
        if isinstance(known, int):
            self.variables.pin(flows)
        else:
            self.variables.join(known, flows)

    def _layernorm(self, node: fx.Node, module: nn.LayerNorm) -> Channels:
        """Over the channels only, which lie on the last axis."""
        if len(module.normalized_shape) > 1:
            raise Unfollowed(f"is a LayerNorm over {tuple(module.normalized_shape)}")
        last = len(shape_of(node)) - 1
        channels = Channels(self._input_on(node, last), last)
        if not module.elementwise_affine:
            self.variables.pin(channels.flows)  # nothing would say what is left of them
        for tensor, _ in module.named_parameters(recurse=False):
            self._for_each(channels.flows, f"{node.target}.{tensor}")
        return channels

    def _groupnorm(self, node: fx.Node, module: nn.GroupNorm) -> Channels:
        """Whole groups go, but where there is only one."""
        flows = self.variables.roots(self._input_on(node, 1))
        group = module.num_channels // module.num_groups
        if module.num_groups > 1:
            if self._cuts_groups(flows, group):
                raise Unfollowed("is a GroupNorm with groups across a concatenation")
            self.variables.restrict(flows, group)
        if not module.affine:
            self.variables.pin(flows)  # nothing would say what is left of them
        for tensor, _ in module.named_parameters(recurse=False):
            self._for_each(flows, f"{node.target}.{tensor}")
        return Channels(flows)

    def _pass(self, node: fx.Node, module: nn.Module | None) -> Channels:
        return self._input(node)

    def _pool(self, node: fx.Node, module: nn.Module | None) -> Channels:
        channels = self._input(node)
        if channels.axis != 1:
            raise Unfollowed(f"takes axis 1 for the channels, which lie on axis {channels.axis}")
        if shape_of(node)[1] != shape_of(self._source(node))[1]:
            raise Unfollowed("changes the number of channels")
        return channels

    def _prelu(self, node: fx.Node, prelu: nn.PReLU) -> Channels:
        if prelu.num_parameters == 1:
            self.tensors[f"{node.target}.weight"] = (1,)
            return self._input(node)
        flows = self._input_on(node, 1)
        self._for_each(flows, f"{node.target}.weight")
        return Channels(flows)

    def _join(self, node: fx.Node, module: nn.Module | None) -> Channels:
        """Stretch by stretch."""
        rank = len(shape_of(node))
        operands = self._carriers(node)
        if any(len(shape_of(source)) != rank for source in operands):
            raise Unfollowed("combines tensors of different ranks")
        axis = self._common_axis(operands)
        flows = {source: self._on(node, source, axis) for source in operands}
        joined = [flows[source] for source in operands if shape_of(source)[axis] == shape_of(node)[axis]]
        if not joined:
            raise Unfollowed("is wider than what it computes with")
        for source in node.all_input_nodes:
            bare = self._bare(source)
            if bare:
                self._line_up(bare, source, joined[0], axis - rank)
        return Channels(self._joined(joined), axis)

    def _common_axis(self, operands: Sequence[fx.Node]) -> int:
        """On which they carry their channels: the first of them that may be pruned."""
        free = [source for source in operands if not self.variables.all_fixed(self.channels[source].flows)]
        return self.channels[(free or operands)[0]].axis

    def _joined(self, flows: Sequence[Flows]) -> Flows:
        """All of them as one."""
        for other in flows[1:]:
            self.variables.join(flows[0], other)
        return flows[0]

    def _line_up(self, bare: fx.Node, shaped: fx.Node, flows: Flows, axis: int) -> None:
        """A bare parameter has the channels of what it is combined with, `shaped` as it is then, where it has an entry for
        each, on that `axis` (below 0: from the last on). Beside a buffer all of them stay."""
        name, shape = str(bare.target), shape_of(shaped)
        wide = len(shape) + axis >= 0 and shape[axis] > 1
        if name not in self.parameters:
            self.variables.pin(flows if wide else ())
            return
        sizes: list[Flows | int] = list(shape_of(bare))
        if wide and shaped is bare:
            sizes[axis] = flows
        elif wide:
            sizes[sizes.index(shape[axis])] = flows
            self._rewrite(shaped, torch.reshape, (*shape[:axis], -1, *shape[len(shape) + axis + 1 :]))
        if self.tensors.setdefault(name, tuple(sizes)) != tuple(sizes):  # used elsewhere, with other channels
            self._kept_bare(bare)
            self.variables.pin(flows)

    def _concatenate(self, node: fx.Node, module: nn.Module | None) -> Channels:
        dim = (argument(node, 1, "dim") or 0) % len(shape_of(node))
        tensors = argument(node, 0, "tensors")
        axis = self._common_axis(tensors)
        flows = [self._on(node, tensor, axis) for tensor in tensors]
        if dim == axis:
            return Channels(tuple(flow for one in flows for flow in one), axis)
        return Channels(self._joined(flows), axis)

    def _split(self, node: fx.Node, module: nn.Module | None) -> Channels:
        """Into equal parts, which shrink alike from then on: so they stay equal, whatever way of splitting was used. Unequal
        parts are made of equal ones."""
        dim = (argument(node, 2, "dim") or 0) % len(shape_of(self._source(node)))
        sizes = [part.shape[dim] for part in node.meta["tensor_meta"]]
        if dim != self._input(node).axis:
            self.parts[node] = self._input(node)
            return Channels(())
        unequal = len(set(sizes)) > 1
        if unequal and not (all(sizes) and all(map(_picks, node.users))):
            raise Unfollowed("splits into unequal parts")
        count, made_of = _in_equal_parts(sizes)
        self.parts[node] = self._equal_part(node, count, dim)
        for user in list(node.users) if unequal else ():
            index: Any = user.args[1]
            self._regroup(user, node, made_of[index], dim)
        self._rewrite(node, torch.chunk, count, dim)
        return Channels(())

    def _slice(self, node: fx.Node, start: int, stop: int, dim: int) -> Channels:
        """A stretch of the channels is made of equal parts of all of them, which shrink alike from then on."""
        size = shape_of(self._source(node))[dim]
        count, made_of = _in_equal_parts([start, stop - start, size - stop])
        part = self._equal_part(node, count, dim)
        with node.graph.inserting_before(node):
            parts = node.graph.call_function(torch.chunk, (self._source(node), count, dim))
        self._regroup(node, parts, made_of[1], dim)
        return Channels(part.flows * len(made_of[1]), dim)

    def _regroup(self, node: fx.Node, parts: fx.Node, places: range, dim: int) -> None:
        """Make `node` one of `parts`, or the concatenation of some."""
        if len(places) == 1:
            node.args = (parts, places[0])
            return
        whole = node.meta["tensor_meta"]
        shape = list(whole.shape)
        shape[dim] //= len(places)
        with node.graph.inserting_before(node):
            pieces = [node.graph.call_function(operator.getitem, (parts, place)) for place in places]
        for piece in pieces:
            piece.meta = node.meta | {"tensor_meta": whole._replace(shape=torch.Size(shape))}
        node.target, node.args = torch.cat, (pieces, dim)

    def _glu(self, node: fx.Node, module: nn.Module | None) -> Channels:
        dim: Any = argument(node, 1, "dim") if module is None else module.dim
        return self._equal_part(node, 2, (-1 if dim is None else dim) % len(shape_of(node)))

    def _equal_part(self, node: fx.Node, count: int, dim: int) -> Channels:
        channels = self._input(node)
        if dim != channels.axis:
            return channels
        part = self.variables.equal_parts(channels.flows, count)
        if part is None:
            raise Unfollowed("splits in the middle of a channel")
        return Channels(part, dim)

    def _reduce(self, node: fx.Node, module: nn.Module | None) -> Channels:
        channels, rank = self._input(node), len(shape_of(self._source(node)))
        given = argument(node, 1, "dim")
        dims = {dim % rank for dim in ((given,) if isinstance(given, int) else given or ())}
        if not dims or dims & {0, channels.axis}:
            raise Unfollowed("reduces over the batch or the channels")
        gone = 0 if len(shape_of(node)) == rank else sum(dim < channels.axis for dim in dims)
        return Channels(channels.flows, channels.axis - gone)

    def _permute(self, node: fx.Node, module: nn.Module | None) -> Channels:
        order: Any = node.kwargs.get("dims", node.args[1:])
        order = order[0] if len(order) == 1 else order
        channels, rank = self._input(node), len(shape_of(node))
        return Channels(channels.flows, [dim % rank for dim in order].index(channels.axis))

    def _transpose(self, node: fx.Node, module: nn.Module | None) -> Channels:
        channels, rank = self._input(node), len(shape_of(node))
        one, other = (argument(node, place, f"dim{place - 1}") % rank for place in (1, 2))
        return Channels(channels.flows, {one: other, other: one}.get(channels.axis, channels.axis))

    def _squeeze(self, node: fx.Node, module: nn.Module | None) -> Channels:
        channels, rank = self._input(node), len(shape_of(self._source(node)))
        dim = argument(node, 1, "dim")
        if not isinstance(dim, int) or dim % rank in (0, channels.axis):
            raise Unfollowed("squeezes the batch or the channels")
        gone = len(shape_of(node)) < rank and dim % rank < channels.axis
        return Channels(channels.flows, channels.axis - gone)

    def _unsqueeze(self, node: fx.Node, module: nn.Module | None) -> Channels:
        channels = self._input(node)
        added = argument(node, 1, "dim") % len(shape_of(node))
        return Channels(channels.flows, channels.axis + (added <= channels.axis))

    def _index(self, node: fx.Node, module: nn.Module | None) -> Channels:
        """Whatever leaves all channels as they are: steps over positions, new axes."""
        channels, shape = self._input(node), shape_of(self._source(node))
        index = _spelt_out(node.args[1], len(shape))
        place = [position for position, one in enumerate(index) if one is not None][channels.axis]
        plain = all(one is None or isinstance(one, int | slice) for one in index)
        if not plain:
            raise Unfollowed("calls getitem")
        if not _takes_all(index[place], shape[channels.axis]):
            return self._slice(node, *_stretch(index, place, shape), channels.axis)
        return Channels(channels.flows, sum(not isinstance(one, int) for one in index[:place]))

    def _reshape(self, node: fx.Node, module: nn.Module | None) -> Channels:
        """Flattening to (N, C·H·W) or (N, C, H·W), and (N, C) back to (N, C, 1, 1), whatever it is called."""
        before, after = shape_of(self._source(node)), shape_of(node)
        channels = self._input(node)
        if after == before:
            return channels
        if channels.axis != 1:
            raise Unfollowed(f"reshapes {before} to {after}, channels on axis {channels.axis}")
        if after == (*before, 1, 1):
            self._rewrite(node, operator.getitem, (slice(None), slice(None), None, None))
            return channels
        if after[:1] != before[:1] or (len(after) != 2 and not (len(after) == 3 and after[1] == before[1])):
            raise Unfollowed(f"reshapes {before} to {after}")
        if node.op != "call_module":
            self._rewrite(node, torch.flatten, len(after) - 1)
        times = after[1] // before[1]
        return Channels(tuple(Flow(flow.variable, flow.per_channel * times) for flow in channels.flows))

    def _rewrite(self, node: fx.Node, function: Callable[..., Any], *arguments: Any) -> None:
        """`x.view(-1, 1280)` states a size that pruning changes; `function` does the same without."""
        node.op, node.target, node.args, node.kwargs = "call_function", function, (node.all_input_nodes[0], *arguments), {}

    def _new(self, node: fx.Node, size: int) -> Flows:
        return (self.variables.new(size, str(node.target)),)

    def _layer(
        self,
        node: fx.Node,
        module: nn.Conv2d | nn.Linear,
        kind: str,
        inputs: Flows | int,
        outputs: Flows,
        taps: int,
        window: tuple[int, ...] = (),
    ) -> None:
        """Called once more, it reads and makes the same channels as before."""
        name = str(node.target)
        _, before, made, times = self.layers.get(name, (kind, inputs, outputs, 0))
        self.variables.join(made, outputs)
        if not isinstance(before, int) and not isinstance(inputs, int):
            self.variables.join(before, inputs)
        self.layers[name] = (kind, before, made, times + taps)
        self.tensors[f"{name}.weight"] = (made, before, *window)
        if module.bias is not None:
            self.tensors[f"{name}.bias"] = (made,)

    def _carriers(self, node: fx.Node) -> list[fx.Node]:
        """Those inputs that have channels."""
        return [source for source in node.all_input_nodes if source in self.channels]

    def _source(self, node: fx.Node) -> fx.Node:
        return self._carriers(node)[0]

    def _input(self, node: fx.Node) -> Channels:
        return self.channels[self._source(node)]

    def _input_on(self, node: fx.Node, axis: int) -> Flows:
        return self._on(node, self._source(node), axis)

    def _on(self, node: fx.Node, source: fx.Node, axis: int) -> Flows:
        """What `node` finds along that axis of an input: its channels; or where others are its channels, these are kept, and
        so is what it finds."""
        channels = self.channels[source]
        if channels.axis == axis:
            return channels.flows
        if not self.variables.all_fixed(channels.flows):
            self.variables.pin(channels.flows)
            self.unfollowed.append(f"{self._owner(node)} works along axis {axis}, not along the channels")
        return (self.variables.new(shape_of(source)[axis], source.name, fixed=True),)

    def _owner(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack")
        owner = str(node.target) if node.op == "call_module" else (next(reversed(stack)) if stack else "forward()")
        return f"layer '{owner}' (operation '{node.name}')"


def lies_along_one_axis(node: fx.Node) -> bool:
    """Whether a node gives a bare parameter in another shape, all of it along one axis before and after."""
    shapes_it = node.target in operations.RESHAPING_FUNCTIONS | operations.UNSQUEEZING_FUNCTIONS
    if not shapes_it or node.all_input_nodes[0].op != "get_attr":
        return False
    return all(math.prod(shape) == max(shape, default=1) for shape in (shape_of(node), shape_of(node.all_input_nodes[0])))


def _spelt_out(index: Any, rank: int) -> tuple[Any, ...]:
    """What indexes a tensor of so many axes, with a slice for each axis it does not mention."""
    index = index if isinstance(index, tuple) else (index,)
    place = next((position for position, one in enumerate(index) if one is ...), len(index))
    before, after = index[:place], index[place + 1 :]
    mentioned = sum(one is not None for one in (*before, *after))
    return (*before, *[slice(None)] * (rank - mentioned), *after)


def _picks(node: fx.Node) -> bool:
    """Whether it is one of several tensors."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _in_equal_parts(sizes: Sequence[int]) -> tuple[int, list[range]]:
    """How many equal parts make stretches of such sizes, one after another, and which of them make each."""
    size = math.gcd(*sizes)
    if size == 1 or sum(sizes) // size > MOST_PARTS:
        raise Unfollowed(f"splits into parts of {', '.join(map(str, filter(None, sizes)))}")
    ends = [end // size for end in itertools.accumulate(sizes, initial=0)]
    return ends[-1], [range(*one) for one in itertools.pairwise(ends)]


def _stretch(index: Sequence[Any], place: int, shape: Sequence[int]) -> tuple[int, int]:
    """Where what takes a stretch of one axis, and all of the others, starts and stops."""
    bounds = index[place]
    whole = len(index) == len(shape) and all(
        _takes_all(index[axis], shape[axis]) for axis in range(len(shape)) if axis != place
    )
    if not whole or not isinstance(bounds, slice) or any(isinstance(one, fx.Node) for one in (bounds.start, bounds.stop)):
        raise Unfollowed("calls getitem")
    start, stop, step = bounds.indices(shape[place])
    if step != 1 or stop <= start:
        raise Unfollowed("calls getitem")
    return start, stop


def _takes_all(index: Any, size: int) -> bool:
    """Whether it leaves an axis of that size as it is."""
    return (
        isinstance(index, slice)
        and not index.start
        and index.step in (None, 1)
        and (index.stop is None or (isinstance(index.stop, int) and index.stop >= size))
    )
