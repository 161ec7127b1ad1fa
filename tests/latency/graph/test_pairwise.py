"""Sums over gene pairs, against brute force on all structures of small random problems."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.graph.axis import Axis, concatenated
from latency.graph.pairwise import PairwiseCost, Term, linear_terms


@st.composite
def problems(draw) -> PairwiseCost:
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    pairs = list(itertools.combinations(range(len(counts)), 2))
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=6)) if pairs else []
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tables = {(g,): rng.normal(size=counts[g]) for g in range(len(counts)) if rng.random() < 0.7}
    tables |= {(a, b): rng.normal(size=(counts[a], counts[b])) for a, b in chosen}
    return PairwiseCost(tuple(np.arange(count) + 1 for count in counts), float(rng.normal()), tables)


def all_indices(cost: PairwiseCost) -> np.ndarray:
    return np.array(list(itertools.product(*(range(len(c)) for c in cost.choices))))


def brute(cost: PairwiseCost, index: np.ndarray) -> float:
    return cost.constant + sum(float(table[tuple(index[g] for g in genes)]) for genes, table in cost.tables.items())


@given(problems())
@settings(max_examples=60)
def test_argmin_is_the_cheapest_of_all(cost: PairwiseCost) -> None:
    values = cost.at(all_indices(cost))
    np.testing.assert_allclose(values, [brute(cost, index) for index in all_indices(cost)])
    np.testing.assert_allclose(cost.at(cost.argmin()[None])[0], values.min())


@given(problems())
@settings(max_examples=40)
def test_structures_given_as_widths_cost_the_same(cost: PairwiseCost) -> None:
    """Through merged tables and an index by width, which is how millions a second are costed."""
    index = all_indices(cost)
    np.testing.assert_allclose(cost.at_widths(cost.widths(index)), cost.at(index))


def test_widths_that_are_no_choice_are_not_costed_from_tables() -> None:
    cost = PairwiseCost((np.array([2, 5]), np.array([1, 3])), 0.0, {(0, 1): np.arange(4.0).reshape(2, 2)})
    assert cost.at_widths(np.array([[2, 1], [5, 3]])).tolist() == [0.0, 3.0]
    assert cost.at_widths(np.array([[2, 1], [4, 3]])) is None


def test_the_cheapest_of_a_densely_connected_network_is_found_without_its_table() -> None:
    """24 genes, all pairs: an exact table would have 4²⁴ entries. Wider is never cheaper here, so the answer is known."""
    genes = range(24)
    rng = np.random.default_rng(0)
    tables = {pair: rng.random((4, 4)).cumsum(0).cumsum(1) for pair in itertools.combinations(genes, 2)}
    cost = PairwiseCost(tuple(np.arange(4) + 1 for _ in genes), 0.0, tables)
    assert cost.argmin().tolist() == [0] * 24


@given(problems())
@settings(max_examples=40)
def test_conditional_is_the_difference_that_one_gene_makes(cost: PairwiseCost) -> None:
    index = all_indices(cost)[::3]
    for gene in range(len(cost.choices)):
        by_choice = cost.conditional(gene, index)
        for choice in range(len(cost.choices[gene])):
            changed = index.copy()
            changed[:, gene] = choice
            expected = cost.at(changed) - cost.at(index)
            now = by_choice[np.arange(len(index)), index[:, gene]]
            np.testing.assert_allclose(by_choice[:, choice] - now, expected, atol=1e-9)


@given(problems(), problems())
@settings(max_examples=20)
def test_plus_and_scaled_are_linear(a: PairwiseCost, b: PairwiseCost) -> None:
    if [len(c) for c in a.choices] != [len(c) for c in b.choices]:
        b = a.scaled(-2.0)
    index = all_indices(a)
    np.testing.assert_allclose(a.plus(b.scaled(3.0)).at(index), a.at(index) + 3 * b.at(index), atol=1e-9)


def test_tabulate_evaluates_terms_on_the_grid_of_their_genes() -> None:
    choices = [(1, 2, 3), (4, 5)]
    terms = [
        Term((Axis(3, 0), Axis(5, 1)), lambda a, b: a * b),
        Term((Axis(7), Axis(10, 1, 2)), lambda a, b: a + b),
        Term((Axis(3, 0), Axis(3, 0)), lambda a, b: a * b),
        Term((Axis(2), Axis(2)), lambda a, b: a * b),
    ]
    cost = PairwiseCost.tabulate(terms, choices)
    for x, y in itertools.product(*choices):
        expected = x * y + (7 + 2 * y) + x * x + 4
        assert cost.at(cost.indices(np.array([[x, y]])))[0] == expected


@pytest.mark.parametrize(
    ("inputs", "outputs", "dense"),
    [
        ((0, 1, 2), (3,), True), ((0, 1, 2), (3, 3), True), ((0, 1, 2), (0, 1, 2), False), ((0, 1, 2), (0, 1, 2), True),
        ((0,), (1, 2), True), ((0, 1), (2, 3), True), ((0, 1), (1, 2), True),
    ],
)  # fmt: skip
def test_costs_that_are_linear_in_both_lengths_are_tabulated_exactly(inputs, outputs, dense: bool) -> None:
    choices = [(2, 4, 6), (1, 5), (3, 8), (2, 10)]
    read, made = (concatenated([Axis(choices[gene][-1], gene) for gene in genes]) for genes in (inputs, outputs))

    def cost(m, n):
        return 3 + 2 * m + 5 * n + 7 * m * n if dense else 3 + 2 * m + 5 * n

    table = PairwiseCost.tabulate(linear_terms(read, made, cost, np.array([2, 1, 3, 2]), dense=dense), choices)
    everything = np.array(list(itertools.product(*choices)))
    np.testing.assert_allclose(table.at(table.indices(everything)), cost(read.length(everything), made.length(everything)))


def test_widths_and_indices_are_inverse(tiny_network, rng, random_widths) -> None:
    widths = random_widths(tiny_network, rng, 20)
    cost = tiny_network.macs_cost
    np.testing.assert_array_equal(cost.widths(cost.indices(widths)), widths)
