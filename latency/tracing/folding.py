"""Channels that are folded in with the images, as MobileViT cuts patches, get an axis of their own again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from latency.graph import operations
from latency.tracing.moves import order
from latency.tracing.nodes import listed, of_batch, shape_of
from latency.tracing.walk import rewrite

TURNS = operations.TRANSPOSING_FUNCTIONS | operations.PERMUTING_FUNCTIONS | {"contiguous"}


def unfold(graph: fx.Graph) -> None:
    """Reshape to [N, C, k, …] what is reshaped to [N · C · k, …] and only turned before it is reshaped again: entries lie in
    memory as before."""
    folded = [(node, between) for node in graph.nodes if _folds(node) and (between := _between(node)) is not None]
    for node, between in folded:
        images, channels, *_ = shape_of(node.all_input_nodes[0])
        after, sizes = shape_of(node), listed(node, "shape")
        with graph.inserting_before(node):
            batch = graph.call_method("size", (node.all_input_nodes[0], 0))
        batch.meta["number"] = images
        apart = (channels, after[0] // (images * channels))
        orders = [[0, 1, 2, *(axis + 2 for axis in _order(one)[1:])] for one in between]
        rewrite(node, torch.reshape, (batch, *apart, *sizes[1:]))
        _is_of(node, (images, *apart, *after[1:]))
        for one, axes in zip(between, orders, strict=True):
            before = shape_of(one.all_input_nodes[0])
            if one.target != "contiguous":
                rewrite(one, torch.permute, axes)
            _is_of(one, [before[axis] for axis in axes])


def _is_of(node: fx.Node, shape: Sequence[int]) -> None:
    node.meta["tensor_meta"] = node.meta["tensor_meta"]._replace(shape=torch.Size(shape))


def _folds(node: fx.Node) -> bool:
    """Whether its first axis is made of the images and all channels of each."""
    if node.target not in operations.SHAPING_FUNCTIONS:
        return False
    before, after, sizes = shape_of(node.all_input_nodes[0]), shape_of(node), listed(node, "shape")
    if len(before) < 3 or len(sizes) != len(after) or before[1] == 1:
        return False
    counted = sizes[0] == -1 or (isinstance(sizes[0], fx.Node) and of_batch(sizes[0]))
    return counted and after[0] % (before[0] * before[1]) == 0


def _between(node: fx.Node) -> list[fx.Node] | None:
    """All nodes until each is reshaped again, which turn other axes than the first; None where anything else is done."""
    found: list[fx.Node] = []
    for user in node.users:
        if user.target in operations.SHAPING_FUNCTIONS:
            continue
        after = _between(user) if user.target in TURNS and _order(user)[0] == 0 else None
        if after is None:
            return None
        found += [user, *after]
    return found


def _order(node: fx.Node) -> list[int]:
    return list(range(len(shape_of(node)))) if node.target == "contiguous" else order(node)
