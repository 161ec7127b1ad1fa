"""Predicted against measured, on structures that were never profiled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from latency.build import BLOCK
from latency.coverage import quick_plan
from latency.devices import Device
from latency.network import Network
from latency.predictor import LatencyPredictor
from latency.protocol import measure


def measured_against_predicted(
    device: Device,
    network: Network,
    predictor: LatencyPredictor,
    samples: int,
    seed: int,
    progress: Callable[[int], object] = lambda done: None,
) -> pd.DataFrame:
    """Measure fresh random structures: one row each with measured_ms, predicted_ms, low_ms, high_ms, macs, stable."""
    known = predictor.table.keys
    drawn = quick_plan(network, 3 * samples + 2, seed=seed + 1_000_003)[2:]  # without the two ends, which every table has
    fresh = [widths for widths in drawn if (network.signature, tuple(map(int, widths))) not in known][:samples]
    measured = []
    for start in range(0, len(fresh), BLOCK):
        block = fresh[start : start + BLOCK]
        measured += measure(device, [network.onnx(widths) for widths in block])
        progress(len(block))
    predicted = predictor.predict_widths(network, np.array(fresh))
    low, high = predictor.predict_band(network, np.array(fresh))
    return pd.DataFrame(
        {
            "measured_ms": [one.latency_ms for one in measured],
            "predicted_ms": predicted,
            "low_ms": low,
            "high_ms": high,
            "macs": network.macs(np.array(fresh)),
            "stable": [one.stable for one in measured],
        }
    )


def agreement(measured: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Mean absolute percentage error, shares within ±5 % and ±10 %, Kendall's τ."""
    error = np.abs(predicted / measured - 1)
    return {
        "mape": float(error.mean()),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.10).mean()),
        "kendall_tau": float(kendalltau(measured, predicted).statistic),
    }


def summary(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """`agreement` of the predictor, and of MACs after the one factor that serves them best; the band's coverage."""
    measured = rows["measured_ms"].to_numpy()
    macs = rows["macs"].to_numpy() * np.median(measured / rows["macs"])
    inside = (measured >= rows["low_ms"]) & (measured <= rows["high_ms"])
    return {
        "predictor": agreement(measured, rows["predicted_ms"].to_numpy()) | {"band_coverage": float(inside.mean())},
        "macs": agreement(measured, macs),
    }
