"""The finish, on a device that disagrees with its predictor in known ways."""

import numpy as np
import pytest
from lawful import LawfulDevice, Wandering

from latency.build import build_table
from latency.coverage import quick_plan
from latency.measuring.table import LatencyTable
from latency.prediction.predictor import LatencyPredictor
from search.budget import BudgetError
from search.feasible import FeasibleSet
from search.finalists import FINALISTS, Finish, finish, measured_front, measured_ms
from search.genetic import Candidate


@pytest.fixture(scope="module")
def predictor(tiny_network, lawful, tmp_path_factory) -> LatencyPredictor:
    table = LatencyTable.open(tmp_path_factory.mktemp("lut"), lawful.fingerprint())
    return LatencyPredictor(build_table(lawful, tiny_network, quick_plan(tiny_network, 80), table))


def candidate(network, widths) -> Candidate:
    """The more parameters, the less its loss; its accuracy says nothing."""
    return Candidate(tuple(map(int, widths)), accuracy=0.5, loss=-float(network.params(widths)) / 1e6)


def finished(
    device, network, predictor, share: float, judge=candidate, count: int = 60
) -> tuple[Finish, list[Candidate], float]:
    def predict(structures: np.ndarray) -> np.ndarray:
        return predictor.predict_widths(network, structures)

    limit = share * float(predict(np.array([network.max_widths]))[0])
    feasible = FeasibleSet(network, latency_ms=limit, predictor=predictor)
    drawn = np.unique(feasible.sample(count, np.random.default_rng(0)), axis=0)
    candidates = [judge(network, widths) for widths in drawn]
    return finish(device, network, candidates, feasible, predict, limit, lambda done, note: None), candidates, limit


def exact(device, network, widths) -> float:
    return device.load(network.onnx(widths)).total


def test_the_best_candidate_within_the_measured_budget_wins(lawful, tiny_network, predictor) -> None:
    result, candidates, limit = finished(lawful, tiny_network, predictor, 0.7)
    within = [c for c in candidates if exact(lawful, tiny_network, c.widths) <= limit]
    assert result.winner == min(within, key=lambda c: c.loss).widths
    assert result.winner_ms == pytest.approx(exact(lawful, tiny_network, result.winner))
    assert result.unpruned_ms == pytest.approx(exact(lawful, tiny_network, tiny_network.max_widths))
    assert result.uniform_ms == pytest.approx(result.winner_ms, rel=0.12)


def test_of_a_device_elsewhere_the_best_candidate_wins_by_its_prediction(lawful_type, tiny_network, predictor) -> None:
    elsewhere = lawful_type()
    elsewhere.at_hand, elsewhere.load = False, None
    result, candidates, limit = finished(elsewhere, tiny_network, predictor, 0.7)
    assert result.winner == min(candidates, key=lambda c: c.loss).widths
    assert (result.unpruned_ms, result.winner_ms, result.uniform_ms) == result.predicted_ms
    assert result.winner_ms <= limit
    assert not result.finalists


@pytest.mark.parametrize("slower", [1.05, 1.15])
def test_a_device_slower_than_predicted_costs_measurements_not_the_budget(lawful_type, tiny_network, predictor, slower) -> None:
    device = lawful_type(lambda total: total * slower)
    result, _, limit = finished(device, tiny_network, predictor, 0.7)
    assert result.winner_ms <= limit
    assert result.accuracy is not None
    assert len(result.finalists) < 60
    assert all(f.measured_ms == pytest.approx(slower * exact(lawful_type(), tiny_network, f.widths)) for f in result.finalists)


def test_a_machine_that_slows_down_after_each_block_is_learnt_from(tiny_network, predictor) -> None:
    """What meets the budget among others and misses it alone: without a lesson every candidate would be tried so."""
    unpruned = tiny_network.onnx(tiny_network.max_widths)

    def slow_is_good(network, widths) -> Candidate:
        return Candidate(tuple(map(int, widths)), 0.5, -float(predictor.predict_widths(network, widths)[0]))

    class SlowLater(LawfulDevice):
        def measure_all(self, models, protocol=None):
            self.link = lambda total: total * (1.15 if models[0] == unpruned else 1.0)
            return super().measure_all(models, protocol)

    result, candidates, limit = finished(SlowLater(), tiny_network, predictor, 0.7, slow_is_good, 600)
    assert 0.8 * limit < result.winner_ms <= limit
    assert result.accuracy is not None
    assert len(result.finalists) <= 2 * FINALISTS < len(candidates)


def test_when_no_candidate_fits_the_smallest_structure_is_returned(lawful_type, tiny_network, predictor) -> None:
    full = exact(lawful_type(), tiny_network, tiny_network.max_widths)
    device = lawful_type(lambda total: total if total < 0.45 * full else 10 * total)
    result, _, limit = finished(device, tiny_network, predictor, 0.5)
    assert result.winner_ms <= limit


def test_a_device_on_which_nothing_fits_is_an_error_with_the_smallest_measured(lawful_type, tiny_network, predictor) -> None:
    with pytest.raises(BudgetError, match="smallest measured"):
        finished(lawful_type(lambda total: total * 100), tiny_network, predictor, 0.5)


def test_results_survive_json(lawful, tiny_network, predictor) -> None:
    import dataclasses
    import json

    result, _, _ = finished(lawful, tiny_network, predictor, 0.7)
    assert Finish.from_json(json.loads(json.dumps(dataclasses.asdict(result)))) == result


def test_a_front_is_measured_from_end_to_end(lawful_type, tiny_network, predictor) -> None:
    def predict(structures: np.ndarray) -> np.ndarray:
        return predictor.predict_widths(tiny_network, structures)

    drawn = FeasibleSet(tiny_network, macs=1e9).sample(80, np.random.default_rng(0))
    candidates = [candidate(tiny_network, widths) for widths in drawn]
    device = lawful_type(lambda total: total * 1.1)
    front = measured_front(device, tiny_network, candidates, predict, 4)
    assert 2 <= len(front) <= 4
    assert front[-1].loss == min(candidate.loss for candidate in candidates)
    assert front[0].predicted_ms == pytest.approx(predict(drawn).min())
    assert [f.measured_ms for f in front] == sorted(f.measured_ms for f in front)
    assert [f.loss for f in front] == sorted((f.loss for f in front), reverse=True)


@pytest.mark.parametrize("seen", [True, False])
def test_structures_of_one_session_are_compared_at_one_speed_of_the_core(seen: bool, lawful, tiny_network) -> None:
    structures = quick_plan(tiny_network, 8)
    truth = np.array([lawful.load(tiny_network.onnx(widths)).total for widths in structures])
    ratio = measured_ms(Wandering(seen=seen), tiny_network, structures) / truth
    assert 1.0 <= np.median(ratio) <= 1.2
    assert (ratio.max() / ratio.min() < 1.001) == seen
