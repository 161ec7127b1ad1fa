"""Bringing measurements to one speed of the core.

The clock of a shared processor wanders by some per cent within seconds, with what its other cores do, and no run of a
network shows it: all are slower. A fixed computation beside them does (`devices.core`). In minutes when the same networks,
measured again and again, scattered by 3.1, 4.1 and 3.8 % (MobileNetV1, MobileNetV2, ResNet-50; ONNX Runtime, one core of
an EPYC), the milliseconds over those of the fixed computation (products alone, then) scattered by 1.4, 2.2 and 2.0 %: a
network takes so many cycles. Of the powers of the latter the first scattered least, or within 0.05 points of least (a script).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

COMPUTATION = "2"
"""Which fixed computation it is: milliseconds of different ones say nothing of each other. 2026-11-29: "2", products and sums
(see `devices.core`); before, products alone, not numbered."""

DIFFERS = 0.05
"""Relative difference in the core's speed that is said."""


def at_speed(latency_ms: Any, core_ms: Any, wanted_core_ms: float) -> np.ndarray:
    """float64[P]: what `latency_ms` would have been at another speed of the core; unchanged where either speed is unknown.

    Args:
        core_ms: of the fixed computation, float64[P] beside these measurements; NaN where nobody measured it.
        wanted_core_ms: of the fixed computation at the other speed.
    """
    ratio = wanted_core_ms / np.asarray(core_ms, dtype=np.float64)
    result: np.ndarray = np.asarray(latency_ms) * np.where(np.isnan(ratio), 1.0, ratio)
    return result


def difference(ratio: float) -> str:
    """What there is to say of a core that took `ratio` times as long as when a table was measured; "" where that is hardly
    another time, or unknown."""
    return f"the core took {ratio:.2f} × as long as when the table was measured" if abs(ratio - 1) > DIFFERS else ""


def typical(core_ms: Any) -> float:
    """Median of those that are known; NaN where none is."""
    known = np.asarray(core_ms, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(np.median(known)) if len(known) else math.nan
