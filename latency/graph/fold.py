"""BN folded into the convolution before it, as runtimes do."""

from __future__ import annotations

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
"""Layers that can take in the BN behind them."""


def fold_batch_norms(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module`, in eval mode, whose convolutions have taken in the BN that alone reads them, and a bias with it.

    BN that follows anything else stays, as does BN without statistics of its own, and that of convolutions called twice.
    """
    module = copy.deepcopy(module).eval()
    layers = {node: module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"}
    calls = Counter(layers.values())
    for node, bn in layers.items():
        if type(bn) is not nn.BatchNorm2d or bn.running_mean is None:
            continue
        before = node.all_input_nodes[0]
        convolution = layers.get(before)
        readers = [user for user in before.users if not _asks_its_kind(user)]
        if isinstance(convolution, CONVOLUTIONS) and calls[convolution] == 1 and readers == [node]:
            layers[before] = fuse_conv_bn_eval(convolution, bn, transpose=isinstance(convolution, nn.ConvTranspose2d))
            module.set_submodule(str(before.target), layers[before])
            node.replace_all_uses_with(before)
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _asks_its_kind(node: fx.Node) -> bool:
    """Whether it reads no values of a tensor: timm's norms assert that there are four axes."""
    return node.target is getattr and node.args[1] in ("ndim", "shape", "dtype", "device")
