"""Feasible sets, against all structures of a small network."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latency
from latency.build import build_table
from latency.coverage import quick_plan
from latency.measuring.table import LatencyTable
from latency.prediction.predictor import LatencyPredictor
from pruning.networks import load
from search.budget import BudgetError
from search.feasible import FeasibleSet


@pytest.fixture(scope="module")
def small(tiny_module) -> latency.Network:
    """Coarse choices: 2 · 4 · 1 · 6 · 3 structures."""
    return latency.trace(tiny_module, (1, 3, 16, 16), align=8, name="tiny")


@pytest.fixture(scope="module")
def predictor(small, lawful, tmp_path_factory) -> LatencyPredictor:
    table = LatencyTable.open(tmp_path_factory.mktemp("lut"), lawful.fingerprint())
    return LatencyPredictor(build_table(lawful, small, quick_plan(small, 60), table))


def everything(network: latency.Network) -> np.ndarray:
    return np.array(list(itertools.product(*(gene.choices for gene in network.genes))))


def rows(array: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(map(int, row)) for row in array}


@given(share=st.floats(0.0, 1.3), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_samples_are_exactly_the_feasible_structures(small, share: float, seed: int) -> None:
    structures = everything(small)
    macs = small.macs(structures)
    budget = float(macs.min() + share * (macs.max() - macs.min()))
    feasible = FeasibleSet(small, macs=budget)
    inside = structures[macs <= budget]
    np.testing.assert_array_equal(feasible.contains(structures), macs <= budget)
    drawn = feasible.sample(200, np.random.default_rng(seed))
    assert rows(drawn) <= rows(inside)
    assert small.macs(feasible.smallest()) == macs.min()


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_sampling_is_uniform_over_the_feasible_set(small, share: float) -> None:
    """Chi-square against equal counts; the statistic's deviation is √(2k) about k."""
    structures = everything(small)
    macs = small.macs(structures)
    budget = float(np.quantile(macs, share))
    drawn = FeasibleSet(small, macs=budget).sample(6000, np.random.default_rng(1))
    inside = rows(structures[macs <= budget])
    counts = np.array([np.all(drawn == row, axis=1).sum() for row in inside])
    assert (counts > 0).all()
    expected = len(drawn) / len(inside)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < len(inside) + 6 * np.sqrt(2 * len(inside))


def test_latency_budgets_hold_in_milliseconds(small, predictor) -> None:
    structures = everything(small)
    ms = predictor.predict_widths(small, structures)
    for share in (0.1, 0.5, 0.9):
        budget = float(np.quantile(ms, share))
        feasible = FeasibleSet(small, latency_ms=budget * (1 + 1e-9), predictor=predictor)
        drawn = feasible.sample(300, np.random.default_rng(0))
        assert predictor.predict_widths(small, drawn).max() <= budget * (1 + 1e-6)
        assert feasible.contains(structures).sum() == (ms <= budget * (1 + 1e-9)).sum()
        assert predictor.predict_widths(small, feasible.smallest()) == pytest.approx(ms.min())


def test_budgets_combine_and_ranges_have_two_ends(small, predictor) -> None:
    structures = everything(small)
    ms, macs, params = predictor.predict_widths(small, structures), small.macs(structures), small.params(structures)
    most_ms, most_params = float(np.median(ms)) * (1 + 1e-9), float(np.quantile(params, 0.7))
    low, high = float(np.quantile(macs, 0.2)), float(np.quantile(macs, 0.6))
    feasible = FeasibleSet(small, latency_ms=most_ms, macs=(low, high), params=most_params, predictor=predictor)
    inside = (ms <= most_ms) & (macs >= low) & (macs <= high) & (params <= most_params)
    assert rows(feasible.sample(2000, np.random.default_rng(0))) == rows(structures[inside])
    np.testing.assert_array_equal(feasible.contains(structures), inside)


@pytest.mark.parametrize(
    ("name", "macs"),
    [("mobilenet_v1", 41e6), ("mobilenet_v2", 43e6), ("resnet50", (0.95e9, 1.05e9))],
)
def test_the_papers_tightest_budgets_which_rejection_never_meets(name: str, macs) -> None:
    net = latency.trace(load(name), (1, 3, 224, 224), align=1)
    low, high = macs if isinstance(macs, tuple) else (0, macs)
    drawn = FeasibleSet(net, macs=macs).sample(500, np.random.default_rng(0))
    assert low <= net.macs(drawn).min()
    assert net.macs(drawn).max() <= high
    assert len(rows(drawn)) == 500


def test_what_cannot_be_met_names_the_smallest_reachable_value(small, predictor) -> None:
    structures = everything(small)
    least = small.macs(structures).min()
    with pytest.raises(BudgetError, match=rf"smallest reachable is {least / 1e3:.3g}K"):
        FeasibleSet(small, macs=float(least - 1)).smallest()
    ms = predictor.predict_widths(small, structures).min()
    with pytest.raises(BudgetError, match=rf"smallest reachable is {ms:.3g} ms"):
        FeasibleSet(small, latency_ms=ms * 0.99, predictor=predictor).sample(1, np.random.default_rng(0))
    with pytest.raises(BudgetError, match="largest reachable"):
        FeasibleSet(small, macs=(1e9, 2e9)).smallest()
    with pytest.raises(BudgetError, match="all budgets together"):
        FeasibleSet(small, macs=(small.macs(small.max_widths), 1e9), params=float(small.params(structures).min())).smallest()


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf"), (5, 4)])
def test_bounds_that_are_no_bounds(small, bound) -> None:
    with pytest.raises(BudgetError, match="positive number"):
        FeasibleSet(small, macs=bound)


def test_no_budget_and_no_predictor_are_clear_errors(small) -> None:
    with pytest.raises(BudgetError, match="no budget"):
        FeasibleSet(small)
    with pytest.raises(latency.MillipruneError, match="predictor"):
        FeasibleSet(small, latency_ms=1.0)


@given(share=st.floats(0.05, 0.9), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_children_are_feasible_and_made_of_their_parents(small, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feasible = FeasibleSet(small, macs=float(np.quantile(small.macs(everything(small)), share)))
    first, second = feasible.sample(2, rng)
    child = feasible.crossed(first, second, rng)
    assert feasible.contains(child)[0]
    assert ((child == first) | (child == second)).all()
    assert feasible.contains(feasible.mutated(first, 0.5, rng))[0]
    np.testing.assert_array_equal(feasible.mutated(first, 0.0, rng), first)


def test_levels_reach_from_the_smallest_to_the_budgets(tiny_network) -> None:
    feasible = FeasibleSet(tiny_network, macs=(60_000, 150_000), params=12_000)
    levels = feasible.levels(5)
    tops = [level.bounds()["macs"][1] for level in levels]
    assert tops == sorted(tops)
    assert tops[-1] == pytest.approx(150_000)
    for level, top in zip(levels, tops, strict=True):
        drawn = level.sample(200, np.random.default_rng(0))
        assert level.contains(drawn).all()
        assert feasible.contains(drawn).all()
        assert tiny_network.macs(drawn).max() <= top * (1 + 1e-9)
        assert tiny_network.macs(drawn).max() > 0.8 * top
        assert level.contains(level.smallest())[0]
