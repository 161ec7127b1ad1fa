"""Shared by all tests: a tiny network, its data, and the device of `lawful`."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

import latency
from pruning.data import Dataset, load_data
from pruning.networks import load

sys.path.insert(0, str(Path(__file__).parent))  # for lawful and tinynet

torch.set_num_threads(1)  # tests run in two processes: threads beyond the cores wait for each other, spinning
settings.register_profile("explore", deadline=None)  # machines are shared: slow is not wrong
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)  # a change answers for itself alone
settings.load_profile("same")


@pytest.fixture
def exactly(monkeypatch) -> None:
    """Full precision, so that all differences are roundings."""
    monkeypatch.setattr("pruning.replay.mixed_precision", lambda device, backward: contextlib.nullcontext())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def lawful():
    from lawful import LawfulDevice

    return LawfulDevice()


@pytest.fixture(scope="session")
def lawful_type():
    from lawful import LawfulDevice

    return LawfulDevice


@pytest.fixture(scope="session")
def tiny_module() -> nn.Module:
    from tinynet import tiny

    torch.manual_seed(0)
    return tiny()


@pytest.fixture(scope="session")
def tiny_network(tiny_module: nn.Module) -> latency.Network:
    return latency.trace(tiny_module, (1, 3, 16, 16), align=4, name="tiny")


@pytest.fixture(scope="session")
def traced(awake) -> Callable[[str], latency.Network]:
    """A network by its name, awake, for images of 64 pixels, any width a choice; traced and exported once for all tests."""

    @functools.cache
    def trace(name: str) -> latency.Network:
        shape = (1, 3, 64, 64)
        torch.manual_seed(0)
        return latency.trace(awake(load(name, num_classes=10), shape), shape, align=1, name=name)

    return trace


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_data("digits", 16)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Modules draw their weights from the global generator: the same ones, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def random_widths() -> Callable[[latency.Network, np.random.Generator, int], np.ndarray]:
    """int64[P, L] structures drawn uniformly from a network's choices."""

    def draw(network: latency.Network, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.stack([rng.choice(gene.choices, count) for gene in network.genes], axis=1)

    return draw


@pytest.fixture(scope="session")
def awake() -> Callable[[nn.Module, tuple[int, ...]], nn.Module]:
    """Give a fresh module BN statistics and affine parameters that make its outputs of order one, and random biases."""

    def wake(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
            if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d | nn.LayerNorm):
                nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(layer.bias, std=0.3, generator=generator)
            elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.3, generator=generator)
        with torch.no_grad():
            module.train()(torch.randn((8, *shape[1:]), generator=generator))
        return module.eval()

    return wake
