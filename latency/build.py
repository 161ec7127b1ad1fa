"""Filling a table: plan minus what is there, measured in blocks, each block safe on disk before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from latency.devices import Device, LoadedModel
from latency.network import Network
from latency.protocol import Protocol, load_reference, measure
from latency.table import LatencyTable

BLOCK = 8
"""Structures measured in one session: the disturbed ones of them are visited again, then all are written."""

REFERENCE_SCALE = 0.5
"""The structure of this uniform scale is timed along with every block: it shows how fast the machine was meanwhile."""


def build_table(
    device: Device,
    network: Network,
    plan: np.ndarray,
    table: LatencyTable,
    *,
    protocol: Protocol | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> LatencyTable:
    """Measure the structures of `plan` (int64[P, L]) that `table` lacks, and return the completed table.

    Args:
        progress: called with the number of structures finished since the last call.

    Raises:
        MeasurementError: the device refused a structure; everything measured so far is in the table.
    """
    missing = [tuple(map(int, widths)) for widths in plan if (network.signature, tuple(map(int, widths))) not in table.keys]
    progress(len(plan) - len(missing))
    with reference_of(device, network) as reference:
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            measurements = measure(device, [network.onnx(widths) for widths in block], protocol, reference)
            table = table.append(network, block, measurements)
            progress(len(block))
    table.compact()
    return table


@contextmanager
def reference_of(device: Device, network: Network) -> Iterator[LoadedModel]:
    """The reference structure of `network`, loaded."""
    loaded = load_reference(device, network.onnx(network.nearest_widths(REFERENCE_SCALE)))
    try:
        yield loaded
    finally:
        loaded.close()
