"""What a trained network can do without comes last, and the network computes what it did."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import latency
from latency.graph.axis import Axis, Concatenation, reordered
from pruning.evaluate import labelled_calibration_images, recalibrate_bn
from pruning.extract import extract
from pruning.importance import BATCH, channel_importance, most_important_first
from pruning.normalise import normalised, trained_weights
from pruning.recipe import Recipe
from pruning.train import new_structure, train_structure

STAY = {
    "tinynet:tiny": (), "tinynet:plain": (), "tinynet:tokens": (), "tinynet:classed": (), "tinynet:twice": (),
    "tinynet:mixed": ("stem",), "tinynet:halves": ("last.0",), "tinynet:gates": ("stem.0", "left.0"),
}  # fmt: skip
"""Genes whose channels may not all change places: groups stay together, an ECA sees neighbours, a shuffle is a shuffle."""


@pytest.fixture
def shown() -> tuple[Tensor, Tensor]:
    """Images and labels."""
    return torch.randn(4 * BATCH, 3, 64, 64), torch.arange(4 * BATCH) % 10


@pytest.mark.parametrize("name", STAY)
def test_the_network_computes_the_same_and_importance_falls(name: str, traced, shown) -> None:
    images, weights = shown[0], trained_weights(traced(name), shown[0])
    network = normalised(traced(name))
    moved, module = most_important_first(network, weights, *shown), network.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(functional_call(module, moved, (images,)), module(images), atol=1e-4, rtol=1e-4)
    importance = channel_importance(network, moved, *shown)
    rising = [bool((np.diff(one) > 1e-6 * one.max()).any()) for one in importance]
    assert tuple(gene.name for gene, rises in zip(network.genes, rising, strict=True) if rises) == STAY[name]


def test_importance_is_what_scaling_a_channel_does_to_the_loss(traced, shown) -> None:
    """Against differences of the loss, one batch after the other, one tensor after the other."""
    network, step = traced("tinynet:tiny"), 1e-6
    network = replace(network, module=copy.deepcopy(network.module).double())
    module, weights, gene = network.module, network.module.state_dict(), 2
    expected = np.zeros(network.genes[gene].max_width)
    for images, labels in zip(shown[0].double().split(BATCH), shown[1].split(BATCH), strict=True):
        for name in network.parameter_names:
            for place, axis in enumerate(network.tensors[name]):
                if axis.genes == {gene}:
                    for channel in range(network.genes[gene].max_width):
                        entries = slice(channel * axis.parts[0].per_channel, (channel + 1) * axis.parts[0].per_channel)
                        losses = []
                        for scale in (1 + step, 1 - step):
                            scaled = weights[name].clone()
                            scaled.movedim(place, 0)[entries] *= scale
                            scores = functional_call(module, weights | {name: scaled}, (images,))
                            losses.append(F.cross_entropy(scores, labels).item())
                        expected[channel] += ((losses[0] - losses[1]) / (2 * step)) ** 2
    importance = channel_importance(network, weights, shown[0].double(), shown[1])[gene]
    np.testing.assert_allclose(importance, expected, rtol=1e-4)


def test_only_whole_groups_of_a_grouped_convolution_change_places(shown) -> None:
    network = latency.trace(Grouped(), (1, 3, 64, 64), align=1)
    (gene,), weights = network.genes, network.module.state_dict()
    assert gene.multiple == 4
    moved = most_important_first(network, weights, *shown)
    blocks, before = (state["grouped.weight"].unflatten(0, (-1, 4)) for state in (moved, weights))
    order = [next(place for place, one in enumerate(before) if torch.equal(one, block)) for block in blocks]
    (importance,) = channel_importance(network, weights, *shown)
    assert order == np.argsort(-importance.reshape(-1, 4).sum(1)).tolist() != sorted(order)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.grouped = nn.Conv2d(3, 16, 3, 4), nn.Conv2d(16, 16, 3, groups=4)
        self.classifier = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.grouped(self.enter(images).relu()).relu().mean((2, 3)))


class Positioned(nn.Module):
    """Has a buffer that its state dict does not hold; that of an extracted structure does."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.norm, self.classifier = nn.Conv2d(3, 16, 3, 4), nn.BatchNorm2d(16), nn.Linear(16, 10)
        self.register_buffer("positions", torch.rand(1, 1, 16, 16), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier((self.norm(self.features(images)) + self.positions).relu().mean((2, 3)))


def test_weights_may_come_from_a_trained_structure(shown) -> None:
    network = latency.trace(Positioned(), (1, 3, 64, 64), align=1)
    trained = new_structure(network, np.array(network.max_widths), 0)
    moved = most_important_first(network, trained.state_dict(), *shown)
    assert not torch.equal(moved["features.weight"], trained.features.weight)
    torch.testing.assert_close(functional_call(network.module.eval(), moved, (shown[0],)), trained(shown[0]))


def test_a_trained_network_loses_less(digits, tiny_network, tmp_path) -> None:
    trained = new_structure(tiny_network, np.array(tiny_network.max_widths), 0)
    train_structure(
        trained, tiny_network, np.array(tiny_network.max_widths), digits, Recipe(4), seed=0,
        checkpoint=tmp_path / "trained.safetensors", progress=lambda step, loss: None,
    )  # fmt: skip
    images, labels = labelled_calibration_images(digits, 500)
    moved = most_important_first(tiny_network, trained.state_dict(), images, labels)
    half, losses = tiny_network.nearest_widths(0.5), []
    for state in (moved, trained.state_dict()):
        structure = extract(tiny_network, half, state)
        recalibrate_bn(structure, images)
        losses.append(F.cross_entropy(structure(images), labels).item())
    assert losses[0] < 0.9 * losses[1]


def test_channels_of_any_axis_change_places() -> None:
    axis = Concatenation((Axis(6, 0, 2), Axis(2), Axis(3, 0), Axis(4, 1)))
    entries = reordered(axis, 0, np.array([2, 0, 1]))
    assert entries.tolist() == [4, 5, 0, 1, 2, 3, 6, 7, 10, 8, 9, 11, 12, 13, 14]
