"""Which channels of a trained network matter most: they are put first, since pruning keeps the first of every gene."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from latency.graph.axis import reordered, stretches
from latency.graph.network import Network
from pruning.data import Dataset
from pruning.evaluate import labelled_calibration_images
from pruning.extract import alike
from pruning.normalise import normalised

BATCH = 10
"""Images whose gradients are added before they are squared: as good as one by one, and much faster."""

IMAGES = 500
"""Training images by which a start is judged; 2000 order channels a little better, in four times as long."""

Loss = Callable[[Tensor, Tensor], Tensor]


def start_from(network: Network, weights: Mapping[str, Tensor], data: Dataset) -> dict[str, Tensor]:
    """Trained `weights` of the `normalised` network as a PruningNet begins with them: the most important channels first, by
    training images of `data`."""
    images, labels = labelled_calibration_images(data, IMAGES)
    on_cpu = {name: tensor.cpu() for name, tensor in weights.items()}
    return most_important_first(normalised(network), on_cpu, images.cpu(), labels.cpu())


def most_important_first(
    network: Network, weights: Mapping[str, Tensor], images: Tensor, targets: Tensor, loss: Loss = F.cross_entropy
) -> dict[str, Tensor]:
    """`weights` with every gene's channels in falling order of importance; the network computes the same with them.

    Where channels may not change places (they are told apart by an ECA's convolution over them, or shuffled, say), they stay.

    Args:
        weights: state dict of the network, trained.
        images: normalised, [N, C, H, W], with their `targets` [N, …].
        loss: of what the network computes, and targets, of some images: [].
    """
    module, few, weights = copy.deepcopy(network.module).eval(), images[:2], dict(weights)
    importance = channel_importance(network, weights, images, targets, loss)
    with torch.no_grad():
        scores = functional_call(module, weights, (few,))
        for gene, (about, of_channels) in enumerate(zip(network.genes, importance, strict=True)):
            moved = _moved(network, weights, gene, _falling(of_channels, about.multiple))
            if alike(functional_call(module, moved, (few,)), scores):
                weights = moved
    return weights


def channel_importance(
    network: Network, weights: Mapping[str, Tensor], images: Tensor, targets: Tensor, loss: Loss = F.cross_entropy
) -> tuple[np.ndarray, ...]:
    """float64[max_width] for each gene: how much the loss of a few images changes with each channel, squared.

    To first order a channel that is scaled by 1 + s changes the loss by s times the sum of weight × gradient over its part of
    a tensor (Molchanov et al., CVPR 2019, section 3); squares of that are added over batches, and over tensors that have it.
    """
    module = copy.deepcopy(network.module).eval()
    parameters = {name: weights[name].detach().clone().requires_grad_() for name in network.parameter_names}
    importance = tuple(np.zeros(gene.max_width) for gene in network.genes)
    for part, right in zip(images.split(BATCH), targets.split(BATCH), strict=True):
        missed = loss(functional_call(module, {**weights, **parameters}, (part,)), right)
        gradients = torch.autograd.grad(missed, list(parameters.values()), materialize_grads=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            _add_squares(network, name, (parameter.detach() * gradient).double().numpy(), importance)
    return importance


def _add_squares(network: Network, name: str, products: np.ndarray, importance: tuple[np.ndarray, ...]) -> None:
    for place, axis in enumerate(network.tensors[name]):
        along = products.sum(axis=tuple(other for other in range(products.ndim) if other != place))
        for start, part in stretches(axis):
            if part.gene is not None:
                of_channels = along[start : start + part.size].reshape(-1, part.per_channel).sum(axis=1)
                importance[part.gene][:] += of_channels**2


def _falling(importance: np.ndarray, multiple: int) -> np.ndarray:
    """int64[channels]: the most important first, groups of `multiple` as a whole."""
    groups = importance.reshape(-1, multiple).sum(axis=1)
    order = np.argsort(-groups, kind="stable")
    return (order[:, None] * multiple + np.arange(multiple)).ravel()


def _moved(network: Network, weights: Mapping[str, Tensor], gene: int, order: np.ndarray) -> dict[str, Tensor]:
    """`weights` with the channels of one gene in another order."""
    moved = dict(weights)
    for name, axes in network.tensors.items():
        for place, axis in enumerate(axes):
            if gene in axis.genes and name in moved:
                moved[name] = moved[name].index_select(place, torch.from_numpy(reordered(axis, gene, order)))
    return moved
