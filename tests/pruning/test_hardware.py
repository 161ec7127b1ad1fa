"""What a GPU computes is what the CPU computes."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from pruning.bank import CAPACITY, Bank
from pruning.data import Dataset
from pruning.evaluate import StructureEvaluator, accuracy
from pruning.fit import Recipe
from pruning.hardware import compute_device
from pruning.train import SUPERNETS, continued_structure, new_pruningnet, new_structure, train_pruningnet, train_structure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def quietly(done: int, loss: float) -> None:
    pass


@pytest.fixture
def exactly(monkeypatch) -> None:
    """Full precision, so that all differences are roundings."""
    monkeypatch.setattr("pruning.fit.mixed_precision", lambda device: contextlib.nullcontext())
    monkeypatch.setattr("pruning.evaluate.mixed_precision", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("recipe", SUPERNETS)
def test_a_pruningnet_trains_and_ranks_as_on_the_cpu(recipe: str, digits, tiny_network, tmp_path, exactly) -> None:
    few: Dataset = dataclasses.replace(digits, train=digits.train.subset(torch.arange(160)))
    losses = []
    for place in (torch.device("cpu"), compute_device()):
        supernet = new_pruningnet(tiny_network, SUPERNETS[recipe], 0).to(place)
        data, path = few.to(place), tmp_path / place.type
        train_pruningnet(
            supernet, SUPERNETS[recipe], data, Recipe(epochs=4, batch=32), seed=1, checkpoint=path, progress=quietly
        )
        evaluate = StructureEvaluator(supernet, data)
        losses.append([evaluate(tiny_network.nearest_widths(scale)).loss for scale in (0.3, 0.6, 1.0)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_a_bank_settles_all_its_filters_as_on_the_cpu() -> None:
    codes = torch.randn(CAPACITY + 4, 8, generator=torch.Generator().manual_seed(0))
    values = []
    for place in ("cpu", "cuda"):
        torch.manual_seed(0)
        bank = Bank((40, 5, 9), 8, 1.0).to(place)
        for code in codes:
            product = bank.product(code.to(place).requires_grad_(), (slice(0, 33), slice(0, 4)))
            (product**2).mean().backward()
            bank.step(0.1, 0.9, 1e-2)
        bank.settle()
        values.append(bank.values.detach().cpu().numpy())
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=1e-5)


def test_in_mixed_precision_candidates_keep_their_losses(digits, tiny_network) -> None:
    supernet, widths = new_pruningnet(tiny_network, SUPERNETS["paper"], 0), tiny_network.nearest_widths(0.6)
    expected = StructureEvaluator(supernet, digits)(widths).loss
    place = compute_device()
    assert StructureEvaluator(supernet.to(place), digits.to(place))(widths).loss == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("continued", [False, True])
def test_a_structure_learns(continued: bool, digits, tiny_network, tmp_path) -> None:
    place, widths = compute_device(), tiny_network.nearest_widths(0.6)
    data = digits.to(place)
    supernet = new_pruningnet(tiny_network, SUPERNETS["paper"], 0).to(place)
    structure = continued_structure(supernet, widths) if continued else new_structure(tiny_network, widths, 0)
    structure = structure.to(place)
    train_structure(
        structure, tiny_network, widths, data, Recipe(epochs=6, batch=32), seed=0, checkpoint=tmp_path / "c", progress=quietly
    )
    assert accuracy(structure, data.test, data) > 0.6
