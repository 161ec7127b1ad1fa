"""The last word has the device: finalists are measured, and what is returned meets the budget there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latency.devices import Device
from latency.network import Network
from latency.protocol import measure
from search.budget import BudgetError, show_amount
from search.feasible import FeasibleSet
from search.genetic import Candidate, best

FINALISTS = 8
UNIFORM_CANDIDATES = 6
UNIFORM_SCALES = np.linspace(0.1, 1.0, 181)

Predict = Callable[[np.ndarray], np.ndarray]
"""float64[P] predicted milliseconds of structures int64[P, L]."""


@dataclass(frozen=True)
class Finish:
    """The chosen structure, the uniformly scaled one of the same latency, and what the device said in one session.

    Milliseconds are measured. `predicted_ms` are of the same three, before any measurement of them. `accuracy` is the
    winner's on the sub-validation images, None when it is the fallback that no search evaluated.
    """

    winner: tuple[int, ...]
    uniform: tuple[int, ...]
    accuracy: float | None
    unpruned_ms: float
    winner_ms: float
    uniform_ms: float
    predicted_ms: tuple[float, float, float]  # unpruned, winner, uniform
    measured_finalists: int

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Finish:
        """The inverse of `dataclasses.asdict` through JSON, which turns tuples into lists."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        return cls(**values)


def finish(
    device: Device,
    network: Network,
    candidates: Sequence[Candidate],
    feasible: FeasibleSet,
    predict: Predict,
    limit_ms: float,
    progress: Callable[[int, str], object],
) -> Finish:
    """Choose the most accurate candidate whose measured latency is at most `limit_ms`, twice measured.

    Candidates are measured in blocks, best first. Each block corrects the predictions of the rest, so that a predictor that
    is off costs measurements, not the budget.

    Raises:
        BudgetError: even the smallest structure is over the budget as measured.
    """
    measured = 0
    for candidate, ms, measured in _within(device, network, candidates, predict, limit_ms):
        progress(measured, f"{show_amount(ms, 'latency')}, sub-validation accuracy {candidate.accuracy:.1%}")
        result = _confirmed(device, network, candidate.widths, candidate.accuracy, predict, ms, measured)
        if result.winner_ms <= limit_ms:
            return result
    smallest = tuple(map(int, feasible.smallest()))
    result = _confirmed(device, network, smallest, None, predict, limit_ms, measured + 1)
    if result.winner_ms <= limit_ms:
        return result
    raise BudgetError(
        f"no structure of {network.name} meets {show_amount(limit_ms, 'latency')} on this device: the smallest measured "
        f"{show_amount(result.winner_ms, 'latency')}, predicted was {show_amount(result.predicted_ms[1], 'latency')}."
    )


def _within(
    device: Device, network: Network, candidates: Sequence[Candidate], predict: Predict, limit_ms: float
) -> Iterator[tuple[Candidate, float, int]]:
    """(candidate, its measured ms, number measured so far) of those that meet the limit as measured, best first."""
    waiting, correction, measured = best(list(candidates), len(candidates)), 1.0, 0
    while waiting:
        predicted = predict(_rows(waiting))
        block = [c for c, ms in zip(waiting, predicted, strict=True) if ms * correction <= limit_ms][:FINALISTS]
        if not block:
            return
        waiting = [candidate for candidate in waiting if candidate not in block]
        latency_ms = measured_ms(device, network, _rows(block))
        measured += len(block)
        correction = max(correction, float(np.median(latency_ms / predict(_rows(block)))))
        for candidate, ms in zip(block, latency_ms, strict=True):
            if ms <= limit_ms:
                yield candidate, float(ms), measured


def measured_ms(device: Device, network: Network, structures: np.ndarray) -> np.ndarray:
    """float64[P]: measured milliseconds of structures int64[P, L], all in interleaved rounds."""
    measurements = measure(device, [network.onnx(widths) for widths in structures])
    return np.array([measurement.latency_ms for measurement in measurements])


def _confirmed(
    device: Device,
    network: Network,
    widths: tuple[int, ...],
    accuracy: float | None,
    predict: Predict,
    latency_ms: float,
    measured: int,
) -> Finish:
    """Measure the choice once more, beside the unpruned network and uniform ones near its latency."""
    uniform = _uniform_near(network, predict, latency_ms, predict(np.array([widths]))[0])
    rows = np.vstack([np.array(network.max_widths), np.array(widths), uniform])
    milliseconds = measured_ms(device, network, rows)
    nearest = 2 + int(np.abs(np.log(milliseconds[2:] / milliseconds[1])).argmin())
    predicted = predict(rows[[0, 1, nearest]])
    return Finish(
        widths, tuple(map(int, rows[nearest])), accuracy, float(milliseconds[0]), float(milliseconds[1]),
        float(milliseconds[nearest]), (float(predicted[0]), float(predicted[1]), float(predicted[2])), measured,
    )  # fmt: skip


def _uniform_near(network: Network, predict: Predict, latency_ms: float, predicted_ms: float) -> np.ndarray:
    """int64[K, L]: uniformly scaled structures predicted nearest to a latency, ties to both sides of it."""
    scaled = np.unique(np.stack([network.nearest_widths(scale) for scale in UNIFORM_SCALES]), axis=0)
    distance = np.abs(np.log(predict(scaled) / np.sqrt(latency_ms * predicted_ms)))
    return scaled[np.argsort(distance, kind="stable")[:UNIFORM_CANDIDATES]]


def _rows(candidates: Sequence[Candidate]) -> np.ndarray:
    return np.array([candidate.widths for candidate in candidates], dtype=np.int64)
