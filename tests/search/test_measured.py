"""What a share of the unpruned latency means."""

import pytest

import latency
from latency.build import build_table
from latency.coverage import quick_plan
from latency.measuring.table import LatencyTable
from latency.prediction.predictor import LatencyPredictor
from search.measured import unpruned_ms


@pytest.mark.parametrize(("pace", "counts"), [(1.3, 1.0), (0.9, 0.9)])
def test_the_faster_of_table_and_measurement_counts(pace: float, counts: float, lawful_type, tiny_network, tmp_path) -> None:
    plan, table = quick_plan(tiny_network, 10), LatencyTable.open(tmp_path, lawful_type().fingerprint())
    predictor = LatencyPredictor(build_table(lawful_type(), tiny_network, plan, table))
    exact = lawful_type().load(tiny_network.onnx(tiny_network.max_widths)).total
    today = lawful_type(lambda total: pace * total)
    assert unpruned_ms(today, tiny_network, predictor, tmp_path) == pytest.approx(counts * exact)
    assert unpruned_ms(lawful_type(), tiny_network, predictor, tmp_path) == pytest.approx(counts * exact)  # kept


def test_a_table_without_the_network_says_nothing(lawful, tiny_module, tiny_network, tmp_path) -> None:
    exact = lawful.load(tiny_network.onnx(tiny_network.max_widths)).total
    other = latency.trace(tiny_module, (1, 3, 24, 24), align=4, name="larger")
    table = LatencyTable.open(tmp_path, lawful.fingerprint())
    predictor = LatencyPredictor(build_table(lawful, other, quick_plan(other, 10), table))
    assert unpruned_ms(lawful, tiny_network, predictor, tmp_path) == pytest.approx(exact)
