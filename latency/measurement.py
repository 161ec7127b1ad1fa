"""What a device says of one model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from latency.fingerprint import Conditions


@dataclass(frozen=True)
class Measurement:
    """What a device says of one model. Milliseconds per batch.

    Attributes:
        latency_ms: end to end, unprofiled: the mean of the fastest of `rounds_ms`.
        kernels: one row for each kernel in execution order: type, batch, cin, cout, height, width, out_height,
            out_width, ms. The ms sum to `latency_ms`.
        core_ms: of a fixed computation on the same core, the mean of the fastest of each of these rounds: how fast the core
            was (see `latency.speed`); NaN where the device has none.
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
