"""What the nodes of a graph say: arguments, shapes, and numbers, which pruning or another batch may change."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx
from torch.fx.node import map_arg


def number(value: Any) -> Any:
    """What a node is that is a plain number; all else as it is."""
    return value.meta.get("number", value) if isinstance(value, fx.Node) else value


def state_sizes(node: fx.Node) -> None:
    """Where a call is given sizes that forward() computes, they are what they are for the example, but for the batch's."""
    node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda one: one if of_batch(one) else number(one))


def of_batch(size: fx.Node) -> bool:
    """Whether how many images there are tells a number."""
    return counts(size, lambda tensor, axis: axis == 0)


def counts(size: fx.Node, wanted: Callable[[fx.Node, int], bool]) -> bool:
    """Whether the length of a tensor along a `wanted` axis tells a number."""
    if "number" not in size.meta:
        return False
    tensor, axes = _asked(size)
    if tensor is None:
        return any(counts(source, wanted) for source in size.all_input_nodes)
    return any(wanted(tensor, axis) for axis in axes)


def _asked(size: fx.Node) -> tuple[fx.Node | None, Sequence[int]]:
    """The tensor whose lengths a node gives, and along which axes; None where it gives something else."""
    tensor: fx.Node | None
    if size.target in ("size", "numel") or (size.target is getattr and size.args[1] == "shape"):
        tensor, place = size.all_input_nodes[0], argument(size, 1, "dim") if size.target == "size" else None
        axes: Any = range(len(shape_of(tensor)))
    elif size.target is operator.getitem:
        (tensor, axes), place = _asked(size.all_input_nodes[0]), size.args[1]
    else:
        return None, ()
    picked = axes if place is None or tensor is None else axes[place]
    return tensor, picked if isinstance(picked, range) else (picked,)


def argument(node: fx.Node, place: int, name: str) -> Any:
    """What a call gives at that place, or by name; None where it gives neither."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def listed(node: fx.Node, name: str) -> Any:
    """What a call gives after its input, by name, as one list, or one by one."""
    given: Any = node.kwargs.get(name, node.args[1:])
    return given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given


def shape_of(node: fx.Node) -> Any:
    """The node's tensor shape; () for several tensors at once; None for a plain number or size."""
    meta = node.meta.get("tensor_meta")
    if meta is None:
        return None
    return tuple(meta.shape) if hasattr(meta, "shape") else ()
