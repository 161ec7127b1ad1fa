"""Where final trainings begin."""

import numpy as np
import pytest
import torch

from pruning.train import SUPERNETS, continued_structure, new_pruningnet, new_structure
from search.retrain import Start


@pytest.fixture(scope="module")
def pruningnet(tiny_network):
    return new_pruningnet(tiny_network, SUPERNETS["focused"], 0)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_they_begin_with_what_the_pruningnet_generates(tiny_network, pruningnet) -> None:
    for share in (0.5, 1.0):
        widths = tiny_network.nearest_widths(share)
        assert same(Start(tiny_network, 0, None, pruningnet)(widths), continued_structure(pruningnet, widths))


def test_they_begin_at_the_scale_of_fresh_weights(tiny_network, pruningnet) -> None:
    widths = tiny_network.nearest_widths(0.5)
    begun, generated = Start(tiny_network, 0, None, pruningnet)(widths), pruningnet.structure(widths)
    begun, generated = begun.get_parameter("stem.0.weight"), generated.get_parameter("stem.0.weight")
    assert float(begun.norm()) == pytest.approx(np.sqrt(2 * 3))  # He, fan out: 2 · inputs / groups
    torch.testing.assert_close(begun / begun.norm(), generated / generated.norm())
    assert not torch.allclose(begun, generated)


def test_from_scratch_they_are_drawn_from_the_seed(tiny_network) -> None:
    widths = tiny_network.nearest_widths(0.5)
    begun = [Start(tiny_network, seed, None, None)(widths) for seed in (3, 3, 4)]
    assert same(begun[0], new_structure(tiny_network, widths, 3))
    assert same(begun[0], begun[1])
    assert not same(begun[0], begun[2])


def test_trained_weights_are_sliced_without_a_pruningnet_and_stay_with_the_unpruned_network(tiny_network, pruningnet) -> None:
    weights = tiny_network.module.state_dict()
    half, full = tiny_network.nearest_widths(0.5), np.array(tiny_network.max_widths)
    assert same(Start(tiny_network, 0, weights, None)(half), new_structure(tiny_network, half, 0, weights))
    assert same(Start(tiny_network, 0, weights, pruningnet)(half), continued_structure(pruningnet, half))
    assert same(Start(tiny_network, 0, weights, pruningnet)(full), new_structure(tiny_network, full, 0, weights))
