"""Measurements at one speed of the core, on a device whose core wanders."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lawful import CORE_MS, Wandering

from latency.build import build_table
from latency.coverage import quick_plan
from latency.measuring.kept import KeptMeasurements
from latency.measuring.speed import at_speed, difference, typical
from latency.measuring.table import LatencyTable
from latency.prediction.predictor import LatencyPredictor
from latency.validation import measured_against_predicted, summary


@pytest.fixture(params=[True, False], ids=["seen", "unseen"])
def built(request, tiny_network, tmp_path) -> tuple[Wandering, LatencyTable]:
    device = Wandering(seen=request.param)
    table = LatencyTable.open(tmp_path, device.fingerprint())
    build_table(device, tiny_network, quick_plan(tiny_network, 60), table)
    return device, LatencyTable.read(table.path)


def test_predictions_do_not_wander_with_the_core(built, tiny_network, lawful) -> None:
    device, table = built
    structures = quick_plan(tiny_network, 80, seed=7)
    truth = np.array([lawful.load(tiny_network.onnx(widths)).total for widths in structures])
    ratio = LatencyPredictor(table).predict_widths(tiny_network, structures) / truth
    scatter = np.abs(ratio / np.median(ratio) - 1).mean()
    assert (scatter < 0.01) == device.seen
    if device.seen:
        assert np.median(ratio) == pytest.approx(table.core_ms / CORE_MS, rel=0.01)


def test_validation_compares_at_the_tables_speed_and_says_what_the_clock_said(built, tiny_network) -> None:
    device, table = built
    rows = measured_against_predicted(KeptMeasurements(device), tiny_network, LatencyPredictor(table), samples=40, seed=3)
    figures = summary(rows)
    again = figures["measured again"]["mape"]
    assert (again < 1e-9) == device.seen
    assert (figures["predictor"]["mape"] < 0.01) == device.seen
    assert figures["by the clock"]["mape"] > 0.02
    assert ((rows["measured_ms"] - rows["wall_ms"]).abs().max() == 0) != device.seen


def test_a_table_keeps_both_and_its_latencies_are_at_its_speed(built, tiny_network) -> None:
    device, table = built
    raw = table.structures
    if device.seen:
        assert table.core_ms == pytest.approx(np.median(raw["core_ms"]))
        np.testing.assert_allclose(table.latency_ms, raw["latency_ms"] * table.core_ms / raw["core_ms"])
        assert all((rounds >= CORE_MS).all() for rounds in raw["rounds_core_ms"])
    else:
        assert math.isnan(table.core_ms)
        np.testing.assert_array_equal(table.latency_ms, raw["latency_ms"])
    assert list(table.latencies(tiny_network).values()) == table.latency_ms.tolist()


def test_rows_beside_an_earlier_fixed_computation_keep_their_own_speed(tmp_path, tiny_network) -> None:
    device, twice = Wandering(), Wandering(core_ms=2 * CORE_MS)  # as long ago, when it was another computation
    table = LatencyTable.open(tmp_path, device.fingerprint())
    earlier = build_table(twice, tiny_network, quick_plan(tiny_network, 20), table)
    file = table.path / "table.parquet"
    before = LatencyTable.read(file).latency_ms
    pq.write_table(pq.read_table(file).drop_columns(["computation"]), file)

    earlier = LatencyTable.read(table.path)
    assert math.isnan(earlier.core_ms)  # of today's nothing is known
    np.testing.assert_allclose(earlier.latency_ms, before)
    both = build_table(device, tiny_network, quick_plan(tiny_network, 40, seed=1), earlier)
    later = both.structures[len(earlier) :]
    assert both.core_ms == pytest.approx(np.median(later["core_ms"]))
    np.testing.assert_allclose(both.latency_ms[: len(earlier)], before)
    np.testing.assert_allclose(both.latency_ms[len(earlier) :], later["latency_ms"] * both.core_ms / later["core_ms"])


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.01, 1) | st.just(math.nan)), min_size=1), st.floats(0.01, 1))
def test_milliseconds_change_as_those_of_the_fixed_computation_do(pairs: list[tuple[float, float]], wanted: float) -> None:
    latency_ms, core_ms = np.array(pairs).T
    moved = at_speed(latency_ms, core_ms, wanted)
    known = ~np.isnan(core_ms)
    np.testing.assert_allclose(moved[known] / wanted, latency_ms[known] / core_ms[known])
    np.testing.assert_array_equal(moved[~known], latency_ms[~known])
    np.testing.assert_array_equal(at_speed(latency_ms, core_ms, math.nan), latency_ms)
    np.testing.assert_allclose(at_speed(moved, np.full(len(pairs), wanted), wanted), moved)


def test_a_difference_in_speed_is_said_where_there_is_one() -> None:
    assert "1.31 ×" in difference(1.312)
    assert "0.90 ×" in difference(0.9)
    assert difference(1.04) == difference(math.nan) == ""


def test_what_is_typical_is_the_median_of_what_is_known() -> None:
    assert typical([0.3, math.nan, 0.1, 0.2]) == 0.2
    assert math.isnan(typical([math.nan]))
    assert math.isnan(typical([]))
