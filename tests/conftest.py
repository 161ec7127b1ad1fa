"""Shared by all tests: a tiny network, its data, and a device whose timing law is known exactly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from torch import nn

import latency
from latency.devices import Device, Events
from latency.kernels import Kernel, find_kernels
from pruning.data import Dataset, load_data

sys.path.insert(0, str(Path(__file__).parent))  # for tinynet

torch.set_num_threads(2)
settings.register_profile("patient", deadline=None)  # machines are shared: slow is not wrong
settings.load_profile("patient")


def exact_ms(kernel: Kernel) -> float:
    """The law of `LawfulDevice`: multiply-adds, bytes moved and a start-up time."""
    mixes = kernel.type.startswith(("conv", "gemm"))
    macs = (kernel.cin if mixes else 1) * kernel.cout * kernel.out_height * kernel.out_width
    moved = kernel.cin * kernel.height * kernel.width + kernel.cout * kernel.out_height * kernel.out_width
    return kernel.batch * (2e-6 * macs + 1e-6 * moved) + 0.002


class LawfulModel:
    def __init__(self, model: bytes, law: Callable[[Kernel], float], link: Callable[[float], float]) -> None:
        self.placed = find_kernels(onnx.load_from_string(model))
        self.law = law
        self.total = link(sum(law(one.kernel) for one in self.placed))

    def profile(self, runs: int) -> Events:
        return [((one.output,), self.law(one.kernel)) for one in self.placed]

    def time_ms(self, runs: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full(runs, self.total), np.full(runs, True)

    def close(self) -> None:
        pass


class LawfulDevice(Device):
    """Times models by `law`, then `link`: an oracle for everything that is fitted to measurements."""

    name = "lawful"

    def __init__(self, link: Callable[[float], float] = float, law: Callable[[Kernel], float] = exact_ms) -> None:
        self.link, self.law = link, law

    def fingerprint(self) -> dict[str, str]:
        return {"device": self.name, "precision": "fp32", "threads": "1"}

    def load(self, model: bytes) -> LawfulModel:
        return LawfulModel(model, self.law, self.link)


@pytest.fixture(scope="session")
def lawful() -> LawfulDevice:
    return LawfulDevice()


@pytest.fixture(scope="session")
def lawful_type() -> type[LawfulDevice]:
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
def digits() -> Dataset:
    return load_data("digits", 16)


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
                nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(layer.bias, std=0.3, generator=generator)
            elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.3, generator=generator)
        with torch.no_grad():
            module.train()(torch.randn((8, *shape[1:]), generator=generator))
        return module.eval()

    return wake
