"""Plans: what the orthogonal array promises is counted."""

import numpy as np
import pytest

import latency
from latency.coverage import full_plan, neighbours, quick_plan
from pruning.networks import load


@pytest.mark.parametrize(
    ("name", "size", "structures"), [("mobilenet_v1", 32, 120), ("mobilenet_v1", 224, 45), ("resnet50", 224, 35)]
)
def test_short_networks_need_more_structures_and_long_ones_fewer(name: str, size: int, structures: int) -> None:
    assert len(quick_plan(latency.trace(load(name), (1, 3, size, size)))) == structures


@pytest.mark.parametrize(("name", "align"), [("mobilenet_v1", 1), ("mobilenet_v1", 8), ("mobilenet_v2", 8), ("resnet50", 1)])
def test_full_plan_shows_every_pair_of_choices_of_genes_that_share_a_layer(name: str, align: int) -> None:
    net = latency.trace(load(name), (1, 3, 64, 64), align=align)
    plan = full_plan(net)
    assert len(plan) <= 31 * 31
    assert len(np.unique(plan, axis=0)) == len(plan)
    for gene, others in enumerate(neighbours(net)):
        for other in others:
            pairs = {tuple(pair) for pair in plan[:, [gene, other]]}
            assert len(pairs) == len(net.genes[gene].choices) * len(net.genes[other].choices)


def test_with_31_choices_every_pair_occurs_exactly_once() -> None:
    net = latency.trace(load("mobilenet_v1"), (1, 3, 64, 64), align=1)
    wide = [gene for gene, facts in enumerate(net.genes) if len(facts.choices) == 31]
    plan = full_plan(net)
    assert len(plan) == 961
    for a in wide:
        for b in wide:
            if a < b:
                assert len({tuple(pair) for pair in plan[:, [a, b]]}) == 961


def test_quick_plan_has_both_ends_and_is_repeatable(tiny_network) -> None:
    plan = quick_plan(tiny_network, 40, seed=3)
    assert len(plan) == len(np.unique(plan, axis=0)) <= 40
    assert tuple(plan[0]) == tiny_network.max_widths
    assert tuple(plan[1]) == tuple(gene.choices[0] for gene in tiny_network.genes)
    np.testing.assert_array_equal(plan, quick_plan(tiny_network, 40, seed=3))
    assert quick_plan(tiny_network, 40, seed=4)[2:].tolist() != plan[2:].tolist()
    many = quick_plan(tiny_network, 300)
    for gene, facts in enumerate(tiny_network.genes):
        assert set(many[:, gene]) == set(facts.choices)
