"""Uniformly scaled structures: what everybody has without a search, to start from and to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from latency.graph.network import Network
from search.feasible import FeasibleSet

NEAREST = 6
SCALES = np.linspace(0.1, 1.0, 181)


def uniform_structures(network: Network) -> np.ndarray:
    """int64[K, L]: all of them that differ, narrowest first."""
    scaled: np.ndarray = np.unique(np.stack([network.nearest_widths(scale) for scale in SCALES]), axis=0)
    return scaled


def uniform_near(network: Network, predict: Callable[[np.ndarray], np.ndarray], latency_ms: float) -> np.ndarray:
    """int64[K, L]: those whose predicted milliseconds (float64[P] of structures int64[P, L]) are near `latency_ms`, the nearest
    first."""
    scaled = uniform_structures(network)
    distance = np.abs(np.log(predict(scaled) / latency_ms))
    return scaled[np.argsort(distance, kind="stable")[:NEAREST]]


def uniform_within(feasible: FeasibleSet) -> np.ndarray:
    """int64[K, L]: the widest within the budgets, K = 1, or none."""
    scaled = uniform_structures(feasible.network)
    return scaled[feasible.contains(scaled)][-1:]
