"""How parameters follow their gradients: SGD, as in the paper, or AdamW, as transformers are trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from latency.graph.network import Network

LABEL_SMOOTHING = 0.1
"""MetaPruning's, in training and when structures are ranked."""

LINEAR_INPUTS = 256
"""As many inputs let a linear layer keep pace with all else under SGD."""


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, label smoothing and a learning rate that falls linearly to 0 (MetaPruning, section 4.1).

    `batch` is of all processes together. `lr` is for a batch of 512 and scaled with the batch; the paper's is 0.25.
    """

    epochs: int
    batch: int = 64
    lr: float = 0.75
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = LABEL_SMOOTHING
    warmup: float = 0.05  # share of the steps in which the rate rises from 0

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return self.lr * self.batch / 512

    def rate(self, progress: float) -> float:
        """Learning rate after a share `progress` of all steps."""
        return self.peak * min(progress / self.warmup if self.warmup else 1.0, (1 - progress) / (1 - self.warmup))

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """One for all parameters of `module`, in groups that each have their `share` of the learning rate."""
        return torch.optim.SGD(
            list(_by_inputs(module)), lr=0.0, momentum=self.momentum, weight_decay=self.weight_decay, fused=True
        )

    def of_banks(self, progress: float) -> tuple[float, float, float]:
        """Learning rate, momentum and weight decay of generators' banks, which follow SGD alone."""
        return self.rate(progress), self.momentum, self.weight_decay


@dataclass(frozen=True)
class AdamWRecipe(Recipe):
    """The same with AdamW (Loshchilov and Hutter, ICLR 2019): `momentum` is the gradient's, `square_momentum` its square's.

    `lr` is scaled with the square root of the batch (Malladi et al., NeurIPS 2022). What has one number a channel (norms,
    biases) does not decay.
    """

    lr: float = 6e-3
    weight_decay: float = 0.05
    square_momentum: float = 0.999

    @property
    def peak(self) -> float:
        return self.lr * math.sqrt(self.batch / 512)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        parameters: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in module.parameters():
            parameters[parameter.numel() > max(parameter.shape, default=1)].append(parameter)
        groups = [
            {"params": alike, "share": 1.0, "weight_decay": self.weight_decay * decays} for decays, alike in parameters.items()
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.momentum, self.square_momentum), fused=True)

    def of_banks(self, progress: float) -> tuple[float, float, float]:
        return Recipe(self.epochs, self.batch).of_banks(progress)


OPTIMIZERS = {"sgd": Recipe, "adamw": AdamWRecipe}


def recipe_for(network: Network, epochs: int, batch: int = 64, optimizer: str | None = None, lr: float | None = None) -> Recipe:
    """How to train `network`, with an optimiser of OPTIMIZERS, by default AdamW where it has more LayerNorm than BN."""
    recipe = OPTIMIZERS[optimizer or ("adamw" if _is_transformer(network) else "sgd")]
    return recipe(epochs, batch) if lr is None else recipe(epochs, batch, lr)


def _is_transformer(network: Network) -> bool:
    """Whether it has LayerNorm where a CNN has BN: as ConvNeXt has, too, and MobileViT for the lesser part."""
    modules = list(network.module.modules())
    batch_norms = sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in modules)
    return sum(isinstance(module, nn.LayerNorm) for module in modules) > batch_norms


def _by_inputs(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The parameters in groups that keep pace with one another under SGD.

    A step changes what a linear layer gives by rate × |input|², and its inputs may be a thousand: beyond LINEAR_INPUTS their
    share falls with their number (as of output layers under SGD: Yang et al. 2022, arXiv 2203.03466, table 3).
    """
    shared: dict[float, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        share = min(1.0, LINEAR_INPUTS / parameter.shape[1]) if parameter.ndim == 2 else 1.0
        shared.setdefault(share, []).append(parameter)
    for share, parameters in shared.items():
        yield {"params": parameters, "share": share}
