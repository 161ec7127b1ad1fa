"""Weights as training should find them: drawn, or learnt ones brought to the scale of drawn ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from latency.graph.fold import CONVOLUTIONS
from latency.graph.operations import VIEWS

Weighted = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
WEIGHTED = (*CONVOLUTIONS, nn.Linear)


def initialise(module: nn.Module, seed: int) -> None:
    """He-normal convolutions and small linear layers, drawn from `seed` (He et al. 2015; as torchvision's networks)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            nn.init.normal_(layer.weight, std=_fresh_deviation(layer), generator=generator)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d | nn.LayerNorm | nn.GroupNorm):
            layer.reset_parameters()
            continue
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _fresh_deviation(layer: Weighted) -> float:
    """Standard deviation of its weights as they are drawn."""
    return 1 / math.sqrt(layer.in_features) if isinstance(layer, nn.Linear) else he_deviation(layer.weight)


def he_deviation(weight: Tensor) -> float:
    """Standard deviation of a fresh convolution [out, in, kh, kw]: fan out, ReLU (He et al. 2015)."""
    return math.sqrt(2 / weight[:, 0].numel())


@torch.no_grad()
def restore_scale(structure: fx.GraphModule) -> None:
    """Give every layer that BN follows the length it would have when drawn anew. What the structure computes stays.

    BN takes the scale of such weights away, but a step of SGD turns them by rate / length² (van Laarhoven 2017, arXiv
    1706.05350). A PruningNet's convolutions are up to fifty times as long as fresh ones, linear layers (LeViT's) up to seven
    times: at the same rate they would hardly move.
    """
    for layer in _scaled_by_bn(structure):
        usual = _fresh_deviation(layer) * math.sqrt(layer.weight.numel())
        layer.weight.mul_(usual / layer.weight.norm().clamp_min(1e-12))  # all zeros stay zeros


def _scaled_by_bn(structure: fx.GraphModule) -> list[Weighted]:
    """Layers whose results all go into BN and nowhere else."""
    modules = dict(structure.named_modules())
    scaled: dict[Weighted, bool] = {}
    for node in structure.graph.nodes:
        layer = modules.get(node.target)
        if isinstance(layer, WEIGHTED):
            norms = [isinstance(modules.get(reader.target), nn.BatchNorm1d | nn.BatchNorm2d) for reader in _readers(node)]
            scaled[layer] = scaled.get(layer, True) and bool(norms) and all(norms)
    return [layer for layer, only in scaled.items() if only]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What computes with its values, in whatever shape."""
    for user in node.users:
        if user.target in VIEWS:
            yield from _readers(user)
        elif user.target != "size":
            yield user
