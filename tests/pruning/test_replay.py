"""That what a GPU replays is what is computed operation by operation."""

import dataclasses

import numpy as np
import pytest
import torch
from gpu import on_gpu
from torch import nn

from pruning import replay
from pruning.bank import Bank
from pruning.evaluate import StructureEvaluator
from pruning.hardware import compute_device
from pruning.recipe import Recipe
from pruning.replay import WARM_UP, Replayed
from pruning.train import SUPERNETS, new_pruningnet, new_structure, random_widths, train_pruningnet, train_structure


class Banked(nn.Module):
    """Scores of a bank's weights, and how often they have been asked for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bank, self.code, self.calls = Bank((4, 3, 1), 2, 1.0), nn.Parameter(torch.ones(2)), 0

    def learn(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        loss = (images @ self.bank.product(self.code, None).squeeze(2).T).square().mean()
        loss.backward()
        return loss.detach()


def test_a_cpu_computes_every_time() -> None:
    module = Banked()
    learn, images = Replayed(module.learn, module, backward=True), torch.ones(5, 3)
    results = [learn(images * scale).item() for scale in range(WARM_UP + 3)]
    assert module.calls == WARM_UP + 3
    np.testing.assert_allclose(results, results[1] * np.arange(WARM_UP + 3) ** 2, rtol=1e-5)


@on_gpu
@pytest.mark.parametrize("recordable", [True, False])
def test_gradients_and_results_are_the_same_recorded_or_not(recordable: bool, exactly) -> None:
    module = Banked().cuda()

    def learn(images: torch.Tensor) -> torch.Tensor:
        loss = module.learn(images)
        return loss if recordable else loss.new_tensor(loss.item())  # waits for the GPU, which CUDA does not record

    learned, expected = Replayed(learn, module, backward=True), Banked()
    for step in range(2 * WARM_UP):
        images = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(learned(images.cuda()).cpu(), expected.learn(images))
        for one in (module, expected):
            one.bank.step(0.1, 0.9, 1e-2)
    assert module.calls == (WARM_UP + 1 if recordable else 2 * WARM_UP + 1)
    expected.bank.settle()
    torch.testing.assert_close(module.bank.values.cpu(), expected.bank.values)
    torch.testing.assert_close(module.code.grad.cpu(), expected.code.grad)


@on_gpu
@pytest.mark.parametrize("recipe", SUPERNETS)
def test_a_pruningnet_learns_and_ranks_the_same(recipe: str, digits, tiny_network, tmp_path, exactly, monkeypatch) -> None:
    data = dataclasses.replace(digits, train=digits.train.subset(torch.arange(160))).to(compute_device())
    widths = [random_widths(tiny_network, np.random.default_rng(seed)) for seed in range(2 * WARM_UP)]
    seen: list[list[float]] = []
    for warm_up in (WARM_UP, 10**9):
        monkeypatch.setattr(replay, "WARM_UP", warm_up)
        losses: list[float] = []
        supernet = new_pruningnet(tiny_network, SUPERNETS[recipe], 0).to(compute_device())
        train_pruningnet(
            supernet, SUPERNETS[recipe], data, Recipe(epochs=4, batch=32), seed=1, checkpoint=tmp_path / str(warm_up),
            progress=lambda step, loss, losses=losses: losses.append(loss),
        )  # fmt: skip
        evaluate = StructureEvaluator(supernet, data)
        seen.append(losses[1:] + [evaluate(one).loss for one in widths])
    np.testing.assert_allclose(*seen, rtol=1e-3)


@on_gpu
def test_a_structure_learns_the_same(digits, tiny_network, tmp_path, exactly, monkeypatch) -> None:
    data, widths = digits.to(compute_device()), tiny_network.nearest_widths(0.6)
    states = []
    for warm_up in (WARM_UP, 10**9):
        monkeypatch.setattr(replay, "WARM_UP", warm_up)
        structure = new_structure(tiny_network, widths, 0).to(compute_device())
        train_structure(
            structure, tiny_network, widths, data, Recipe(epochs=1, batch=128), seed=0, checkpoint=tmp_path / str(warm_up),
            progress=lambda step, loss: None,
        )  # fmt: skip
        states.append(structure.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-2, atol=1e-3)
