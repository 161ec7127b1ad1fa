"""Which multiples of channels are fast on a device, found by measuring it.

Vector units work on blocks of channels, and off them runtimes pad or fall back to slower kernels. A small network of
ordinary and depthwise convolutions is measured at widths of all remainders; what a width costs beyond the smooth curve
through multiples of 32 is its overhead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from latency.devices import Device
from latency.errors import TableError
from latency.graph.network import Network
from latency.measuring.fingerprint import slug
from latency.measuring.measurement import Protocol
from latency.measuring.table import make_folder, write_beside

MULTIPLES = (1, 2, 4, 8, 16, 32)
WIDTHS = (96, 97, 98, 100, 104, 108, 112, 115, 118, 120, 124, 127, 128, 129, 132, 134, 136, 140, 144, 147, 150, 152, 156, 160)
TOLERANCE = 0.05
"""An alignment is proposed when neither its own multiples nor any coarser cost more than this beyond the curve."""

PROBES = 5
"""How often the probe is repeated at most, where measurements are disturbed, and no two in a row propose the same or the last
contradicts itself."""

PROTOCOL = Protocol(rounds=12, round_ms=3.0, warmup_ms=5.0, profiled_runs=1, revisits=1)


def alignment_of(device: Device, root: Path) -> int:
    """The alignment for `device`: what was found before and lies beside its table under `root`, else probed now.

    Raises:
        TableError: the file is not what this function writes, or cannot be written.
    """
    file = root / slug(device.fingerprint()) / "alignment.json"
    if file.exists():
        return _read(file)
    make_folder(file.parent)
    overheads = probe(device)
    alignment = proposed(overheads)
    write_beside(file, (json.dumps({"alignment": alignment, "overheads": overheads}, indent=2) + "\n").encode())
    return alignment


def _read(file: Path) -> int:
    try:
        return int(json.loads(file.read_text())["alignment"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(f"'{file}' cannot be read as an alignment ({error}); remove it, and it is measured again.") from error


def probe(device: Device) -> dict[int, float]:
    """For each of MULTIPLES the median overhead (0.1 = 10 % slower) of widths that are multiples of it and no larger one.

    Unless nothing disturbed it, the probe is repeated until two in a row propose the same, and fast multiples of 8, say, are
    fast too where they are multiples of 16; noise only adds, so the fastest time of every width counts.
    """
    network = _network()
    models = [network.onnx([width] * len(network.genes)) for width in WIDTHS]
    ms = np.full(len(models), np.inf)
    proposals: list[int] = []
    for _ in range(PROBES):
        measured = device.measure_all(models, PROTOCOL)
        ms = np.minimum(ms, [one.latency_ms for one in measured])
        overheads = _overheads(ms)
        proposals.append(proposed(overheads))
        agreed = proposals[-2:] == 2 * proposals[-1:] and not _contradictory(overheads)
        if agreed or all(one.stable for one in measured):
            break
    return overheads


def _overheads(ms: np.ndarray) -> dict[int, float]:
    """Of every one of MULTIPLES, given the milliseconds float64[W] of WIDTHS."""
    widths = np.array(WIDTHS)
    coarsest = widths % MULTIPLES[-1] == 0
    line = np.polyfit(widths[coarsest], np.sqrt(ms[coarsest]), 1)  # products cost the square of the width
    overheads = ms / np.polyval(line, widths) ** 2 - 1
    largest = np.array([max(multiple for multiple in MULTIPLES if width % multiple == 0) for width in WIDTHS])
    return {multiple: round(float(np.median(overheads[largest == multiple])), 3) for multiple in MULTIPLES}


def proposed(overheads: Mapping[int, float]) -> int:
    """The finest multiple from which on nothing costs more than TOLERANCE."""
    slow = [multiple for multiple, overhead in overheads.items() if overhead > TOLERANCE]
    return min((multiple for multiple in MULTIPLES if multiple > max(slow, default=0)), default=MULTIPLES[-1])


def _contradictory(overheads: Mapping[int, float]) -> bool:
    """Whether multiples finer than what is proposed are fast: the slow ones between were disturbed."""
    finest = proposed(overheads)
    return any(overhead <= TOLERANCE for multiple, overhead in overheads.items() if multiple < finest)


@cache
def _network() -> Network:
    from torch import nn

    from latency.tracing.trace import trace

    width = WIDTHS[-1]
    module = nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(width, width, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip
    return trace(module, (1, 3, 28, 28), align=1, name="alignment probe")
