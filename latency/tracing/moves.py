"""Rules of what passes all channels on, on the same axis or another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from latency.graph import operations
from latency.tracing.channels import Channels
from latency.tracing.nodes import argument, listed, number, shape_of
from latency.tracing.parts import stretch
from latency.tracing.walk import Unfollowed, Walk


def passed(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Whatever treats all channels alike."""
    return walk.input(node)


def softmax(walk: Walk, node: fx.Node, module: Any) -> Channels:
    """Over another axis than the channels', or over the scores of the network, which are kept anyway."""
    dim, channels = argument(node, 1, "dim") if module is None else module.dim, walk.input(node)
    elsewhere = isinstance(dim, int) and dim % len(shape_of(node)) != channels.axis
    if not elsewhere and any(user.op != "output" for user in node.users):
        raise Unfollowed("normalises over the channels")
    return channels


def pool(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Windows over positions, of as many channels."""
    channels = walk.input(node)
    if channels.axis != 1:
        raise Unfollowed(f"takes axis 1 for the channels, which lie on axis {channels.axis}")
    if shape_of(node)[1] != shape_of(walk.source(node))[1]:
        raise Unfollowed("changes the number of channels")
    return channels


def reduce(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """A mean, a sum or the largest, over positions or over all channels."""
    return reduced(walk, node, argument(node, 1, "dim"), shape_of(node))


def spread(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """A deviation over positions, or a norm, in which zeros count for nothing, over channels too."""
    is_norm = node.target in (torch.norm, "norm")
    given = argument(node, 2 if is_norm else 1, "dim")
    if walk.input(node).axis in _dims(walk, node, given) and not is_norm:
        raise Unfollowed("measures how far channels spread")
    return reduced(walk, node, given, shape_of(node))


def reduced(walk: Walk, node: fx.Node, given: Any, shape: Sequence[int]) -> Channels:
    """What `node` makes of its input, of this shape, when it reduces over the `given` axes."""
    channels, rank, dims = walk.input(node), len(shape_of(walk.source(node))), _dims(walk, node, given)
    if not dims or (0 in dims and (len(shape) == rank or channels.axis < 2)):  # what is stacked before the batch may go
        raise Unfollowed("reduces over the batch")
    if len(shape) < 2:
        raise Unfollowed("leaves nothing that has channels")
    if channels.axis in dims:
        walk.over_channels[node.name] = channels
        return Channels((walk.variables.new(shape[1], node.name, fixed=True),))
    gone = 0 if len(shape) == rank else sum(dim < channels.axis for dim in dims)
    return Channels(channels.flows, channels.axis - gone)


def _dims(walk: Walk, node: fx.Node, given: Any) -> set[int]:
    """Axes of the input of `node`, given as one or several, counted from the first or the last on."""
    rank = len(shape_of(walk.source(node)))
    return {dim % rank for dim in ((given,) if isinstance(given, int) else given or ())}


def permute(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Channels go where their axis goes."""
    channels = walk.input(node)
    return Channels(channels.flows, order(node).index(channels.axis))


def order(node: fx.Node) -> list[int]:
    """Which axis of its input each axis is of what permutes them, lets two change places, or moves one, those between making
    room.

    Raises:
        Unfollowed: it moves several.
    """
    axes = list(range(len(shape_of(node))))
    if node.target in operations.PERMUTING_FUNCTIONS:
        return [axes[dim] for dim in listed(node, "dims")]
    given: Any = (*node.args[1:], *node.kwargs.values())  # by whatever names
    if not all(isinstance(dim, int) for dim in given):
        raise Unfollowed("moves several axes")
    one, other = (axes[dim] for dim in given)
    if node.target in operations.MOVING_FUNCTIONS:
        axes.remove(one)
        axes.insert(other, one)
    else:
        axes[one], axes[other] = other, one
    return axes


def expand(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Repeated to the shape of what it is then combined into: left out, since that repeats it anyway."""
    expanding = operations.EXPANDING_FUNCTIONS
    for user in node.users:
        operands = [one for one in user.all_input_nodes if shape_of(one) is not None]
        shapes = [shape_of(one.all_input_nodes[0] if one.target in expanding else one) for one in operands]
        if user.target not in operations.JOINING_FUNCTIONS or torch.broadcast_shapes(*shapes) != shape_of(node):
            raise Unfollowed("repeats channels or positions")
    node.replace_all_uses_with(walk.source(node))
    return walk.input(node)


def turn(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Positions change places: flipped, or rolled by some."""
    given: Any = argument(node, 2, "dims") if node.target in (torch.roll, "roll") else listed(node, "dims")
    if given is None or walk.input(node).axis in _dims(walk, node, given):
        raise Unfollowed("turns the channels round")
    return walk.input(node)


def normalize(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Divided by its norm, written out: what is pruned would count for nothing in it."""
    given = {"p": 2.0, "dim": 1, "eps": 1e-12} | dict(zip(("p", "dim", "eps"), node.args[1:], strict=False)) | node.kwargs
    source, channels = walk.source(node), walk.input(node)
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(torch.norm, (source, given["p"], given["dim"], True))
        divisor = node.graph.call_function(torch.clamp_min, (norm, given["eps"]))
    if channels.axis in _dims(walk, node, given["dim"]):
        walk.over_channels[norm.name] = channels
    node.target, node.args, node.kwargs = torch.div, (source, divisor), {}
    return channels


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
    axis = sum(not isinstance(one, int) for one in taken[:place])
    if axis == 0:
        raise Unfollowed("takes one of the images")
    return Channels(channels.flows, axis)


def _spelt_out(index: Any, rank: int) -> tuple[Any, ...]:
    """What indexes a tensor of so many axes, with a slice for each axis it does not mention; bounds that forward() computes
    from sizes are what they are for the example."""
    index = tuple(map(_known, index if isinstance(index, tuple) else (index,)))
    place = next((position for position, one in enumerate(index) if one is ...), len(index))
    before, after = index[:place], index[place + 1 :]
    mentioned = sum(one is not None for one in (*before, *after))
    return (*before, *[slice(None)] * (rank - mentioned), *after)


def _known(index: Any) -> Any:
    return slice(*map(number, (index.start, index.stop, index.step))) if isinstance(index, slice) else index


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
