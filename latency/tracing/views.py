"""Rules of what gives the same entries another shape. Sizes that pruning changes are no longer stated."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from latency.graph.shapes import in_groups, still_there
from latency.tracing.channels import Channels, repeated
from latency.tracing.parts import equal_share
from latency.tracing.symbolic import argument, shape_of, state_sizes
from latency.tracing.walk import Unfollowed, Walk, rewrite

Shape = tuple[int, ...]


def reshape(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Flattening, channels in groups and back, and axes of a single entry, whatever it is called."""
    before, after, channels = shape_of(walk.source(node)), shape_of(node), walk.input(node)
    if after == before:
        return channels
    view = next((view for fits, view in VIEWS if fits(before, after, channels.axis)), None)
    if view is not None:
        return view(walk, node, before, after)
    kept = still_there(before, after, channels.axis)
    if kept is None:
        raise Unfollowed(f"reshapes {before} to {after}, channels on axis {channels.axis}")
    return _around(walk, node, kept)


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


def _around(walk: Walk, node: fx.Node, kept: int) -> Channels:
    """All but the channels takes another shape."""
    flows, axis = walk.input(node)
    if node.target in (torch.flatten, "flatten") or isinstance(walk.modules.get(str(node.target)), nn.Flatten):
        return Channels(flows, kept)
    sizes = _stated(node) or [_batch_of(node), *shape_of(node)[1:]]
    with node.graph.inserting_before(node):
        sizes[kept] = node.graph.call_method("size", (walk.source(node), axis))
    rewrite(node, torch.reshape, tuple(sizes))
    return Channels(flows, kept)


def _stated(node: fx.Node) -> list[Any]:
    """The sizes that a reshape is given one by one, as they are for the example but for the batch's; none where it is not."""
    state_sizes(node)
    given: Any = node.kwargs.get("shape", node.args[1:]) if node.target in (torch.reshape, "view", "reshape") else ()
    sizes = list(given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given)
    return sizes if len(sizes) == len(shape_of(node)) else []


def _batch_of(node: fx.Node) -> fx.Node:
    """How many images the last of its tensors holds, which is what the result has first."""
    tensor = [source for source in node.all_input_nodes if shape_of(source) is not None][-1]
    if shape_of(tensor)[0] != shape_of(node)[0]:
        raise Unfollowed("is given its shape as a whole")
    with node.graph.inserting_before(node):
        return node.graph.call_method("size", (tensor, 0))


def _flattened(walk: Walk, node: fx.Node, before: Shape, after: Shape) -> Channels:
    if node.op != "call_module":
        rewrite(node, torch.flatten, len(after) - 1)
    return Channels(repeated(walk.input(node).flows, after[1] // before[1]))


def _grouped(walk: Walk, node: fx.Node, before: Shape, after: Shape) -> Channels:
    share = equal_share(walk, node, node, after[1], 1)
    if len(after) < len(before):  # the single position goes
        with node.graph.inserting_before(node):
            flat = node.graph.call_function(torch.flatten, (walk.source(node), 1))
        node.replace_input_with(walk.source(node), flat)
    rewrite(node, torch.unflatten, 1, (after[1], -1))
    return share._replace(axis=2)


def _ungrouped(walk: Walk, node: fx.Node, before: Shape, after: Shape) -> Channels:
    flows, axis = walk.input(node)
    rewrite(node, torch.flatten, 1, 2)
    return Channels(flows * before[1] if axis == 2 else repeated(flows, before[2]))


def _image(walk: Walk, node: fx.Node, before: Shape, after: Shape) -> Channels:
    rewrite(node, operator.getitem, (slice(None), slice(None), None, None))
    return walk.input(node)


def _row(walk: Walk, node: fx.Node, before: Shape, after: Shape) -> Channels:
    rewrite(node, torch.unsqueeze, 1)
    return Channels(walk.input(node).flows, 2)


def _no_row(walk: Walk, node: fx.Node, before: Shape, after: Shape) -> Channels:
    with node.graph.inserting_before(node):
        flat = node.graph.call_function(torch.squeeze, (walk.source(node), 1))
    flows = walk.input(node).flows
    node.replace_input_with(walk.source(node), flat)
    rewrite(node, operator.getitem, (slice(None), slice(None), *[None] * (len(after) - 2)))
    return Channels(flows)


def _flattens(before: Shape, after: Shape) -> bool:
    """To (N, C · H · W), or (N, C, H · W)."""
    return after[0] == before[0] and (len(after) == 2 or (len(after) == 3 and after[1] == before[1]))


def _takes_from_row(before: Shape, after: Shape) -> bool:
    """(N, 1, C) to (N, C) or (N, C, 1, 1)."""
    return before[1] == 1 and after == (before[0], before[2], *[1] * (len(after) - 2))


VIEWS: tuple[tuple[Callable[[Shape, Shape, int], bool], Callable[[Walk, fx.Node, Shape, Shape], Channels]], ...] = (
    (lambda before, after, axis: axis == 1 and len(before) == 2 and after == (*before, 1, 1), _image),
    (lambda before, after, axis: axis == 1 and len(before) == 2 and after == (before[0], 1, before[1]), _row),
    (lambda before, after, axis: axis == 2 and len(before) == 3 and _takes_from_row(before, after), _no_row),
    (lambda before, after, axis: axis == 1 and in_groups(before, after), _grouped),
    (
        lambda before, after, axis: axis in (1, 2) and len(before) == 5 and after[1:] == (before[1] * before[2], *before[3:]),
        _ungrouped,
    ),
    (lambda before, after, axis: axis == 1 and _flattens(before, after), _flattened),
)
"""What shapes before and after say of a reshape whose input has its channels on an axis; the first that fits."""
