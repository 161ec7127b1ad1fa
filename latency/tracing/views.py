"""Rules of what gives the same entries another shape. Sizes that pruning changes are no longer stated."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from latency.graph import operations
from latency.graph.shapes import Reshaped, reshaped
from latency.tracing.channels import Channels, repeated
from latency.tracing.nodes import argument, listed, shape_of, state_sizes
from latency.tracing.parts import MOST_PARTS, equal_share
from latency.tracing.walk import Unfollowed, Walk, rewrite


def reshape(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Flattening, positions in a row or in windows, channels in groups or heads and back, axes of a single entry, whatever it
    is called."""
    before, after, channels = shape_of(walk.source(node)), shape_of(node), walk.input(node)
    if after == before:
        return channels
    if channels.axis == 0 and walk.variables.all_fixed(channels.flows):  # of scores
        state_sizes(node)
        return channels
    view = reshaped(before, after, channels.axis)
    if view is None:
        raise Unfollowed(f"reshapes {before} to {after}, channels on axis {channels.axis}")
    if view.parts > 1 and before == (*after[: channels.axis], before[channels.axis], *after[view.place + 1 :]):
        return _taken_apart(walk, node, view)
    flows = walk.variables.equal_parts(channels.flows, view.parts)
    if flows is None or view.times > MOST_PARTS:
        raise Unfollowed("cuts through channels, or repeats them too often")
    _state_shape(walk, node, module, view)
    return Channels(repeated(flows, view.each) * view.times, view.place)


def _taken_apart(walk: Walk, node: fx.Node, view: Reshaped) -> Channels:
    """Channels in groups or heads, and nothing else changes."""
    axis = walk.input(node).axis
    share = equal_share(walk, node, node, view.parts, axis)
    rewrite(node, torch.unflatten, axis, (*shape_of(node)[axis : view.place], -1))
    return Channels(share.flows, view.place)


def shuffle(walk: Walk, node: fx.Node, module: Any) -> Channels:
    """The first channel of each group, then the second of each, and so on; written out."""
    groups: Any = argument(node, 1, "groups") if module is None else module.groups
    with node.graph.inserting_before(node):
        grouped = node.graph.call_function(torch.unflatten, (walk.source(node), 1, (groups, -1)))
        turned = node.graph.call_function(torch.transpose, (grouped, 1, 2))
    part = equal_share(walk, node, grouped, groups, 1)
    node.replace_input_with(walk.source(node), turned)
    rewrite(node, torch.flatten, 1, 2)
    return Channels(repeated(part.flows, groups))


def pixel_shuffle(walk: Walk, node: fx.Node, module: Any) -> Channels:
    """Consecutive channels become positions of one."""
    before, after = shape_of(walk.source(node)), shape_of(node)
    flows = walk.variables.grouped(walk.input_on(node, 1), before[1] // after[1])
    if flows is None:
        raise Unfollowed("makes one channel of parts of others")
    return Channels(flows)


def pixel_unshuffle(walk: Walk, node: fx.Node, module: Any) -> Channels:
    """Positions become consecutive channels."""
    before, after = shape_of(walk.source(node)), shape_of(node)
    return Channels(repeated(walk.input_on(node, 1), after[1] // before[1]))


def _state_shape(walk: Walk, node: fx.Node, module: nn.Module | None, view: Reshaped) -> None:
    """Have it give the channels' axis the length that their number leads to; what merely flattens does so anyway."""
    if node.target in (torch.flatten, "flatten") or isinstance(module, nn.Flatten):
        return
    sizes = _stated(node) or [_batch_of(node), *shape_of(node)[1:]]
    with node.graph.inserting_before(node):
        size = node.graph.call_method("size", (walk.source(node), walk.input(node).axis))
        if view.parts > 1:
            size = node.graph.call_function(operator.floordiv, (size, view.parts))
        if view.times * view.each > 1:
            size = node.graph.call_function(operator.mul, (size, view.times * view.each))
    sizes[view.place] = size
    rewrite(node, torch.reshape, tuple(sizes))


def _stated(node: fx.Node) -> list[Any]:
    """The sizes that a reshape is given one by one, as they are for the example but for the batch's; none where it is not."""
    state_sizes(node)
    sizes = list(listed(node, "shape")) if node.target in operations.SHAPING_FUNCTIONS else []
    return sizes if len(sizes) == len(shape_of(node)) else []


def _batch_of(node: fx.Node) -> fx.Node:
    """How many images the last of its tensors holds, which is what the result has first."""
    tensor = [source for source in node.all_input_nodes if shape_of(source) is not None][-1]
    if shape_of(tensor)[0] != shape_of(node)[0]:
        raise Unfollowed("is given its shape as a whole")
    with node.graph.inserting_before(node):
        return node.graph.call_method("size", (tensor, 0))
