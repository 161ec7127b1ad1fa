"""Filling a table: structures that are not in it, measured in blocks, each block safe on disk before the next begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from latency.coverage import quick_plan
from latency.devices import Device
from latency.errors import MeasurementError
from latency.graph.network import Network
from latency.measuring.measurement import Protocol
from latency.measuring.table import REFUSED, LatencyTable
from latency.prediction.predictor import OWN_STRUCTURES, LatencyPredictor

BLOCK = 8
"""Structures measured in one session: the disturbed ones of them are visited again, then all are written."""

CANDIDATES = 64
"""Random structures from which adaptive coverage takes the one it is least certain of."""

PATIENCE = 4
"""Adaptive coverage stops when the mean error of this many blocks is no better than that of as many before."""

LEAST_GAIN = 0.05
"""Relative fall of the error that counts as better."""

ONCE = Protocol(rounds=1, fewest_rounds=1, round_ms=0.0, min_runs=1, warmup_ms=0.0, profiled_runs=1, revisits=0)
"""The least that shows whether a model runs."""

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

    Structures that the device refuses (an engine that cannot be built, say) are recorded beside the table and left out,
    now and when the build is resumed.

    Raises:
        MeasurementError: the device refused every structure so far.
    """
    missing = missing_structures(network, plan, table)
    progress(len(plan) - len(missing))
    for start in range(0, len(missing), BLOCK):
        block = missing[start : start + BLOCK]
        table = _measured(device, network, block, table, protocol)
        _require_some(device, network, table)
        progress(len(block))
    _require_some(device, network, table)
    table.compact()
    return table


def _require_some(device: Device, network: Network, table: LatencyTable) -> None:
    reasons = [reason for (signature, _), reason in table.refused.items() if signature == network.signature]
    if reasons and not table.count(network):
        raise MeasurementError(
            f"'{device.name}' refused every structure of {network.name} that it was given ({len(reasons)}), the last because: "
            f"{reasons[-1].rstrip('.')}. They are not tried again as long as '{table.path / REFUSED}' lists them."
        )


def missing_structures(network: Network, plan: np.ndarray, table: LatencyTable) -> list[np.ndarray]:
    """The structures of `plan` (int64[P, L]) that have neither been measured nor refused."""
    known = table.keys | table.refused.keys()
    return [widths for widths in plan if (network.signature, tuple(map(int, widths))) not in known]


def expected_s(device: Device, network: Network, structures: Sequence[np.ndarray], protocol: Protocol | None = None) -> float:
    """Roughly the seconds that measuring `structures` takes: the last is measured and timed, after the first, which pays for
    what happens once a session.

    Raises:
        MeasurementError: the device refuses one of the two.
    """
    device.measure_all([network.onnx(structures[0])], ONCE)
    begun = time.monotonic()
    device.measure_all([network.onnx(structures[-1])], protocol)
    return len(structures) * (time.monotonic() - begun)


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
        if measured := {widths: ms for widths, ms in table.latencies(network).items() if widths in drawn}:
            predicted = predictor.predict_widths(network, list(measured))
            errors.append(float(np.abs(predicted / np.array(list(measured.values())) - 1).mean()))
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
    """The table with a block of structures; those that the device refuses are found one by one, recorded and left out."""
    try:
        return table.append(network, block, device.measure_all([network.onnx(widths) for widths in block], protocol))
    except MeasurementError as error:
        if len(block) == 1:
            table.refuse(network, block[0], str(error))
            return table
    for widths in block:
        table = _measured(device, network, [widths], table, protocol)
    return table
