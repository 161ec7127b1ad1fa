"""Learnt weights brought to the scale of drawn ones compute the same, and learn at the rate that drawn ones do."""

import math

import pytest
import torch
from torch import nn

import latency
from pruning.initialise import he_deviation, initialise, restore_scale
from pruning.networks import load


def stretched(name: str) -> torch.fx.GraphModule:
    """The traced network, its convolutions thirty times as long as when drawn, linear layers three times (attention between
    longer ones blows rounding errors up); BN uses the batch and adds nothing to it."""
    module = latency.trace(load(name, 10), (1, 3, 32, 32)).module.double()
    initialise(module, 0)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=30 * he_deviation(layer.weight))
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=3 / math.sqrt(layer.in_features))
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.train().eps = 1e-20
    return module


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet18", "mobilenet_v3_small", "tinynet:tiny", "tinynet:classed"])
@torch.no_grad()
def test_the_scale_changes_and_nothing_else(name: str) -> None:
    structure = stretched(name)
    images = torch.randn(16, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = structure(images)
    restore_scale(structure)
    torch.testing.assert_close(structure(images), before)


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet18", "tinynet:tiny", "tinynet:classed"])
def test_layers_before_bn_get_the_length_of_fresh_ones_and_no_others_change(name: str) -> None:
    structure = stretched(name)
    before = {key: value.clone() for key, value in structure.state_dict().items()}
    fresh = latency.trace(load(name, 10), (1, 3, 32, 32)).module
    initialise(fresh, 1)
    drawn = dict(fresh.named_parameters())
    restore_scale(structure)
    changed = {key for key, value in structure.state_dict().items() if not torch.equal(value, before[key])}
    convolutions = {f"{key}.weight" for key, layer in structure.named_modules() if isinstance(layer, nn.Conv2d)}
    before_bn = {key for key in convolutions if "squeeze" not in key}  # a gate's convolutions have biases and no BN
    assert changed == ({"mix.weight"} if name == "tinynet:classed" else before_bn)
    for key in changed:
        spread = 1 / math.sqrt(2 * drawn[key].numel())  # of the length of so many normal numbers, relative
        assert float(structure.get_parameter(key).norm() / drawn[key].norm()) == pytest.approx(1, abs=8 * spread)


def test_a_convolution_whose_result_is_used_without_bn_keeps_its_scale() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.classifier = nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.classifier((x + self.norm(x)).mean((2, 3)))

    structure = torch.fx.symbolic_trace(Twice())
    before = structure.conv.weight.clone()
    restore_scale(structure)
    assert torch.equal(structure.conv.weight, before)


def test_zero_weights_stay_zero() -> None:
    structure = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(64, 4, 1), nn.BatchNorm2d(4)))
    weight = nn.init.zeros_(structure.get_submodule("0").weight)
    restore_scale(structure)
    assert torch.equal(weight, torch.zeros(4, 64, 1, 1))
