"""BN for networks that have none, while they are trained: it is folded into their convolutions in the end.

A generated convolution reads as many channels as its structure keeps, and nothing makes up for those that are missing: layer
by layer the signals of narrow structures fade (in a fresh SqueezeNet 1.1 the scores of half the width are a hundredth of those
of the full one). With BN after every convolution, as in all of the paper's networks, one PruningNet serves all widths.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from latency.graph.fold import CONVOLUTIONS, fold_batch_norms
from latency.graph.network import Network

ADDED = "_added_bn"
"""What the BN after the convolution `name` is called: `name` + this."""


def normalised(network: Network) -> Network:
    """The same network with BN after each convolution; itself where it has norms already."""
    if _has_norms(network):
        return network
    module, tensors, parameters = copy.deepcopy(network.module), dict(network.tensors), list(network.parameter_names)
    outputs = {layer.name: layer.outputs for layer in network.layers}
    calls = Counter(node.target for node in module.graph.nodes)
    for node in list(module.graph.nodes):
        convolution = _module(module, node)
        convolves = isinstance(convolution, CONVOLUTIONS) and node.target in outputs
        if not convolves or calls[node.target] > 1:
            continue  # one that is called twice could not take two of them in
        name = f"{node.target}{ADDED}"
        bn = nn.BatchNorm2d(convolution.out_channels)
        module.add_submodule(name, bn)
        with module.graph.inserting_after(node):
            follower = module.graph.call_module(name, (node,))
        node.replace_all_uses_with(follower, lambda user, follower=follower: user is not follower)
        parameters += [f"{name}.{key}" for key, _ in bn.named_parameters()]
        tensors |= {f"{name}.{key}": (outputs[node.target],) * tensor.ndim for key, tensor in bn.state_dict().items()}
    module.recompile()
    return replace(network, module=module, tensors=tensors, parameter_names=tuple(parameters))


def gains_bn(network: Network) -> bool:
    """Whether BN is, or has been, added to `network` for training."""
    return not _has_norms(network) or any(ADDED in name for name in network.parameter_names)


@torch.no_grad()
def trained_weights(network: Network, images: Tensor) -> dict[str, Tensor]:
    """State dict of the trained `network` in its `normalised` form, where the BN changes nothing as yet.

    Args:
        images: normalised, [N, C, H, W]; their statistics are what BN removes and, with its weight and bias, puts back.
    """

    def let_through(bn: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(bn, nn.BatchNorm2d)
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        bn.running_mean, bn.running_var = mean, variance
        bn.weight.copy_((variance + bn.eps).sqrt())
        bn.bias.copy_(mean)

    module = normalised(network).module
    hooks = [bn.register_forward_pre_hook(let_through) for _, bn in _added(module)]
    if hooks:
        module.eval()(images)
    for hook in hooks:
        hook.remove()
    return module.state_dict()


def folded(structure: nn.Module) -> nn.Module:
    """`structure` without the BN that was added: each in the convolution before it, which gets a bias where it had none."""
    if not isinstance(structure, fx.GraphModule) or not any(_added(structure)):
        return structure
    return fold_batch_norms(structure)


def _has_norms(network: Network) -> bool:
    norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm | nn.LayerNorm
    return any(isinstance(module, norms) for module in network.module.modules())


def _added(module: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.BatchNorm2d]]:
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target).endswith(ADDED):
            yield node, _module(module, node)


def _module(module: fx.GraphModule, node: fx.Node) -> Any:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None
