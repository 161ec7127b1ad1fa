"""Rules of what takes a part of the channels: they are cut into equal parts, which shrink alike from then on."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from latency.tracing.channels import Channels
from latency.tracing.nodes import argument, number, shape_of
from latency.tracing.walk import Unfollowed, Walk, rewrite

MOST_PARTS = 128
"""Equal parts of which unequal ones are made, or heads that lie one after another."""


def split(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Parts stay equal, whatever way of splitting was used. Unequal ones are made of equal ones."""
    dim = (argument(node, 2, "dim") or 0) % len(shape_of(walk.source(node)))
    sizes = [part.shape[dim] for part in node.meta["tensor_meta"]]
    if dim != walk.input(node).axis:
        walk.parts[node] = walk.input(node)
        return Channels(())
    unequal = len(set(sizes)) > 1
    if unequal and not (all(sizes) and all(map(picks, node.users))):
        raise Unfollowed("splits into unequal parts")
    count, made_of = _in_equal_parts(sizes)
    walk.parts[node] = equal_share(walk, node, node, count, dim)
    for user in list(node.users) if unequal else ():
        index: Any = user.args[1]
        _regroup(walk, user, node, made_of[index], dim)
    rewrite(node, torch.chunk, count, dim)
    return Channels(())


def stretch(walk: Walk, node: fx.Node, start: int, stop: int, dim: int) -> Channels:
    """A stretch of the channels is made of equal parts of all of them."""
    size = shape_of(walk.source(node))[dim]
    count, made_of = _in_equal_parts([start, stop - start, size - stop])
    with node.graph.inserting_before(node):
        parts = node.graph.call_function(torch.chunk, (walk.source(node), count, dim))
    part = equal_share(walk, node, parts, count, dim)
    _regroup(walk, node, parts, made_of[1], dim)
    return Channels(part.flows * len(made_of[1]), dim)


def narrow(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """The same, told where it begins and how long it is; or a stretch of positions."""
    dim, start, length = (number(argument(node, place, name)) for place, name in ((1, "dim"), (2, "start"), (3, "length")))
    dim %= len(shape_of(node))
    return stretch(walk, node, start, start + length, dim) if dim == walk.input(node).axis else walk.input(node)


def unbind(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """All that lies along an axis that is not the channels', each by itself."""
    channels, dim = walk.input(node), (argument(node, 1, "dim") or 0) % len(shape_of(walk.source(node)))
    if dim == channels.axis:
        raise Unfollowed("takes the channels one by one")
    walk.parts[node] = Channels(channels.flows, channels.axis - (dim < channels.axis))
    return Channels(())


def glu(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """A half, gated by the other."""
    dim: Any = argument(node, 1, "dim") if module is None else module.dim
    return _equal_part(walk, node, 2, (-1 if dim is None else dim) % len(shape_of(node)))


def equal_share(walk: Walk, node: fx.Node, divider: fx.Node, count: int, dim: int) -> Channels:
    """One of so many equal parts of what `node` reads, as `divider` makes them. After a channel shuffle every part holds some
    entries of each channel: then all shares shrink with the channels, whichever of them lie where."""
    channels = walk.input(node)
    share = walk.variables.dealt(channels.flows, count) if dim == channels.axis else None
    if share is None:
        return _equal_part(walk, node, count, dim)
    walk.over_channels[divider.name] = channels
    return Channels(share, dim)


def _equal_part(walk: Walk, node: fx.Node, count: int, dim: int) -> Channels:
    channels = walk.input(node)
    if dim != channels.axis:
        return channels
    part = walk.variables.equal_parts(channels.flows, count)
    if part is None:
        raise Unfollowed("splits in the middle of a channel")
    return Channels(part, dim)


def _regroup(walk: Walk, node: fx.Node, parts: fx.Node, places: range, dim: int) -> None:
    """Make `node` one of `parts`, or the concatenation of some."""
    node.op, node.kwargs = "call_function", {}
    if len(places) == 1:
        node.target, node.args = operator.getitem, (parts, places[0])
        return
    whole = node.meta["tensor_meta"]
    shape = list(whole.shape)
    shape[dim] //= len(places)
    with node.graph.inserting_before(node):
        pieces = [node.graph.call_function(operator.getitem, (parts, place)) for place in places]
    for piece in pieces:
        piece.meta = node.meta | {"tensor_meta": whole._replace(shape=torch.Size(shape))}
    node.target, node.args = torch.cat, (pieces, dim)


def picks(node: fx.Node) -> bool:
    """Whether it is one of several tensors."""
    if node.target is getattr:
        return bool(node.args[1] == "values")  # of torch.max
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _in_equal_parts(sizes: Sequence[int]) -> tuple[int, list[range]]:
    """How many equal parts make stretches of such sizes, one after another, and which of them make each."""
    size = math.gcd(*sizes)
    if size == 1 or sum(sizes) // size > MOST_PARTS:
        raise Unfollowed(f"splits into parts of {', '.join(map(str, filter(None, sizes)))}")
    ends = [end // size for end in itertools.accumulate(sizes, initial=0)]
    return ends[-1], [range(*one) for one in itertools.pairwise(ends)]
