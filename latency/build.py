"""Filling a table: structures that are not in it, measured in blocks, each block safe on disk before the next begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from latency.coverage import quick_plan
from latency.devices import Device
from latency.network import Network
from latency.predictor import OWN_STRUCTURES, LatencyPredictor
from latency.protocol import Protocol, measure
from latency.table import LatencyTable

BLOCK = 8
"""Structures measured in one session: the disturbed ones of them are visited again, then all are written."""

CANDIDATES = 64
"""Random structures from which adaptive coverage takes the one it is least certain of."""

PATIENCE = 4
"""Adaptive coverage stops when the mean error of this many blocks is no better than that of as many before."""

LEAST_GAIN = 0.05
"""Relative fall of the error that counts as better."""

Progress = Callable[[int], object]


def build_table(
    device: Device,
    network: Network,
    plan: np.ndarray,
    table: LatencyTable,
    *,
    protocol: Protocol | None = None,
    progress: Progress = lambda done: None,
) -> LatencyTable:
    """Measure the structures of `plan` (int64[P, L]) that `table` lacks, and return the completed table.

    Args:
        progress: called with the number of structures finished since the last call.

    Raises:
        MeasurementError: the device refused a structure; everything measured so far is in the table.
    """
    missing = [widths for widths in plan if (network.signature, tuple(map(int, widths))) not in table.keys]
    progress(len(plan) - len(missing))
    for start in range(0, len(missing), BLOCK):
        block = missing[start : start + BLOCK]
        table = _measured(device, network, block, table, protocol)
        progress(len(block))
    table.compact()
    return table


def build_adaptively(
    device: Device,
    network: Network,
    table: LatencyTable,
    *,
    minutes: float = math.inf,
    seed: int = 0,
    progress: Progress = lambda done: None,
) -> tuple[LatencyTable, list[float]]:
    """Measure structures until predicting the next ones gets no better, or the time is up.

    Half of every block are random structures: how well they were predicted before they were measured is the validation
    error. The other half are those of which the predictor is least certain.

    Returns:
        The longer table, and the mean absolute relative error of each block's random half, in order.
    """
    end = time.monotonic() + 60 * minutes
    table = build_table(device, network, quick_plan(network, OWN_STRUCTURES + BLOCK), table, progress=progress)
    rng = np.random.default_rng([seed, len(table)])
    errors: list[float] = []
    while time.monotonic() < end and not _settled(errors):
        predictor = LatencyPredictor(table)
        drawn = dict.fromkeys(_fresh(network, table, rng) for _ in range(BLOCK // 2))
        doubtful = dict.fromkeys(_most_doubtful(network, table, predictor, rng) for _ in range(BLOCK // 2))
        block = [np.array(widths) for widths in drawn | doubtful]
        table = _measured(device, network, block, table)
        measured = table.structures["latency_ms"].to_numpy()[-len(block) :][: len(drawn)]
        errors.append(float(np.abs(predictor.predict_widths(network, list(drawn)) / measured - 1).mean()))
        progress(len(block))
    table.compact()
    return table, errors


def _settled(errors: list[float]) -> bool:
    if len(errors) < 2 * PATIENCE:
        return False
    before, now = np.mean(errors[-2 * PATIENCE : -PATIENCE]), np.mean(errors[-PATIENCE:])
    return bool(now > (1 - LEAST_GAIN) * before)


def _fresh(network: Network, table: LatencyTable, rng: np.random.Generator) -> tuple[int, ...]:
    """A random structure; one that the table holds only where hardly any other is left."""
    for _ in range(CANDIDATES):
        widths = tuple(map(int, quick_plan(network, 3, seed=int(rng.integers(2**31)))[-1]))
        if (network.signature, widths) not in table.keys:
            break
    return widths


def _most_doubtful(
    network: Network, table: LatencyTable, predictor: LatencyPredictor, rng: np.random.Generator
) -> tuple[int, ...]:
    drawn = quick_plan(network, CANDIDATES + 2, seed=int(rng.integers(2**31)))[2:]
    fresh = [one for one in drawn if (network.signature, tuple(map(int, one))) not in table.keys]
    if not fresh:
        return _fresh(network, table, rng)
    return tuple(map(int, fresh[int(predictor.deviation(network, fresh).argmax())]))


def _measured(
    device: Device, network: Network, block: Sequence[np.ndarray], table: LatencyTable, protocol: Protocol | None = None
) -> LatencyTable:
    measurements = measure(device, [network.onnx(widths) for widths in block], protocol)
    return table.append(network, block, measurements)
