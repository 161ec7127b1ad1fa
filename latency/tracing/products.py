"""Rules of products of two computed tensors, as in attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from latency.graph.shapes import product_axis
from latency.tracing.channels import Channels
from latency.tracing.joins import state_channel_counts
from latency.tracing.nodes import argument, shape_of
from latency.tracing.walk import Unfollowed, Walk


def product(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Channels that are summed over are the same in both factors; those of one factor are the product's, and of channels in
    both only the second's columns may go."""
    rank, factors = len(shape_of(node)), walk.carriers(node)
    if len(factors) < 2 or any(len(shape_of(one)) != rank for one in factors):
        raise Unfollowed("multiplies by a matrix of another kind")
    found = product_axis([walk.channels[one].axis - rank for one in factors], rank)
    if found is None:
        _sum_over(walk, node, node, (factors[0], rank - 1), (factors[1], rank - 2))
        return walk.scores(node)
    source, axis = found
    _keep(walk, node, factors[1 - source])
    return walk.channels[factors[source]]._replace(axis=axis)


def attention(walk: Walk, node: fx.Node, module: nn.Module | None) -> Channels:
    """Those of the values; queries' and keys' are summed over. It is scaled by what it is scaled by at full width, and written
    out where PyTorch exports it badly or not at all: with a mask, or where there are not four axes."""
    given: Any = [argument(node, place, name) for place, name in enumerate(("query", "key", "value", "attn_mask"))]
    query, key, value, mask = given
    state_channel_counts(walk, node)
    last = len(shape_of(node)) - 1
    if node.kwargs.get("enable_gqa") or argument(node, 5, "is_causal"):
        raise Unfollowed("shares keys among heads, or looks back only")
    if mask in walk.channels:
        _keep(walk, node, mask)
    scale: Any = node.kwargs.get("scale") or 1 / math.sqrt(shape_of(query)[last])
    plain = mask is None and last == 3
    summing = node if plain else _written_out(node, query, key, value, mask, scale)
    node.kwargs = node.kwargs | {"scale": scale} if plain else {}
    _sum_over(walk, node, summing, (query, last), (key, last))
    return Channels(walk.on(node, value, last), last)


def _written_out(node: fx.Node, query: fx.Node, key: fx.Node, value: fx.Node, mask: Any, scale: float) -> fx.Node:
    """`node` as products and a softmax; what sums over the queries' channels."""
    call = node.graph.call_function
    with node.graph.inserting_before(node):
        product = call(torch.matmul, (query, call(torch.transpose, (key, -2, -1))))
        scores = call(torch.mul, (product, scale))
        if mask is not None and mask.meta["tensor_meta"].dtype == torch.bool:
            mask = call(torch.where, (mask, 0.0, -math.inf))
        scores = scores if mask is None else call(torch.add, (scores, mask))
        weights = call(torch.softmax, (scores, -1))
    node.target, node.args = torch.matmul, (weights, value)
    return product


def _sum_over(walk: Walk, node: fx.Node, summing: fx.Node, *factors: tuple[fx.Node, int]) -> None:
    """The same channels in both factors, along an axis of each; what `summing` does for `node`."""
    one, other = (walk.on(node, *factor) for factor in factors)
    walk.variables.join(one, other)
    walk.over_channels[summing.name] = Channels(one, factors[0][1])


def _keep(walk: Walk, node: fx.Node, source: fx.Node) -> None:
    """What meets channels here that are not its own loses none."""
    flows = walk.channels[source].flows
    if not walk.variables.all_fixed(flows):
        walk.unfollowed.append(f"{walk.owner(node)} multiplies channels by other channels")
    walk.variables.pin(flows)
