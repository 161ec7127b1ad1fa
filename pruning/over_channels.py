"""What computes over channels, of structures whose pruned channels are still there, as zeros: as if only those kept were."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

LARGEST = frozenset({"amax", "max"})


def prepared(node: fx.Node, x: Tensor, kept: Tensor, place: int) -> Tensor:
    """What `node` makes the same of as of those entries of `x` alone that are `kept`.

    Args:
        kept: 1 and 0, float[C], along the axis of x at that `place`.
    """
    arguments: Any = node.args
    if node.target is torch.chunk:
        return _regrouped(x, kept, place, arguments[1])
    if node.target is torch.unflatten:
        return _regrouped(x, kept, place, math.prod(arguments[2][:-1]))
    mask = kept.view(-1, *[1] * (x.dim() - place - 1))
    name = "" if node.op == "call_module" else getattr(node.target, "__name__", node.target)
    if name in LARGEST:
        return torch.where(mask > 0, x, -math.inf)
    return x * (mask * (len(kept) / kept.sum()) if name == "mean" else mask).to(x.dtype)


def _regrouped(x: Tensor, kept: Tensor, place: int, count: int) -> Tensor:
    """So many equal parts, of each its share of the kept entries, which are the first, and then anything."""
    share = kept.sum().long() // count
    first = torch.arange(count, device=x.device)[:, None] * share
    entries = first + torch.arange(len(kept) // count, device=x.device)
    return x.index_select(place, entries.clamp(max=len(kept) - 1).flatten())


def normalised(
    norm: nn.LayerNorm | nn.GroupNorm, x: Tensor, kept: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """LayerNorm over the channels of `x`, or GroupNorm of one group, as if only those `kept` (1 in [C], not 0) were there."""
    over_all = isinstance(norm, nn.GroupNorm)
    axes, shape = (list(range(1, x.dim())), (-1, *[1] * (x.dim() - 2))) if over_all else ([-1], (-1,))
    kept = kept.view(shape)
    count = kept.sum() * (x[0, 0].numel() if over_all else 1)
    x = x.to(torch.promote_types(x.dtype, kept.dtype)) * kept
    centred = (x - x.sum(axes, keepdim=True) / count) * kept
    result = centred * (centred.square().sum(axes, keepdim=True) / count + norm.eps).rsqrt()
    result = result if weight is None else result * weight.view(shape)
    return result if bias is None else result + bias.view(shape)
