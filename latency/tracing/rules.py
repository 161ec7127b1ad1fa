"""Which rule says what a layer or an operation does to channels.

A rule is given the walk so far, a node, and the module that the node calls, if any; it returns the channels of what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from latency.graph import operations
from latency.tracing import joins, layers, moves, parts, products, views
from latency.tracing.channels import Channels
from latency.tracing.walk import Unfollowed, Walk

Rule = Callable[[Walk, fx.Node, Any], Channels]

OF_MODULES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Rule], ...] = (
    (nn.Conv2d, layers.conv),
    (nn.ConvTranspose2d, layers.conv_transpose),
    (nn.Conv1d, layers.conv1d),
    (nn.Linear, layers.linear),
    (nn.BatchNorm2d, layers.batchnorm),
    (nn.BatchNorm1d, layers.batchnorm),
    (nn.LayerNorm, layers.layernorm),
    (nn.RMSNorm, layers.rmsnorm),
    (nn.GroupNorm, layers.groupnorm),
    (nn.InstanceNorm2d, layers.instancenorm),
    (nn.PReLU, layers.prelu),
    ((nn.Flatten, nn.Unflatten), views.reshape),
    (nn.ChannelShuffle, views.shuffle),
    (nn.PixelShuffle, views.pixel_shuffle),
    (nn.PixelUnshuffle, views.pixel_unshuffle),
    (nn.GLU, parts.glu),
    ((nn.Softmax, nn.LogSoftmax), moves.softmax),
    (operations.POINTWISE_MODULES, moves.passed),
    (operations.POOLING_MODULES, moves.pool),
)

OF_FUNCTIONS: tuple[tuple[frozenset[Callable[..., object] | str], Rule], ...] = (
    (operations.POINTWISE_FUNCTIONS, moves.passed),
    (operations.POOLING_FUNCTIONS, moves.pool),
    (operations.PADDING_FUNCTIONS, joins.pad),
    (operations.JOINING_FUNCTIONS, joins.join),
    (operations.REDUCING_FUNCTIONS, moves.reduce),
    (operations.SPREAD_FUNCTIONS, moves.spread),
    (operations.EXTREME_FUNCTIONS, joins.extreme),
    (frozenset({F.conv2d}), layers.blur),
    (frozenset({F.rms_norm}), layers.rmsnorm),
    (frozenset({F.channel_shuffle}), views.shuffle),
    (frozenset({F.pixel_shuffle}), views.pixel_shuffle),
    (frozenset({F.pixel_unshuffle}), views.pixel_unshuffle),
    (operations.RESHAPING_FUNCTIONS, views.reshape),
    (operations.MULTIPLYING_FUNCTIONS, products.product),
    (frozenset({F.scaled_dot_product_attention}), products.attention),
    (operations.CONCATENATING_FUNCTIONS, joins.concatenate),
    (frozenset({torch.stack}), joins.stack),
    (operations.SOFTMAX_FUNCTIONS, moves.softmax),
    (frozenset({F.normalize}), moves.normalize),
    (operations.TURNING_FUNCTIONS, moves.turn),
    (operations.CHUNKING_FUNCTIONS | operations.SPLITTING_FUNCTIONS, parts.split),
    (operations.UNBINDING_FUNCTIONS, parts.unbind),
    (operations.NARROWING_FUNCTIONS, parts.narrow),
    (frozenset({F.glu}), parts.glu),
    (operations.PERMUTING_FUNCTIONS | operations.TRANSPOSING_FUNCTIONS | operations.MOVING_FUNCTIONS, moves.permute),
    (operations.SQUEEZING_FUNCTIONS, moves.squeeze),
    (operations.EXPANDING_FUNCTIONS, moves.expand),
    (operations.UNSQUEEZING_FUNCTIONS, moves.unsqueeze),
    (operations.INDEXING_FUNCTIONS, moves.index),
)


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule:
    """The rule of what `node` calls. Raises Unfollowed where there is none."""
    if module is not None:
        known = next((rule for kinds, rule in OF_MODULES if isinstance(module, kinds)), None)
        called = f"is a {type(module).__name__}"
    else:
        known = next((rule for functions, rule in OF_FUNCTIONS if node.target in functions), None)
        called = f"calls {node.target if isinstance(node.target, str) else getattr(node.target, '__name__', node.target)}"
    if known is None:
        raise Unfollowed(called)
    return known
