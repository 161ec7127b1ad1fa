"""Where what is computed in which precision, and that a GPU computes what the CPU does."""

import dataclasses

import numpy as np
import pytest
import torch
from gpu import on_gpu
from scipy.stats import kendalltau

import latency
from latency.coverage import quick_plan
from pruning.bank import CAPACITY, Bank
from pruning.data import Dataset, load_data
from pruning.evaluate import StructureEvaluator, accuracy
from pruning.hardware import compute_device, mixed_precision
from pruning.networks import load
from pruning.recipe import Recipe
from pruning.replay import WARM_UP
from pruning.train import (
    SUPERNETS,
    continued_structure,
    new_pruningnet,
    new_structure,
    random_widths,
    train_pruningnet,
    train_structure,
)

CPU = torch.device("cpu")


def quietly(done: int, loss: float) -> None:
    pass


@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_f": True}, None])
def test_a_cpu_scores_in_bfloat16_where_it_computes_in_it_and_never_trains_in_it(able, monkeypatch) -> None:
    if able is None:  # an older PyTorch, which does not tell
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    a, b = torch.ones(2, 4, 4)
    for backward in (True, False):
        with mixed_precision(CPU, backward=backward):
            lowered = (a @ b).dtype == torch.bfloat16
        assert lowered == (not backward and able is not None and "avx512_f" not in able)


def test_in_bfloat16_structures_score_as_in_fp32(digits, tiny_network, tmp_path, monkeypatch) -> None:
    supernet = new_pruningnet(tiny_network, SUPERNETS["paper"], 0)
    recipe = Recipe(epochs=6, batch=32)
    train_pruningnet(supernet, SUPERNETS["paper"], digits, recipe, seed=0, checkpoint=tmp_path / "c", progress=quietly)
    evaluate, structures = StructureEvaluator(supernet, digits), quick_plan(tiny_network, 12)
    losses = []
    for able in (False, True):
        monkeypatch.setattr("pruning.hardware._cpu_has_bfloat16", lambda able=able: able)
        losses.append([evaluate(widths).loss for widths in structures])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert kendalltau(*losses).statistic > 0.9


@on_gpu
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


@on_gpu
@pytest.mark.parametrize("name", ["mixed", "tiny_convnext", "halves", "derived", "twice"])
def test_candidates_of_any_network_score_as_on_the_cpu(name: str, exactly) -> None:
    network = latency.trace(load(f"tinynet:{name}", 10), (1, 3, 32, 32), name=name)
    supernet, rng = new_pruningnet(network, SUPERNETS["paper"], 0), np.random.default_rng(0)
    structures = [random_widths(network, rng) for _ in range(2 * WARM_UP)]
    losses = []
    for place in (CPU, compute_device()):
        evaluate = StructureEvaluator(supernet.to(place), load_data("digits", 32).to(place))
        losses.append([evaluate(widths).loss for widths in structures])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@on_gpu
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


@on_gpu
def test_in_mixed_precision_candidates_keep_their_losses(digits, tiny_network) -> None:
    supernet, widths = new_pruningnet(tiny_network, SUPERNETS["paper"], 0), tiny_network.nearest_widths(0.6)
    expected = StructureEvaluator(supernet, digits)(widths).loss
    place = compute_device()
    assert StructureEvaluator(supernet.to(place), digits.to(place))(widths).loss == pytest.approx(expected, rel=0.01)


@on_gpu
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
