"""Adaptive coverage, on a device whose law is known."""

import json
import time

import numpy as np
import pytest
from lawful import LawfulDevice

from latency.build import build_adaptively, build_table, expected_s
from latency.coverage import quick_plan
from latency.errors import MeasurementError, TableError
from latency.measuring.table import REFUSED, LatencyTable
from latency.prediction.predictor import LatencyPredictor


def test_it_stops_by_itself_once_predictions_get_no_better(lawful, tiny_network, tmp_path) -> None:
    table = LatencyTable.open(tmp_path, lawful.fingerprint())
    done = []
    table, errors = build_adaptively(lawful, tiny_network, table, progress=done.append)
    assert 8 <= len(errors) < 30
    assert np.mean(errors[-4:]) < 0.02
    assert len(LatencyTable.read(table.path)) == table.count(tiny_network) == sum(done)
    assert not list(table.path.glob("part-*"))


def test_time_is_a_limit_and_the_next_call_goes_on(lawful, tiny_network, tmp_path) -> None:
    table = LatencyTable.open(tmp_path, lawful.fingerprint())
    first, errors = build_adaptively(lawful, tiny_network, table, minutes=0.0)
    assert not errors
    again, errors = build_adaptively(lawful, tiny_network, LatencyTable.read(first.path))
    assert len(again) > len(first)
    assert len(errors) >= 8


class Choosy(LawfulDevice):
    """Refuses structures whose stem is wide, and notes what it was asked to load."""

    def __init__(self, widest: int) -> None:
        super().__init__()
        self.widest, self.asked = widest, 0

    def load(self, model: bytes):
        self.asked += 1
        loaded = super().load(model)
        if loaded.placed[0].kernel.cout > self.widest:
            raise MeasurementError("no tactic fits")
        return loaded


def test_refused_structures_are_recorded_and_left_out_then_and_later(lawful, tiny_network, tmp_path) -> None:
    plan, device = quick_plan(tiny_network, 30), Choosy(8)
    wide = {tuple(map(int, widths)) for widths in plan if widths[0] > 8}
    assert wide
    done: list[int] = []
    table = build_table(device, tiny_network, plan, LatencyTable.open(tmp_path, device.fingerprint()), progress=done.append)
    assert sum(done) == len(plan)
    assert {widths for _, widths in table.refused} == wide
    assert len(table) == len(plan) - len(wide)
    record = json.loads((table.path / REFUSED).read_text().splitlines()[0])
    assert record["reason"] == "no tactic fits"
    assert record["network"] == tiny_network.name
    asked = device.asked
    again = build_table(device, tiny_network, plan, LatencyTable.open(tmp_path, device.fingerprint()))
    assert len(again) == len(table)
    assert device.asked == asked
    (table.path / REFUSED).write_text("spoilt")
    with pytest.raises(TableError, match="remove it"):
        build_table(device, tiny_network, plan, again)


def test_adaptive_coverage_goes_around_what_is_refused(tiny_network, tmp_path) -> None:
    device = Choosy(12)
    table, errors = build_adaptively(device, tiny_network, LatencyTable.open(tmp_path, device.fingerprint()), minutes=0.05)
    assert table.refused
    assert np.isfinite(errors).all()


def test_a_device_that_refuses_everything_says_why(tiny_network, tmp_path) -> None:
    device, plan = Choosy(0), quick_plan(tiny_network, 20)
    for _ in range(4):  # the first visits of 8 structures each, and one that finds nothing left to try
        with pytest.raises(MeasurementError, match=f"no tactic fits.*{REFUSED}"):
            build_table(device, tiny_network, plan, LatencyTable.open(tmp_path, device.fingerprint()))


def test_the_expected_time_is_of_the_order_of_what_it_takes(tiny_network) -> None:
    slow = LawfulDevice()
    slow.load = lambda model: (time.sleep(0.1), LawfulDevice.load(slow, model))[1]  # type: ignore[method-assign]
    assert 1.0 < expected_s(slow, tiny_network, quick_plan(tiny_network, 10)) < 5.0


def test_doubt_is_largest_where_nothing_was_measured(lawful_type, tiny_network, tmp_path) -> None:
    slow = lawful_type(lambda total: 100 * total)  # so slow that a run's own jitter does not matter
    plan = quick_plan(tiny_network, 200)
    narrow = plan[plan[:, 0] <= 8]  # the stem was never wide
    predictor = LatencyPredictor(build_table(slow, tiny_network, narrow, LatencyTable.open(tmp_path, slow.fingerprint())))
    wide = narrow.copy()
    wide[:, 0] = 16
    assert predictor.deviation(tiny_network, wide).mean() > predictor.deviation(tiny_network, narrow).mean()
