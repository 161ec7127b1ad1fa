"""Draws with probability ∝ exp(−cost), against all structures of small problems."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from latency.graph.pairwise import IntractableCost, PairwiseCost
from search.boltzmann import AliasTable, BoltzmannSampler, softmin


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), choices=st.integers(1, 9), spread=st.floats(0, 40))
@settings(max_examples=80)
def test_an_alias_table_holds_exactly_the_probabilities(seed: int, rows: int, choices: int, spread: float) -> None:
    costs = np.random.default_rng(seed).normal(size=(rows, choices)) * spread
    table = AliasTable(costs)
    keep, other = table._keep.reshape(rows, choices), table._other.reshape(rows, choices)
    assert (keep >= -1e-12).all()
    held = np.zeros((rows, choices))
    for row, column in itertools.product(range(rows), range(choices)):
        held[row, column] += keep[row, column]
        held[row, other[row, column]] += 1 - keep[row, column]
    expected = np.exp(-costs - logsumexp(-costs, axis=1, keepdims=True))
    np.testing.assert_allclose(held / choices, expected, atol=1e-12)


def pairwise(rng: np.random.Generator) -> PairwiseCost:
    """Four genes in a cycle of three and a tail."""
    sizes = (3, 4, 2, 3)
    tables = {pair: rng.normal(size=(sizes[pair[0]], sizes[pair[1]])) for pair in ((0, 1), (1, 2), (0, 2), (2, 3))}
    return PairwiseCost(tuple(np.arange(1, size + 1) for size in sizes), 0.7, tables)


def test_draws_have_the_probabilities_of_all_structures(rng) -> None:
    cost = pairwise(rng)
    structures = np.array(list(itertools.product(*(range(len(c)) for c in cost.choices))))
    sampler = BoltzmannSampler(cost)
    assert sampler.log_z == pytest.approx(logsumexp(-cost.at(structures)))
    expected = np.exp(-cost.at(structures) - sampler.log_z)
    drawn = sampler.draw(40_000, rng)
    counts = np.array([(drawn == structure).all(axis=1).sum() for structure in structures])
    chi_square = ((counts - 40_000 * expected) ** 2 / (40_000 * expected)).sum()
    assert chi_square < len(structures) + 5 * np.sqrt(2 * len(structures))


def test_softmin_does_not_overflow() -> None:
    assert softmin(np.array([[1e6, 1e6 + 1]]))[0] == pytest.approx(1e6 - np.log(1 + np.exp(-1)))


def test_genes_that_are_all_connected_are_refused() -> None:
    choices = tuple(np.arange(1, 32) for _ in range(8))
    tables = {pair: np.zeros((31, 31)) for pair in itertools.combinations(range(8), 2)}
    with pytest.raises(IntractableCost):
        BoltzmannSampler(PairwiseCost(choices, 0.0, tables))
