"""Networks without BN have it while they are trained, and are themselves again in the end."""

import numpy as np
import pytest
import torch
from torch import nn

import latency
from pruning.evaluate import recalibrate_bn
from pruning.extract import extract, in_own_class
from pruning.networks import load
from pruning.normalise import folded, gains_bn, normalised, trained_weights
from pruning.recipe import Recipe
from pruning.train import SUPERNETS, new_pruningnet, train_pruningnet

WITHOUT_BN = ["tinynet:plain", "squeezenet1_1"]
SHAPE = (1, 3, 32, 32)


def traced(name: str) -> latency.Network:
    torch.manual_seed(0)
    return latency.trace(load(name, 10), SHAPE, align=4, name=name)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["tinynet:tiny", "tinynet:mixed", "mobilenet_v1"])
def test_a_network_with_bn_stays_as_it_is(name: str) -> None:
    network = traced(name)
    assert normalised(network) is network
    assert not gains_bn(network)


@pytest.mark.parametrize("name", WITHOUT_BN)
def test_bn_is_added_once_and_changes_neither_genes_nor_latency_tables(name: str) -> None:
    network = traced(name)
    assert gains_bn(network)
    bns = [module for module in normalised(network).module.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(bns) == sum(layer.kind == "conv" for layer in network.layers)
    assert normalised(network).signature == network.signature
    assert normalised(network).genes == network.genes
    assert normalised(normalised(network)).parameter_names == normalised(network).parameter_names
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.module.modules())


@pytest.mark.parametrize("name", WITHOUT_BN)
@torch.no_grad()
def test_folded_a_structure_computes_the_same_in_the_class_of_the_user(name: str, images, random_widths) -> None:
    network = traced(name)
    (widths,) = random_widths(network, np.random.default_rng(0), 1)
    structure = new_pruningnet(network, SUPERNETS["paper"], 0).structure(widths)
    recalibrate_bn(structure, images)
    without = folded(structure)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in without.modules())
    torch.testing.assert_close(without(images), structure(images), atol=1e-3, rtol=1e-3)
    own = in_own_class(load(name, 10), without, SHAPE)
    assert type(own) is type(load(name, 10))
    shapes = {key: tensor.shape for key, tensor in own.state_dict().items()}
    assert shapes.items() >= {key: tensor.shape for key, tensor in extract(network, widths).state_dict().items()}.items()


@torch.no_grad()
def test_folding_what_has_nothing_to_fold_gives_the_same(tiny_network) -> None:
    structure = extract(tiny_network, tiny_network.max_widths)
    assert folded(structure) is structure


@torch.no_grad()
def test_trained_weights_compute_as_before_also_with_the_statistics_of_a_batch(images) -> None:
    network = traced("tinynet:plain")
    state = trained_weights(network, images)
    structure = extract(normalised(network), network.max_widths, state)
    expected = network.module(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(structure(images), expected)
    torch.testing.assert_close(structure.train()(images), expected)


@torch.no_grad()
def test_narrow_structures_of_a_fresh_pruningnet_speak_as_loud_as_wide_ones(images) -> None:
    network = traced("squeezenet1_1")
    pruningnet = new_pruningnet(network, SUPERNETS["paper"], 0).eval()
    loud, quiet = (pruningnet(images, network.nearest_widths(scale)).std() for scale in (1.0, 0.25))
    assert 0.3 < quiet / loud < 3


def test_a_pruningnet_of_a_network_without_bn_learns(digits, tmp_path) -> None:
    network = latency.trace(load("tinynet:plain", 10), (1, 3, 16, 16), align=8, name="plain")
    pruningnet, losses = new_pruningnet(network, SUPERNETS["paper"], 0), list[float]()
    train_pruningnet(
        pruningnet, SUPERNETS["paper"], digits, Recipe(6, 64), seed=0, checkpoint=tmp_path / "net.safetensors",
        progress=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert np.mean(losses[-20:]) < 1.9
