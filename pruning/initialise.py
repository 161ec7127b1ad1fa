"""Weights as training should find them: drawn, or learnt ones brought to the scale of drawn ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from latency.graph.fold import CONVOLUTIONS


def initialise(module: nn.Module, seed: int) -> None:
    """He-normal convolutions and small linear layers, drawn from `seed` (He et al. 2015; as torchvision's networks)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, CONVOLUTIONS):
            nn.init.normal_(layer.weight, std=he_deviation(layer.weight), generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features), generator=generator)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d | nn.LayerNorm | nn.GroupNorm):
            layer.reset_parameters()
            continue
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def he_deviation(weight: Tensor) -> float:
    """Standard deviation of a fresh convolution [out, in, kh, kw]: fan out, ReLU (He et al. 2015)."""
    return math.sqrt(2 / weight[:, 0].numel())


@torch.no_grad()
def restore_scale(structure: fx.GraphModule) -> None:
    """Give every convolution that BN follows the length it would have when drawn anew. What the structure computes stays.

    BN takes the scale of such weights away, but a step of SGD turns them by rate / length² (van Laarhoven 2017, arXiv
    1706.05350). A PruningNet's are up to forty times as long as fresh ones: at the same rate they would hardly move.
    """
    for layer in _scaled_by_bn(structure):
        usual = he_deviation(layer.weight) * math.sqrt(layer.weight.numel())
        layer.weight.mul_(usual / layer.weight.norm().clamp_min(1e-12))  # all zeros stay zeros


def _scaled_by_bn(structure: fx.GraphModule) -> Iterator[nn.Conv2d | nn.ConvTranspose2d]:
    """Convolutions whose result goes into BN and nowhere else."""
    modules = dict(structure.named_modules())
    for node in structure.graph.nodes:
        follower = next(iter(node.users)) if len(node.users) == 1 else node
        convolution, norm = modules.get(node.target), modules.get(follower.target)
        if isinstance(convolution, CONVOLUTIONS) and isinstance(norm, nn.BatchNorm2d):
            yield convolution
