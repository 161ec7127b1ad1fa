"""Predicted against measured, on structures that were never profiled, beside what else one might have believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from latency.build import BLOCK
from latency.coverage import quick_plan
from latency.graph.network import Network
from latency.isolated import isolated_sums
from latency.measuring.kept import KeptMeasurements, Timed
from latency.prediction.predictor import LatencyPredictor

Progress = Callable[[int], object]


def measured_against_predicted(
    device: KeptMeasurements,
    network: Network,
    predictor: LatencyPredictor,
    samples: int,
    seed: int,
    progress: Progress = lambda done: None,
    *,
    isolated: bool = True,
) -> pd.DataFrame:
    """Measure fresh random structures twice, in two passes over all of them; with `isolated`, then each of their kernels alone.

    Returns:
        One row each: widths, measured_ms, again_ms (the second pass), predicted_ms, low_ms, high_ms, macs, stable,
        isolated_ms (the sum of its kernels measured alone). All but wall_ms, what the first pass measured, are at the table's
        speed of the core. `progress` is called with passes over structures done.
    """
    speed = predictor.table.core_ms
    fresh = fresh_structures(network, predictor, samples, seed)
    first, second = (_measured(device, network, fresh, progress, turn) for turn in ("", "again "))
    low, high = predictor.predict_band(network, fresh)
    return pd.DataFrame(
        {
            "widths": fresh.tolist(),
            "wall_ms": [one.latency_ms for one in first],
            "measured_ms": [one.at_speed(speed) for one in first],
            "again_ms": [one.at_speed(speed) for one in second],
            "predicted_ms": predictor.predict_widths(network, fresh),
            "low_ms": low,
            "high_ms": high,
            "macs": network.macs(fresh),
            "stable": [one.stable for one in first],
            **({"isolated_ms": isolated_sums(device, map(network.onnx, fresh), speed, progress)} if isolated else {}),
        }
    )


def validated(
    device: KeptMeasurements,
    network: Network,
    predictor: LatencyPredictor,
    samples: int,
    pairs: int,
    seed: int,
    progress: Progress,
    *,
    isolated: bool = True,
) -> dict[str, Any]:
    """Both comparisons, ready for JSON: "figures" (summaries), "rows" and "differences". `progress` is called with the
    measurements done: 2 × samples + 2 × pairs in all, and samples more with `isolated`, which take the longest."""
    rows = measured_against_predicted(device, network, predictor, samples, seed, progress, isolated=isolated)
    differences = one_gene_differences(device, network, predictor, pairs, seed, progress)
    return {
        "figures": {"structures": summary(rows), "one gene changed": differences_summary(differences)},
        "rows": rows.to_dict("records"),
        "differences": differences.to_dict("records"),
    }


def one_gene_differences(
    device: KeptMeasurements,
    network: Network,
    predictor: LatencyPredictor,
    samples: int,
    seed: int,
    progress: Progress = lambda done: None,
) -> pd.DataFrame:
    """A second way to see what a layer costs, without the profiler: pairs of structures that differ in one gene only.

    Returns:
        One row a pair: gene, narrow, wide, latency_ms (of the wide one), and how much longer the wide one takes:
        measured_ms, predicted_ms, and profiled_ms (by the kernels' shares alone).
    """
    rng = np.random.default_rng([seed, samples])
    free = [index for index, gene in enumerate(network.genes) if len(gene.choices) > 1]
    genes = rng.choice(free, samples)
    narrow = quick_plan(network, samples + 2, seed=seed + 2_000_003)[2 : 2 + samples]
    genes = genes[: len(narrow)]
    wide = narrow.copy()
    for row, gene in enumerate(genes):
        choices = network.genes[gene].choices
        narrow[row, gene], wide[row, gene] = choices[len(choices) // 4 if len(choices) > 3 else 0], choices[-1]
    pairs = np.stack([narrow, wide], axis=1).reshape(-1, narrow.shape[1])
    measured = _measured(device, network, pairs, progress, "pairs ")
    latency_ms = np.array([one.at_speed(predictor.table.core_ms) for one in measured]).reshape(-1, 2)
    predicted, profiled = (how(network, pairs).reshape(-1, 2) for how in (predictor.predict_widths, predictor.profiled_ms))
    return pd.DataFrame(
        {
            "gene": [network.genes[gene].name for gene in genes],
            "narrow": narrow[np.arange(len(genes)), genes],
            "wide": wide[np.arange(len(genes)), genes],
            "latency_ms": latency_ms[:, 1],
            "measured_ms": np.diff(latency_ms)[:, 0],
            "predicted_ms": np.diff(predicted)[:, 0],
            "profiled_ms": np.diff(profiled)[:, 0],
        }
    )


def differences_summary(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """How far predicted and profiled differences are from measured ones: medians, of the latency and of the difference."""
    result = {}
    for name in ("predicted", "profiled"):
        off = np.abs(rows[f"{name}_ms"] - rows["measured_ms"])
        result[name] = {
            "of_latency": float((off / rows["latency_ms"]).median()),
            "of_difference": float((off / rows["measured_ms"].abs()).median()),
            "correlation": float(np.corrcoef(rows[f"{name}_ms"], rows["measured_ms"])[0, 1]),
        }
    return result


def fresh_structures(network: Network, predictor: LatencyPredictor, samples: int, seed: int) -> np.ndarray:
    """int64[P, L]: up to `samples` random structures that the predictor's table does not hold."""
    drawn = quick_plan(network, 3 * samples + 2, seed=seed + 1_000_003)[2:]  # without the two ends, which every table has
    known = predictor.table.keys
    return np.array([one for one in drawn if (network.signature, tuple(map(int, one))) not in known][:samples])


def _measured(device: KeptMeasurements, network: Network, structures: np.ndarray, progress: Progress, turn: str) -> list[Timed]:
    results = []
    for start in range(0, len(structures), BLOCK):
        block = structures[start : start + BLOCK]
        results += device.measured(f"{turn}{network.signature} {block.tolist()}", [network.onnx(widths) for widths in block])
        progress(len(block))
    return results


def agreement(measured: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Mean absolute percentage error, shares within ±5 % and ±10 %, Kendall's τ; and the bias, the median relative error:
    most of the error where the machine runs at another speed than when the table was measured."""
    off = predicted / measured - 1
    error = np.abs(off)
    return {
        "mape": float(error.mean()),
        "bias": float(np.median(off)),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.10).mean()),
        "kendall_tau": float(kendalltau(measured, predicted).statistic),
    }


def summary(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """How far each is from the first measurement, at the table's speed of the core.

    "predictor" with its band's coverage; "by the clock", the same beside what was measured at whatever speed the core had;
    "measured again" (the noise floor); "macs" after the one factor that serves them best; and "isolated kernels" as they are
    summed, where they were measured.
    """
    measured = rows["measured_ms"].to_numpy()
    inside = (measured >= rows["low_ms"]) & (measured <= rows["high_ms"])
    factor = np.median(measured / rows["macs"])
    figures = {
        "predictor": agreement(measured, rows["predicted_ms"].to_numpy()) | {"band_coverage": float(inside.mean())},
        "by the clock": agreement(rows["wall_ms"].to_numpy(), rows["predicted_ms"].to_numpy()),
        "measured again": agreement(measured, rows["again_ms"].to_numpy()),
        "macs": agreement(measured, rows["macs"].to_numpy() * factor),
    }
    if "isolated_ms" in rows:
        figures["isolated kernels"] = agreement(measured, rows["isolated_ms"].to_numpy())
    return figures
