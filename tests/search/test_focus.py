"""What PruningNets are trained on: structures within the budget, told apart from those of other budgets and devices."""

import numpy as np
import pytest

from latency.build import build_table
from latency.coverage import quick_plan
from latency.measuring.table import LatencyTable
from latency.prediction.predictor import LatencyPredictor
from pruning.train import SUPERNETS
from search.feasible import FeasibleSet
from search.focus import trained_on

FOCUSED = SUPERNETS["focused"]


@pytest.fixture(scope="module")
def predictor(tiny_network, lawful, tmp_path_factory) -> LatencyPredictor:
    table = LatencyTable.open(tmp_path_factory.mktemp("lut"), lawful.fingerprint())
    return LatencyPredictor(build_table(lawful, tiny_network, quick_plan(tiny_network, 60), table))


def test_focused_structures_are_random_ones_within_the_budget(tiny_network, lawful) -> None:
    full = tiny_network.macs(tiny_network.max_widths)
    feasible = FeasibleSet(tiny_network, macs=0.3 * full)
    draw = trained_on(FOCUSED, feasible, lawful).draw
    drawn = np.array([draw(np.random.default_rng(seed)) for seed in range(200)])
    assert feasible.contains(drawn).all()
    assert len(np.unique(drawn, axis=0)) > 100
    np.testing.assert_array_equal(draw(np.random.default_rng(7)), drawn[7])


def test_other_recipes_are_trained_on_all_structures(tiny_network, lawful) -> None:
    feasible = FeasibleSet(tiny_network, macs=0.3 * tiny_network.macs(tiny_network.max_widths))
    structures = trained_on(SUPERNETS["paper"], feasible, lawful)
    drawn = np.array([structures.draw(np.random.default_rng(seed)) for seed in range(200)])
    assert 0.05 < feasible.contains(drawn).mean() < 0.95
    assert structures.within == {}


def test_for_a_front_they_come_from_all_along_it(tiny_network, lawful, predictor) -> None:
    most = float(predictor.predict_widths(tiny_network, [tiny_network.max_widths])[0])
    feasible = FeasibleSet(tiny_network, latency_ms=most, predictor=predictor)
    quickest = []
    for front in (False, True):
        draw = trained_on(FOCUSED, feasible, lawful, front=front).draw
        drawn = np.array([draw(np.random.default_rng(seed)) for seed in range(100)])
        quickest.append(float(np.quantile(predictor.predict_widths(tiny_network, drawn), 0.1)))
    assert quickest[1] < 0.8 * quickest[0]


def test_trainings_are_told_apart_by_budget_and_purpose(tiny_network, lawful, predictor) -> None:
    def within(latency_ms: float, **purpose: bool) -> object:
        feasible = FeasibleSet(tiny_network, latency_ms=latency_ms, predictor=predictor)
        return trained_on(FOCUSED, feasible, lawful, **purpose).within

    most = float(predictor.predict_widths(tiny_network, [tiny_network.max_widths])[0])
    assert within(0.5 * most) == within(0.5 * most * (1 + 1e-9))
    assert within(0.5 * most) != within(0.6 * most)
    assert within(0.5 * most) != within(0.5 * most, front=True)
    macs = trained_on(FOCUSED, FeasibleSet(tiny_network, macs=50_000), lawful).within
    assert macs["device"] == "any" != within(0.5 * most)["device"]
    assert within(0.5 * most)["budgets"] == {"latency": ["0", f"{0.5 * most:.6g}"]}
