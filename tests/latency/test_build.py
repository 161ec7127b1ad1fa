"""Adaptive coverage, on a device whose law is known."""

import numpy as np

from latency.build import build_adaptively, build_table
from latency.coverage import quick_plan
from latency.predictor import LatencyPredictor
from latency.table import LatencyTable


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


def test_doubt_is_largest_where_nothing_was_measured(lawful_type, tiny_network, tmp_path) -> None:
    slow = lawful_type(lambda total: 100 * total)  # so slow that a run's own jitter does not matter
    plan = quick_plan(tiny_network, 200)
    narrow = plan[plan[:, 0] <= 8]  # the stem was never wide
    predictor = LatencyPredictor(build_table(slow, tiny_network, narrow, LatencyTable.open(tmp_path, slow.fingerprint())))
    wide = narrow.copy()
    wide[:, 0] = 16
    assert predictor.deviation(tiny_network, wide).mean() > predictor.deviation(tiny_network, narrow).mean()
