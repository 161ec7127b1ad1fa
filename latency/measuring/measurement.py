"""How often a device runs a model, and what it then says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from latency.measuring.fingerprint import Conditions


@dataclass(frozen=True)
class Protocol:
    """How long and how often to measure; the defaults suit networks of 0.1 to 100 ms."""

    rounds: int = 8
    fewest_rounds: int = 4
    timed_ms: float = 80.0  # what takes longer than this in all its rounds gets fewer of them
    round_ms: float = 8.0  # at least this long, and at least `min_runs` runs
    min_runs: int = 3
    warmup_ms: float = 10.0
    profiled_runs: int = 8
    fastest: int = 3  # rounds whose mean is the latency
    revisits: int = 6  # further halves for a model in doubt


MANY_STRUCTURES = Protocol(rounds=4, profiled_runs=5)
"""Where a thousand structures are measured, each may be noisier."""


@dataclass(frozen=True)
class Measurement:
    """What a device says of one model. Milliseconds per batch.

    Attributes:
        latency_ms: end to end, unprofiled: the mean of the fastest of `rounds_ms`.
        kernels: one row for each kernel in execution order: type, batch, cin, cout, height, width, out_height,
            out_width, ms. The ms sum to `latency_ms`.
        core_ms: of a fixed computation on the same core, the mean of the fastest of each of these rounds: how fast the core
            was (see `latency.measuring.speed`); NaN where the device has none.
        rounds_ms: float64[R], the fastest run of every round measured. rounds_core_ms: the same of the fixed computation.
        stable: whether enough undisturbed rounds agree; unstable ones have been repeated up to the protocol's limit.
        conditions: of the machine meanwhile.
    """

    latency_ms: float
    core_ms: float
    kernels: pd.DataFrame
    rounds_ms: np.ndarray
    rounds_core_ms: np.ndarray
    stable: bool
    conditions: Conditions

    def __repr__(self) -> str:
        verdict = "" if self.stable else ", unstable"
        return f"Measurement({self.latency_ms:.4g} ms, {len(self.rounds_ms)} rounds, {len(self.kernels)} kernels{verdict})"
