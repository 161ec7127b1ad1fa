"""What must be measured before anything else: the device's table with this network in it, and the unpruned network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from latency.build import build_table
from latency.coverage import quick_plan
from latency.devices import Device
from latency.graph.network import Network
from latency.measuring.speed import at_speed
from latency.measuring.table import LatencyTable
from latency.prediction.predictor import LatencyPredictor
from search.progress import Reporter, Update
from search.report import read_json, write_json


def quick_table(device: Device, network: Network, lut: Path, reporter: Reporter) -> LatencyTable:
    """The device's table under `lut`, extended by quick coverage of `network` where that is not in it yet."""
    table, plan = LatencyTable.open(lut, device.fingerprint()), quick_plan(network)
    if device.at_hand and table.count(network) < len(plan):
        with reporter.bar(f"measuring {device.name}", len(plan)) as update:
            table = build_table(device, network, plan, table, progress=_counted(update))
    reporter.say(f"latency table: {table.path}, {table.count(network)} structures of this network")
    return table


def _counted(update: Update) -> Callable[[int], object]:
    """A progress callback that is given increments."""
    done = 0

    def add(increment: int) -> None:
        nonlocal done
        done += increment
        update(done)

    return add


def unpruned_ms(device: Device, network: Network, predictor: LatencyPredictor, folder: Path) -> float:
    """Milliseconds of the unpruned network, measured once for `folder`: percentages must mean the same after resuming.

    They are brought to the table's speed of the core, and are the table's own where those were fewer, since noise only adds:
    in a noisy hour 60 % of the unpruned latency is no longer than in a quiet one. Of a device that is elsewhere, they are
    predicted.
    """
    if not device.at_hand:
        return float(predictor.predict_widths(network, np.array([network.max_widths]))[0])
    path = folder / "unpruned.json"
    if not path.exists():
        measured = device.measure(network.onnx(network.max_widths))
        now_ms = float(at_speed(measured.latency_ms, measured.core_ms, predictor.table.core_ms))
        latency_ms = min(now_ms, predictor.table.latencies(network).get(network.max_widths, math.inf))
        write_json(path, {"latency_ms": latency_ms, "rounds_ms": measured.rounds_ms.tolist()})
    return float(read_json(path)["latency_ms"])
