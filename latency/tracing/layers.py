"""Rules of layers: which channels they read and make, and which of their tensors have an entry for each."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx, nn

from latency.tracing.channels import Channels, Flows, repeated
from latency.tracing.nodes import argument, number, shape_of
from latency.tracing.walk import Unfollowed, Walk


def conv(walk: Walk, node: fx.Node, layer: nn.Conv2d) -> Channels:
    """Reads all channels of the image and makes its own; grouped, it makes of each group its own."""
    height, width = shape_of(node)[2:]
    taps = math.prod(layer.kernel_size) * height * width
    if layer.groups == 1:
        inputs: Flows | int = walk.input_on(node, 1)
        outputs = walk.new(node, layer.out_channels)
    else:
        inputs, outputs = layer.in_channels // layer.groups, _grouped(walk, node, layer)
    _layer(walk, node, layer, "conv", inputs, outputs, taps, layer.kernel_size)
    return Channels(outputs)


def conv_transpose(walk: Walk, node: fx.Node, layer: nn.ConvTranspose2d) -> Channels:
    """The same, from every position of the image to a window of positions."""
    if layer.groups > 1 or len(node.args) > 1 or node.kwargs:
        raise Unfollowed(f"is a ConvTranspose2d {'in groups' if layer.groups > 1 else 'that is told its output size'}")
    height, width = shape_of(walk.source(node))[2:]
    taps = math.prod(layer.kernel_size) * height * width
    inputs, outputs = walk.input_on(node, 1), walk.new(node, layer.out_channels)
    _layer(walk, node, layer, "conv", inputs, outputs, taps, layer.kernel_size)
    return Channels(outputs)


def _grouped(walk: Walk, node: fx.Node, layer: nn.Conv2d) -> Flows:
    """Outputs of a grouped convolution: pruning its input drops whole groups, and with them their outputs.

    Where that cannot be (fewer outputs than inputs, a group across a concatenation), neither side is pruned.
    """
    flows = walk.variables.roots(walk.input_on(node, 1))
    group = layer.in_channels // layer.groups
    if layer.out_channels % layer.in_channels or _cuts_groups(walk, flows, group):
        walk.variables.pin(flows)
        walk.unfollowed.append(f"{walk.owner(node)} has groups that cannot go one by one")
        outputs = walk.new(node, layer.out_channels)
        walk.variables.pin(outputs)
        return outputs
    walk.variables.restrict(flows, group)
    times = layer.out_channels // layer.in_channels
    return repeated(flows, times)


def _cuts_groups(walk: Walk, flows: Flows, group: int) -> bool:
    """Whether a group of so many entries would lie across a concatenation."""
    return any(walk.variables.entries(flow) % group for flow in flows)


def blur(walk: Walk, node: fx.Node, module: None) -> Channels:
    """The same fixed filter for every channel, as where pooling shall not alias (Zhang 2019, arXiv 1904.11486)."""
    filters, groups = argument(node, 1, "weight"), number(argument(node, 6, "groups"))
    fixed = dict(walk.modules[""].named_buffers()).get(str(filters.target))
    if fixed is None or argument(node, 2, "bias") is not None or not groups == len(fixed) == shape_of(walk.source(node))[1]:
        raise Unfollowed("calls conv2d")
    if not fixed.is_meta and not torch.equal(fixed, fixed[:1].expand_as(fixed)):
        raise Unfollowed("has filters of its own for each channel, which are not trained")
    flows = walk.input_on(node, 1)
    with node.graph.inserting_before(node):
        first = node.graph.call_function(operator.getitem, (filters, slice(0, 1)))
        channels = node.graph.call_method("size", (walk.source(node), 1))
        alike = node.graph.call_method("expand", (first, channels, -1, -1, -1))
    settings = {name: argument(node, place, name) for place, name in ((3, "stride"), (4, "padding"), (5, "dilation"))}
    settings = {name: value for name, value in settings.items() if value is not None}
    node.args, node.kwargs = (walk.source(node), alike), {**settings, "groups": channels}
    return Channels(flows)


def conv1d(walk: Walk, node: fx.Node, layer: nn.Conv1d) -> Channels:
    """Over the channels themselves, each of which it mixes with its neighbours, as ECA's gate does."""
    channels = walk.input(node)
    keeps = layer.in_channels == layer.out_channels == 1 and shape_of(node) == shape_of(walk.source(node))
    if channels.axis != 2 or not keeps or len(walk.variables.roots(channels.flows)) > 1:
        raise Unfollowed("is a Conv1d")
    walk.variables.keep_uncut(channels.flows)
    for tensor, parameter in layer.named_parameters(str(node.target)):
        walk.tensors[tensor] = tuple(parameter.shape)
    walk.over_channels[node.name] = channels
    return channels


def linear(walk: Walk, node: fx.Node, layer: nn.Linear) -> Channels:
    """At more positions than one it is a pointwise convolution."""
    last, positions = len(shape_of(node)) - 1, math.prod(shape_of(node)[1:-1])
    inputs, outputs = walk.input_on(node, last), walk.new(node, layer.out_features)
    _layer(walk, node, layer, "linear" if last == 1 else "conv", inputs, outputs, positions)
    return Channels(outputs, last)


def batchnorm(walk: Walk, node: fx.Node, layer: nn.Module) -> Channels:
    """Weights, biases and statistics, one for each channel."""
    flows = walk.input_on(node, 1)
    name = str(node.target)
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, tensor) is not None:
            _for_each(walk, flows, f"{name}.{tensor}")
    return Channels(flows)


def layernorm(walk: Walk, node: fx.Node, layer: nn.LayerNorm) -> Channels:
    """Over the channels only, which lie on the last axis."""
    if len(layer.normalized_shape) > 1:
        raise Unfollowed(f"is a LayerNorm over {tuple(layer.normalized_shape)}")
    last = len(shape_of(node)) - 1
    channels = Channels(walk.input_on(node, last), last)
    _affine(walk, node, layer, channels.flows)
    walk.over_channels[node.name] = channels
    return channels


def rmsnorm(walk: Walk, node: fx.Node, layer: nn.RMSNorm | None) -> Channels:
    """Over the channels only, which lie on the last axis; written out."""
    shape = argument(node, 1, "normalized_shape") if layer is None else layer.normalized_shape
    eps = argument(node, 3, "eps") if layer is None else layer.eps
    last, source = len(shape_of(node)) - 1, walk.source(node)
    if len(shape) > 1:
        raise Unfollowed(f"is a RMSNorm over {tuple(shape)}")
    channels, graph = Channels(walk.input_on(node, last), last), node.graph
    weight: Any = argument(node, 2, "weight")
    with graph.inserting_before(node):
        mean = graph.call_function(torch.mean, (graph.call_function(torch.square, (source,)), -1, True))
        padded = graph.call_function(operator.add, (mean, torch.finfo().eps if eps is None else eps))
        normed = graph.call_function(operator.mul, (source, graph.call_function(torch.rsqrt, (padded,))))
        if layer is not None and layer.weight is not None:
            weight = graph.get_attr(f"{node.target}.weight")
    walk.over_channels[mean.name] = channels
    if weight is None:
        walk.variables.pin(channels.flows)
    else:
        _for_each(walk, channels.flows, str(weight.target))
    node.op, node.target, node.args, node.kwargs = "call_function", operator.mul, (normed, 1 if weight is None else weight), {}
    return channels


def groupnorm(walk: Walk, node: fx.Node, layer: nn.GroupNorm) -> Channels:
    """Whole groups go, but where there is only one."""
    flows = walk.variables.roots(walk.input_on(node, 1))
    group = layer.num_channels // layer.num_groups
    if layer.num_groups > 1:
        if _cuts_groups(walk, flows, group):
            raise Unfollowed("is a GroupNorm with groups across a concatenation")
        walk.variables.restrict(flows, group)
    else:
        walk.over_channels[node.name] = Channels(flows)
    _affine(walk, node, layer, flows)
    return Channels(flows)


def instancenorm(walk: Walk, node: fx.Node, layer: nn.InstanceNorm2d) -> Channels:
    """Weights and biases, one for each channel."""
    if layer.track_running_stats or not layer.affine:
        raise Unfollowed(f"is a InstanceNorm2d {'with statistics' if layer.track_running_stats else 'without parameters'}")
    flows = walk.input_on(node, 1)
    _affine(walk, node, layer, flows)
    return Channels(flows)


def _affine(walk: Walk, node: fx.Node, layer: nn.Module, flows: Flows) -> None:
    """A norm's parameters, one for each channel; where it has none, nothing would say what is left of the channels."""
    parameters = dict(layer.named_parameters(recurse=False))
    if not parameters:
        walk.variables.pin(flows)
    for tensor in parameters:
        _for_each(walk, flows, f"{node.target}.{tensor}")


def prelu(walk: Walk, node: fx.Node, layer: nn.PReLU) -> Channels:
    """A slope for all channels, or one for each."""
    if layer.num_parameters == 1:
        walk.tensors[f"{node.target}.weight"] = (1,)
        return walk.input(node)
    flows = walk.input_on(node, 1)
    _for_each(walk, flows, f"{node.target}.weight")
    return Channels(flows)


def _for_each(walk: Walk, flows: Flows, name: str) -> None:
    """A tensor of so many entries; where it was used before, these are the same channels, or all are kept."""
    (known,) = walk.tensors.setdefault(name, (flows,))
    if isinstance(known, int):
        walk.variables.pin(flows)
    else:
        walk.variables.join(known, flows)


def _layer(
    walk: Walk,
    node: fx.Node,
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear,
    kind: str,
    inputs: Flows | int,
    outputs: Flows,
    taps: int,
    window: tuple[int, ...] = (),
) -> None:
    """Called once more, it reads and makes the same channels as before."""
    name = str(node.target)
    _, before, made, times = walk.layers.get(name, (kind, inputs, outputs, 0))
    walk.variables.join(made, outputs)
    if not isinstance(before, int) and not isinstance(inputs, int):
        walk.variables.join(before, inputs)
    walk.layers[name] = (kind, before, made, times + taps)
    axes = (before, made) if isinstance(layer, nn.ConvTranspose2d) else (made, before)
    walk.tensors[f"{name}.weight"] = (*axes, *window)
    if layer.bias is not None:
        walk.tensors[f"{name}.bias"] = (made,)
