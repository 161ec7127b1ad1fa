"""What every device does that runs in this process: load models, time them in one session, close them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import pandas as pd

from latency.measuring.attribution import profiled_kernels
from latency.measuring.device import Device, LoadedModel
from latency.measuring.fingerprint import Conditions, GpuState, conditions_since, cpu_times
from latency.measuring.measurement import Measurement, Protocol
from latency.measuring.protocol import Rounds, timed


class LocalDevice(Device):
    """One that runs in this process."""

    max_spread = 0.03
    """How far rounds may lie above the latency, relative to it, and agree with it."""

    @abstractmethod
    def load(self, model: bytes) -> LoadedModel:
        """Raises MeasurementError when the device refuses the model."""

    def observed(self) -> GpuState | None:
        """State of the GPU over all that was timed since the last call; None where there is none."""
        return None

    def measure_all(self, models: Sequence[bytes], protocol: Protocol | None = None) -> list[Measurement]:
        protocol = protocol or Protocol()
        before = cpu_times()
        loaded: list[LoadedModel] = []
        try:
            for model in models:
                loaded.append(self.load(model))
            kernels = [
                profiled_kernels(model, one.profile(protocol.profiled_runs)) for one, model in zip(loaded, models, strict=True)
            ]
            rounds = timed(loaded, protocol, self.max_spread)
        finally:
            for one in loaded:
                one.close()
        conditions = conditions_since(before, self.observed())
        return [self._verdict(*both, protocol, conditions) for both in zip(kernels, rounds, strict=True)]

    def _verdict(self, kernels: pd.DataFrame, rounds: Rounds, protocol: Protocol, conditions: Conditions) -> Measurement:
        latency_ms = rounds.latency_ms(protocol)
        core_ms = float(rounds.core_ms[rounds.fastest(protocol)].mean())
        scaled = kernels.assign(ms=kernels["ms"] * (latency_ms / kernels["ms"].sum()))
        stable = rounds.stable(protocol, self.max_spread)
        return Measurement(latency_ms, core_ms, scaled, rounds.ms, rounds.core_ms, stable, conditions)

    def by_the_wall_ms(self, model: bytes, blocks: int = 20, block_ms: float = 100.0) -> tuple[float, float]:
        """In turns: the device's own clock, and the wall's over many runs in a row; lower quartiles over `blocks` blocks."""
        loaded = self.load(model)
        try:
            loaded.profile(1)
            runs = max(3, round(block_ms / float(np.median(loaded.times(3).ms))))
            pairs = [(float(np.median(loaded.times(runs).ms)), _wall_ms(loaded, runs)) for _ in range(blocks)]
        finally:
            loaded.close()
        own, wall = np.quantile(np.array(pairs), 0.25, axis=0)
        return float(own), float(wall)


def _wall_ms(loaded: LoadedModel, runs: int) -> float:
    begun = time.perf_counter()
    loaded.run(runs)
    return (time.perf_counter() - begun) * 1000 / runs
