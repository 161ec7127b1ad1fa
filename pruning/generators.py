"""Where a PruningNet's convolution weights come from: the paper's generators, and one of low rank that costs next to nothing.

A generator maps the scales of its block's genes to the weights of one convolution. Only the rows and columns that the widths
keep are ever computed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency.graph.axis import mesh
from pruning.bank import Bank, Kept
from pruning.initialise import he_deviation

HIDDEN = 32
"""Width of the generators' hidden layer (official code: 32 for MobileNetV1 and ResNet-50, 64 for MobileNetV2's blocks)."""

RANK = 4


class FullGenerator(nn.Module):
    """The paper's (section 3.1): Linear → ReLU → Linear to every weight, which has `hidden` parameters of its own.

    Args:
        genes: indices of the genes that the convolution's block touches.
        start: weights [out, in, kh, kw] that the generated ones are added to, and that are trained with them.
        hidden: width of the hidden layer.
    """

    genes: Tensor

    def __init__(self, genes: tuple[int, ...], start: Tensor, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.register_buffer("genes", torch.tensor(genes), persistent=False)
        self.encoder = nn.Linear(len(genes), hidden)
        self.base = nn.Parameter(start.detach().clone())
        self.bank = Bank((start.shape[0], start.shape[1], start[0, 0].numel()), hidden, he_deviation(start) / math.sqrt(hidden))

    def forget_widths(self) -> None:
        """Generate the starting weights for all widths, until trained."""
        nn.init.zeros_(self.bank.values)

    def forward(self, scales: Tensor, kept: Kept) -> Tensor:
        """Weights cropped to `kept`, from the scales float32[L] of all genes."""
        code = F.relu(self.encoder(scales[self.genes]))
        base = crop(self.base, kept)
        return self.bank.product(code, kept).view(base.shape) + base


class LowRankGenerator(nn.Module):
    """Shared weights, plus a change of rank `rank` that depends on the widths: U(code) [out, rank] · V [rank, in·kh·kw].

    Some ten numbers a filter are generated where the paper generates them all. It starts as shared weights: U is 0.
    """

    genes: Tensor

    def __init__(self, genes: tuple[int, ...], start: Tensor, hidden: int = HIDDEN, rank: int = RANK) -> None:
        super().__init__()
        self.register_buffer("genes", torch.tensor(genes), persistent=False)
        self.encoder = nn.Linear(len(genes), hidden)
        self.base = nn.Parameter(start.detach().clone())
        self.left = nn.Parameter(torch.zeros(len(start), rank, hidden))
        self.right = nn.Parameter(torch.empty(rank, *start.shape[1:]))
        nn.init.normal_(self.right, std=he_deviation(start))

    def forget_widths(self) -> None:
        """Generate the starting weights for all widths, until trained."""
        nn.init.zeros_(self.left)

    def forward(self, scales: Tensor, kept: Kept) -> Tensor:
        """Weights cropped to `kept`, from the scales float32[L] of all genes."""
        code = F.relu(self.encoder(scales[self.genes]))
        base, right = crop(self.base, kept), crop(self.right, kept and (slice(None), *kept[1:]))
        left = crop(self.left, kept and kept[:1]) @ code
        return torch.addmm(base.flatten(1), left, right.flatten(1)).view(base.shape)


GENERATORS: dict[str, type[FullGenerator | LowRankGenerator] | None] = {
    "full": FullGenerator,
    "low-rank": LowRankGenerator,
    "shared": None,
}
"""By name; None: one set of weights for all structures (slimmable networks, Yu et al., ICLR 2019)."""


def crop(parameter: Tensor, kept: Kept) -> Tensor:
    """parameter[kept]. Its gradient goes straight into that crop of `parameter.grad`.

    Autograd would make a gradient of full size for every step, which costs more than a small network itself.
    """
    cropped: Tensor = parameter if kept is None else _Crop.apply(parameter, mesh(kept))
    return cropped


class _Crop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, kept: tuple[Any, ...]) -> Tensor:
        ctx.parameter, ctx.kept = parameter, kept
        return parameter[kept].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        _gradient(ctx.parameter)[ctx.kept] += gradients[0]
        return None, None


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
