"""Timing single runs: what every device does that runs on a CPU, and what every device does that runs on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from latency.devices.nvml import GpuMonitor
from latency.fingerprint import preemptions

PATIENCE = 4
"""Runs tried for each run wanted, on a CPU that others use."""

GPU_SPREAD = 0.005
"""`Device.max_spread` of a GPU, which nobody shares."""

WARM_UP_MS = 200.0
"""A GPU that has idled runs this long before it is timed: clocks rise slowly."""

COOL_AFTER_S = 0.05
"""Without work for longer than this a GPU counts as having idled."""

SAMPLE_MS = 1.0
"""Shorter networks are replayed until a sample takes this long: events resolve half a microsecond."""


def cpu_times_ms(run: Callable[[], object], runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Wall-clock milliseconds of single runs, float64[runs]; and bool[runs], which of them had the core to themselves.

    A run during which another process took the core is repeated, up to `PATIENCE` times, after a pause: who has slept is
    left alone for a while.
    """
    quiet: list[float] = []
    disturbed: list[float] = []
    while len(quiet) < runs and len(quiet) + len(disturbed) < PATIENCE * runs:
        preempted, begun = preemptions(), time.perf_counter()
        run()
        elapsed = time.perf_counter() - begun
        if preemptions() == preempted:
            quiet.append(elapsed * 1000)
        else:
            disturbed.append(elapsed * 1000)
            time.sleep(elapsed)
    times = np.array((quiet + sorted(disturbed))[:runs])
    return times, np.arange(runs) < len(quiet)


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

    def times_ms(self, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """float64[runs] samples, and bool[runs] which of them found the card undisturbed."""
        if time.monotonic() - self._monitor.busy_until > COOL_AFTER_S:
            self._warm_up()
        replays = max(1, round(SAMPLE_MS / self._elapsed_ms(1)))
        samples = [(self._elapsed_ms(replays), self._monitor.undisturbed()) for _ in range(runs)]
        self._monitor.busy_until = time.monotonic()
        times, undisturbed = zip(*samples, strict=True)
        return np.array(times), np.array(undisturbed)

    def _warm_up(self) -> None:
        end = time.monotonic() + WARM_UP_MS / 1000
        while time.monotonic() < end:
            self._elapsed_ms(8)
