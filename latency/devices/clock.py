"""Timing single runs: what every device does that runs on a CPU, and what every device does that runs on a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from latency.devices.core import CoreMonitor
from latency.devices.nvml import GpuMonitor
from latency.measuring.device import Times
from latency.measuring.fingerprint import preemptions

PATIENCE = 4
"""How many times the runs wanted are made to find one undisturbed, on a CPU that others use, ..."""

PATIENCE_MS = 200.0
"""... as long as they take no longer than this: in a long run others come and go, and none is left alone."""

GPU_SPREAD = 0.005
"""`Device.max_spread` of a GPU, which nobody shares."""

WARM_UP_MS = 200.0
"""A GPU that has idled runs this long before it is timed: clocks rise slowly."""

COOL_AFTER_S = 0.05
"""Without work for longer than this a GPU counts as having idled."""

SAMPLE_MS = 1.0
"""Shorter networks are run until a sample takes this long: GPU events resolve half a microsecond, and a CPU core is looked at
after each sample."""

LEAST_SAMPLES = 3
"""Of a GPU, where fewer would hold as many runs as are wanted."""


class CpuClock:
    """Times single runs of a model on a CPU that others use.

    Args:
        run: the model, once.
        core: of the device, shared by all models on it.
    """

    def __init__(self, run: Callable[[], object], core: CoreMonitor) -> None:
        self._run, self._core = run, core

    def times(self, runs: int) -> Times:
        """At least so many runs by the wall's clock.

        More are made until one had the core to itself, within `PATIENCE` and `PATIENCE_MS`, each on another core where there
        is one; after a pause where another process took the core: who has slept is left alone for a while.
        """
        times: list[float] = []
        alone: list[bool] = []
        self._core.settle()
        core_ms = self._core.last_ms
        while len(times) < runs or (not any(alone) and len(times) < PATIENCE * runs and sum(times) < PATIENCE_MS):
            preempted = preemptions()
            stretch = self._stretch(runs)
            taken = preemptions() != preempted
            times += stretch
            alone += [self._core.undisturbed() and not taken] * len(stretch)
            core_ms = min(core_ms, self._core.last_ms)
            if taken:
                time.sleep(min(sum(stretch), PATIENCE_MS) / 1000)  # it may have been stopped for hours
            if not alone[-1]:
                self._core.settle()
        return Times(np.array(times), np.array(alone), core_ms)

    def _stretch(self, runs: int) -> list[float]:
        """At most so many runs, which together take a millisecond, as long as a look at the core is worth."""
        times: list[float] = []
        while len(times) < runs and sum(times) < SAMPLE_MS:
            begun = time.perf_counter()
            self._run()
            times.append((time.perf_counter() - begun) * 1000)
        return times


def mean_of_quiet(durations: Sequence[float]) -> float:
    """Of the faster half: profilers count coarsely, so a mean of quiet runs says more than a median."""
    return float(np.mean(np.sort(durations)[: (len(durations) + 1) // 2]))


class GpuClock:
    """Samples of what one GPU runs: warmed up, long enough to be resolved, and told apart where the card was slowed down.

    Args:
        elapsed_ms: given a number of replays in a row, the average milliseconds of one.
        monitor: of the card, shared by all models on it.
    """

    def __init__(self, elapsed_ms: Callable[[int], float], monitor: GpuMonitor) -> None:
        self._elapsed_ms, self._monitor = elapsed_ms, monitor

    def times(self, runs: int) -> Times:
        """Samples, each the mean of some runs. The card is asked once, after them: an answer may take as long as a sample."""
        if time.monotonic() - self._monitor.busy_until > COOL_AFTER_S:
            self._warm_up()
        replays = max(1, round(SAMPLE_MS / self._elapsed_ms(1)))
        count = max(min(runs, LEAST_SAMPLES), math.ceil(runs / replays))
        samples = [self._elapsed_ms(replays) for _ in range(count)]
        self._monitor.busy_until = time.monotonic()
        return Times(np.array(samples), np.full(count, self._monitor.undisturbed()))

    def _warm_up(self) -> None:
        end = time.monotonic() + WARM_UP_MS / 1000
        while time.monotonic() < end:
            self._elapsed_ms(8)
