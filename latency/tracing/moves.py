"""Rules of what passes all channels on, on the same axis or another."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from latency.tracing.channels import Channels, Flow
from latency.tracing.parts import stretch
from latency.tracing.symbolic import argument, shape_of
from latency.tracing.walk import Unfollowed, Walk, rewrite


def passed(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Whatever treats all channels alike."""
    return walk.input(node)


def pool(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Windows over positions, of as many channels."""
    channels = walk.input(node)
    if channels.axis != 1:
        raise Unfollowed(f"takes axis 1 for the channels, which lie on axis {channels.axis}")
    if shape_of(node)[1] != shape_of(walk.source(node))[1]:
        raise Unfollowed("changes the number of channels")
    return channels


def reduce(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """A mean or sum over positions."""
    channels, rank = walk.input(node), len(shape_of(walk.source(node)))
    given = argument(node, 1, "dim")
    dims = {dim % rank for dim in ((given,) if isinstance(given, int) else given or ())}
    if not dims or dims & {0, channels.axis}:
        raise Unfollowed("reduces over the batch or the channels")
    gone = 0 if len(shape_of(node)) == rank else sum(dim < channels.axis for dim in dims)
    return Channels(channels.flows, channels.axis - gone)


def permute(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Channels go where their axis goes."""
    order: Any = node.kwargs.get("dims", node.args[1:])
    order = order[0] if len(order) == 1 else order
    channels, rank = walk.input(node), len(shape_of(node))
    return Channels(channels.flows, [dim % rank for dim in order].index(channels.axis))


def transpose(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """The same, of two axes."""
    channels, rank = walk.input(node), len(shape_of(node))
    one, other = (argument(node, place, f"dim{place - 1}") % rank for place in (1, 2))
    return Channels(channels.flows, {one: other, other: one}.get(channels.axis, channels.axis))


def squeeze(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """An axis that is not theirs goes."""
    channels, rank = walk.input(node), len(shape_of(walk.source(node)))
    dim = argument(node, 1, "dim")
    if not isinstance(dim, int) or dim % rank in (0, channels.axis):
        raise Unfollowed("squeezes the batch or the channels")
    gone = len(shape_of(node)) < rank and dim % rank < channels.axis
    return Channels(channels.flows, channels.axis - gone)


def unsqueeze(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """An axis is added."""
    channels = walk.input(node)
    added = argument(node, 1, "dim") % len(shape_of(node))
    return Channels(channels.flows, channels.axis + (added <= channels.axis))


def index(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Whatever leaves all channels as they are: steps over positions, new axes."""
    channels, shape = walk.input(node), shape_of(walk.source(node))
    taken = _spelt_out(node.args[1], len(shape))
    place = [position for position, one in enumerate(taken) if one is not None][channels.axis]
    plain = all(one is None or isinstance(one, int | slice) for one in taken)
    if not plain:
        raise Unfollowed("calls getitem")
    if not _takes_all(taken[place], shape[channels.axis]):
        return stretch(walk, node, *_bounds(taken, place, shape), channels.axis)
    return Channels(channels.flows, sum(not isinstance(one, int) for one in taken[:place]))


def reshape(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Flattening to (N, C·H·W) or (N, C, H·W), and (N, C) back to (N, C, 1, 1), whatever it is called."""
    before, after = shape_of(walk.source(node)), shape_of(node)
    channels = walk.input(node)
    if after == before:
        return channels
    if channels.axis != 1:
        raise Unfollowed(f"reshapes {before} to {after}, channels on axis {channels.axis}")
    if after == (*before, 1, 1):
        rewrite(node, operator.getitem, (slice(None), slice(None), None, None))
        return channels
    if after[:1] != before[:1] or (len(after) != 2 and not (len(after) == 3 and after[1] == before[1])):
        raise Unfollowed(f"reshapes {before} to {after}")
    if node.op != "call_module":
        rewrite(node, torch.flatten, len(after) - 1)
    times = after[1] // before[1]
    return Channels(tuple(Flow(flow.variable, flow.per_channel * times) for flow in channels.flows))


def _spelt_out(index: Any, rank: int) -> tuple[Any, ...]:
    """What indexes a tensor of so many axes, with a slice for each axis it does not mention."""
    index = index if isinstance(index, tuple) else (index,)
    place = next((position for position, one in enumerate(index) if one is ...), len(index))
    before, after = index[:place], index[place + 1 :]
    mentioned = sum(one is not None for one in (*before, *after))
    return (*before, *[slice(None)] * (rank - mentioned), *after)


def _bounds(index: Sequence[Any], place: int, shape: Sequence[int]) -> tuple[int, int]:
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
