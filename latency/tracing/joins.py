"""Rules of what combines tensors: channels are joined where they are added or multiplied, lined up where concatenated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from latency.tracing.channels import Channels, Flows
from latency.tracing.moves import reduced
from latency.tracing.nodes import argument, counts, listed, number, of_batch, shape_of, state_sizes
from latency.tracing.walk import Unfollowed, Walk, repeats_for_images, rewrite


def join(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Stretch by stretch."""
    state_channel_counts(walk, node)
    rank = len(shape_of(node))
    operands = walk.carriers(node)
    if any(len(shape_of(source)) < rank and source not in walk.constants for source in operands):
        raise Unfollowed("combines tensors of different ranks")
    axis = _common_axis(walk, [source for source in operands if source not in walk.constants])
    places = {source: axis - rank + len(shape_of(source)) for source in operands}  # as they broadcast
    flows = {source: walk.on(node, source, place) for source, place in places.items() if place >= 0}
    joined = [flows[source] for source in flows if shape_of(source)[places[source]] == shape_of(node)[axis]]
    if not joined:
        raise Unfollowed("is wider than what it computes with")
    _line_up_all(walk, node.all_input_nodes, joined[0], axis - rank)
    return Channels(_joined(walk, joined), axis)


def concatenate(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """One after another where it is along the channels, else joined."""
    dim = (argument(node, 1, "dim") or 0) % len(shape_of(node))
    tensors = [one for one in argument(node, 0, "tensors") if one in walk.channels]
    bare = [one for one in argument(node, 0, "tensors") if one not in walk.channels]
    axis = _common_axis(walk, tensors)
    flows = [walk.on(node, tensor, axis) for tensor in tensors]
    if dim != axis:
        _line_up_all(walk, bare, flows[0], axis - len(shape_of(node)))
        return Channels(_joined(walk, flows), axis)
    if bare:
        raise Unfollowed("puts parameters beside channels")
    return Channels(tuple(flow for one in flows for flow in one), axis)


def pad(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Constants before and behind the channels stay, as in shortcuts without weights (He et al. 2016, option A)."""
    flows, axis = walk.input(node)
    given, place = argument(node, 1, "pad"), 2 * (len(shape_of(node)) - 1 - axis)
    if isinstance(given, fx.Node):
        raise Unfollowed("pads as forward() computes")
    amounts = list(given)
    before, behind = (number(one) for one in (amounts[place : place + 2] or (0, 0)))
    if not before and not behind:
        return Channels(flows, axis)
    if min(before, behind) < 0 or argument(node, 2, "mode") not in (None, "constant"):
        raise Unfollowed("changes the number of channels")
    amounts[place : place + 2] = before, behind  # whatever they were computed from
    value = argument(node, 3, "value")
    node.args, node.kwargs = (walk.source(node), tuple(amounts), "constant", value), {}
    first, last = ([walk.variables.new(size, node.name, fixed=True)] if size else [] for size in (before, behind))
    return Channels((*first, *flows, *last), axis)


def extreme(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """The larger or smaller of two tensors; or the largest along an axis, and where it is."""
    if isinstance(argument(node, 1, "other"), fx.Node):
        return join(walk, node, module)
    dim = argument(node, 1, "dim")
    if not isinstance(dim, int) or node.target in (torch.min, "min"):
        raise Unfollowed("takes the largest of all, or the smallest")
    walk.parts[node] = reduced(walk, node, dim, tuple(node.meta["tensor_meta"][0].shape))
    return Channels(())


def stack(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """The same channels, side by side along a new axis."""
    tensors, dim = argument(node, 0, "tensors"), (argument(node, 1, "dim") or 0) % len(shape_of(node))
    axis = _common_axis(walk, tensors)
    return Channels(_joined(walk, [walk.on(node, tensor, axis) for tensor in tensors]), axis + (dim <= axis))


def state_channel_counts(walk: Walk, node: fx.Node) -> None:
    """A number that how many channels there are tells, as a scale may be, is what it is at full width."""
    counted = [one for one in node.all_input_nodes if counts(one, walk.is_channels)]
    if any(map(of_batch, counted)):
        raise Unfollowed("computes with how many channels and images there are")
    for one in counted:
        node.replace_input_with(one, number(one))


def _common_axis(walk: Walk, operands: Sequence[fx.Node]) -> int:
    """On which they carry their channels: the first of them that may be pruned."""
    free = [source for source in operands if not walk.variables.all_fixed(walk.channels[source].flows)]
    return walk.channels[(free or operands)[0]].axis


def _joined(walk: Walk, flows: Sequence[Flows]) -> Flows:
    """All of them as one."""
    for other in flows[1:]:
        walk.variables.join(flows[0], other)
    return flows[0]


def _line_up_all(walk: Walk, sources: Sequence[fx.Node], flows: Flows, axis: int) -> None:
    """All those among `sources` that are bare parameters, whatever their shape."""
    for source in sources:
        bare = walk.bare(source)
        if bare:
            _line_up(walk, bare, source, flows, axis)


def _line_up(walk: Walk, bare: fx.Node, shaped: fx.Node, flows: Flows, axis: int) -> None:
    """A bare parameter has the channels of what it is combined with, `shaped` as it is then, where it has an entry for
    each, on that `axis` (below 0: from the last on). Beside a buffer all of them stay."""
    name, shape = str(bare.target), shape_of(shaped)
    wide = len(shape) + axis >= 0 and shape[axis] > 1
    if name not in walk.parameters:
        if wide and not walk.variables.all_fixed(flows):
            walk.unfollowed.append(f"buffer '{name}' has an entry for each channel, and is not trained")
        walk.variables.pin(flows if wide else ())
        return
    sizes: list[Flows | int] = list(shape_of(bare))
    if wide and (shaped is bare or repeats_for_images(shaped)):
        sizes[axis] = flows
        _state_no_channels(shaped, axis)
    elif wide:
        sizes[sizes.index(shape[axis])] = flows
        shaped.replace_input_with(shaped.all_input_nodes[0], bare)
        rewrite(shaped, torch.reshape, (*shape[:axis], -1, *shape[len(shape) + axis + 1 :]))
    if walk.tensors.setdefault(name, tuple(sizes)) != tuple(sizes):  # used elsewhere, with other channels
        walk.kept_bare(bare)
        walk.variables.pin(flows)


def _state_no_channels(shaped: fx.Node, axis: int) -> None:
    """Where a parameter is repeated for every image, have as many channels come out as go in."""
    if shaped.target == "expand":
        state_sizes(shaped)
        sizes = list(listed(shaped, "size"))
        sizes[axis] = -1
        shaped.args = (shaped.args[0], *sizes)
