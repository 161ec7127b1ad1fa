"""How good a structure is: its accuracy and its loss, with BN statistics made for it.

A structure of a PruningNet has no statistics of its own: those of another structure, or none, give chance accuracy
(MetaPruning, section 3.2, and the most frequent question of its users).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.data import Dataset
from pruning.images import Images, batches
from pruning.pruningnet import PruningNet
from pruning.recipe import LABEL_SMOOTHING
from pruning.replay import Replayed

STATISTICS_BATCH = 500
"""Images whose statistics BN takes."""

BATCH = 128
"""Where statistics are known. Small enough for a layer's activations to stay in the cache: half the time of 512 on a CPU."""


@torch.no_grad()
def recalibrate_bn(module: nn.Module, images: Tensor, batch: int = STATISTICS_BATCH) -> None:
    """Replace the running statistics of every BN layer by averages over `images` (normalised, [N, C, H, W]).

    Each layer sees what the layers before it give when normalised by their own batch. The variance is the mean of the
    batches' variances, which leaves out how batch means differ: keep batches large, here all of one size.
    Only BN layers are put into training mode; dropout stays off. The module ends in eval mode.
    """
    layers = _bn_layers(module)
    module.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    whole = max(1, len(images) // batch) * batch
    for part in images[:whole].split(batch):
        module(part)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    module.eval()


@torch.no_grad()
def accuracy(module: nn.Module, images: Images, data: Dataset) -> float:
    """Share of `images` classified correctly, 0 … 1, in eval mode."""
    return _score(module.eval(), images, data).accuracy


@dataclass(frozen=True)
class Score:
    """`accuracy`: share of images classified correctly, 0 … 1. `loss`: mean cross entropy with smoothed labels, as in training.

    Structures are ranked by the loss, which few images settle, since none counts for all or nothing (results/README.md).
    """

    accuracy: float
    loss: float


def _score(module: Callable[[Tensor], Tensor], images: Images, data: Dataset) -> Score:
    return Score(*_figures(module, ((data.normalised(part.pixels), part.labels) for part in batches(images, BATCH))).tolist())


def _figures(module: Callable[[Tensor], Tensor], parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """float64[2], accuracy and loss on normalised images and their labels, by what gives their scores."""
    hits, losses = [], []
    for images, labels in parts:
        scores = module(images).float()
        hits.append(scores.argmax(1) == labels)
        losses.append(F.cross_entropy(scores, labels, label_smoothing=LABEL_SMOOTHING, reduction="none"))
    return torch.stack([torch.cat(hits).double().mean(), torch.cat(losses).mean().double()])


def balanced(labels: Tensor, count: int) -> Tensor:
    """int64[count] positions in random order with every class as often as any other, as far as there are so many.

    Statistics of few images depend on which classes they show: with equal shares structures rank more as they do with ten
    times as many images (Kendall τ 0.88 instead of 0.87 with 2048 CIFAR-10 images).
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).to(labels.device)
    turn = torch.empty_like(order)
    for label in labels.unique():
        mine = labels[order] == label
        turn[mine] = torch.arange(int(mine.sum()), device=order.device)
    return order[torch.argsort(turn, stable=True)][:count]


def calibration_images(data: Dataset, count: int) -> Tensor:
    """Normalised training images [count, C, H, W] that show all classes alike, for BN statistics."""
    return labelled_calibration_images(data, count)[0]


def labelled_calibration_images(data: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """The same with their labels int64[count]."""
    images = data.train.subset(balanced(data.train.labels, count))
    return data.normalised(images.pixels), images.labels


@torch.no_grad()
def recalibrated_score(supernet: PruningNet, widths: np.ndarray, data: Dataset, images: int) -> Score:
    """The paper's way to score a structure (int64[L]): on sub-validation images, with BN statistics of training `images`."""
    structure = supernet.structure(widths).to(supernet.device)
    recalibrate_bn(structure, calibration_images(data, images))
    return _score(structure, data.subval, data)


class StructureEvaluator:
    """Scores of a PruningNet's structures, all on the same sub-validation images, with BN by the statistics of these images.

    They come in batches of about STATISTICS_BATCH that show all classes alike. Structures rank so as with statistics of all
    20 000 training images (Kendall τ 0.98), no less than with those of 2500, which take longer (results/README.md).
    `data` lies where `supernet` computes.
    """

    def __init__(self, supernet: PruningNet, data: Dataset) -> None:
        self.supernet = supernet
        self.images = len(data.subval)  # forwarded for one structure
        order = balanced(data.subval.labels, self.images).tensor_split(max(1, round(self.images / STATISTICS_BATCH)))
        parts = map(data.subval.subset, order)
        self._parts = [(data.normalised(part.pixels), part.labels) for part in parts]
        self._computed = Replayed(self._figures, supernet, backward=False)

    @torch.no_grad()
    def __call__(self, widths: np.ndarray) -> Score:
        """Of the structure `widths` (int64[L])."""
        return Score(*self._computed(self.supernet.encoded(widths)).tolist())

    def _figures(self, encoded: Tensor) -> Tensor:
        return _figures(partial(self.supernet.scores, weights=self.supernet.decoded(encoded)), self._parts)


def _bn_layers(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
