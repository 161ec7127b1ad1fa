"""The last word has the device: finalists are measured, and what is returned meets the budget there.

Of a device that is elsewhere nothing is measured: what it would say is taken from the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latency.devices import Device
from latency.graph.network import Network
from latency.measuring.speed import at_speed, typical
from search.budget import BudgetError, show_amount
from search.feasible import FeasibleSet
from search.genetic import Candidate, best
from search.pareto import front
from search.uniform import uniform_near

FINALISTS = 8
FRONT = 5

Predict = Callable[[np.ndarray], np.ndarray]
"""float64[P] predicted milliseconds of structures int64[P, L]."""


@dataclass(frozen=True)
class Finalist:
    """A structure that was measured: what was predicted before, and its accuracy and loss on the sub-validation images."""

    widths: tuple[int, ...]
    accuracy: float
    loss: float
    predicted_ms: float
    measured_ms: float


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
    finalists: tuple[Finalist, ...]

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Finish:
        """The inverse of `dataclasses.asdict` through JSON, which turns tuples into lists."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        finalists = (Finalist(**{**finalist, "widths": tuple(finalist["widths"])}) for finalist in values.pop("finalists"))
        return cls(finalists=tuple(finalists), **values)


def finish(
    device: Device,
    network: Network,
    candidates: Sequence[Candidate],
    feasible: FeasibleSet,
    predict: Predict,
    limit_ms: float,
    progress: Callable[[int, str], object],
) -> Finish:
    """Choose the best candidate whose measured latency is at most `limit_ms`, twice measured.

    Candidates are measured in blocks, best first. Each block corrects the predictions of the rest, and so do its members that
    are over the budget the second time: a predictor that is off, or a machine that slows down, costs measurements, not the
    budget.

    Raises:
        BudgetError: even the smallest structure is over the budget as measured.
    """
    if not device.at_hand:
        return _as_predicted(network, best(list(candidates), 1)[0], predict)
    measured: list[Finalist] = []
    waiting, correction = best(list(candidates), len(candidates)), 1.0
    while block := _block(waiting, predict, correction, limit_ms):
        waiting = [candidate for candidate in waiting if candidate not in block]
        finalists = _measured(device, network, block, predict)
        measured += finalists
        over: list[float] = []  # second measurements over predictions, of those that did not hold
        for finalist in (one for one in finalists if one.measured_ms <= limit_ms):
            progress(len(measured), f"{show_amount(finalist.measured_ms, 'latency')}, accuracy {finalist.accuracy:.1%}")
            result = _confirmed(device, network, finalist.widths, finalist.accuracy, predict, finalist.measured_ms, measured)
            if result.winner_ms <= limit_ms:
                return result
            over.append(result.winner_ms / finalist.predicted_ms)
        ratios = [finalist.measured_ms / finalist.predicted_ms for finalist in finalists]
        correction = max(correction, *(float(np.median(some)) for some in (ratios, over) if some))
    smallest = tuple(map(int, feasible.smallest()))
    result = _confirmed(device, network, smallest, None, predict, limit_ms, measured)
    if result.winner_ms <= limit_ms:
        return result
    raise BudgetError(
        f"no structure of {network.name} meets {show_amount(limit_ms, 'latency')} on this device: the smallest measured "
        f"{show_amount(result.winner_ms, 'latency')}, predicted was {show_amount(result.predicted_ms[1], 'latency')}. "
        "Allow it more; or, if the machine was busy, run the same command with --resume, which measures again."
    )


def measured_front(
    device: Device, network: Network, candidates: Sequence[Candidate], predict: Predict, count: int = FRONT
) -> list[Finalist]:
    """Measure `count` candidates along the front of loss against predicted latency, ends included; fastest first.

    Of those measured, the ones that another is better than in both are left out.
    """
    objectives = np.stack([[c.loss for c in candidates], predict(_rows(candidates))], axis=1)
    members = np.flatnonzero(front(objectives))
    members = members[np.argsort(objectives[members, 1])]
    steps = np.linspace(objectives[members[0], 1], objectives[members[-1], 1], count)
    chosen = [candidates[i] for i in np.unique([members[np.abs(objectives[members, 1] - ms).argmin()] for ms in steps])]
    finalists = _measured(device, network, chosen, predict)
    kept = front(np.array([(finalist.loss, finalist.measured_ms) for finalist in finalists]))
    return sorted((f for f, good in zip(finalists, kept, strict=True) if good), key=lambda finalist: finalist.measured_ms)


def _as_predicted(network: Network, winner: Candidate, predict: Predict) -> Finish:
    winner_ms = float(predict(_rows([winner]))[0])
    uniform = tuple(map(int, uniform_near(network, predict, winner_ms)[0]))
    unpruned_ms, uniform_ms = map(float, predict(np.array([network.max_widths, uniform])))
    milliseconds = (unpruned_ms, winner_ms, uniform_ms)
    return Finish(winner.widths, uniform, winner.accuracy, *milliseconds, milliseconds, ())


def _block(waiting: Sequence[Candidate], predict: Predict, correction: float, limit_ms: float) -> list[Candidate]:
    """The first FINALISTS of `waiting` that meet the limit as predicted and corrected."""
    if not waiting:
        return []
    predicted = predict(_rows(waiting)) * correction
    return [candidate for candidate, ms in zip(waiting, predicted, strict=True) if ms <= limit_ms][:FINALISTS]


def _measured(device: Device, network: Network, block: Sequence[Candidate], predict: Predict) -> list[Finalist]:
    rows = _rows(block)
    predicted = predict(rows)
    measured = measured_ms(device, network, rows) if device.at_hand else predicted
    times = zip(block, predicted, measured, strict=True)
    return [Finalist(c.widths, c.accuracy, c.loss, float(before), float(ms)) for c, before, ms in times]


def measured_ms(device: Device, network: Network, structures: np.ndarray) -> np.ndarray:
    """float64[P]: milliseconds of structures int64[P, L], measured in one session and brought to its typical speed of the core:
    which is the fastest must not depend on when each had its turn."""
    measurements = device.measure_all([network.onnx(widths) for widths in structures])
    core_ms = [one.core_ms for one in measurements]
    return at_speed([one.latency_ms for one in measurements], core_ms, typical(core_ms))


def _confirmed(
    device: Device,
    network: Network,
    widths: tuple[int, ...],
    accuracy: float | None,
    predict: Predict,
    latency_ms: float,
    measured: Sequence[Finalist],
) -> Finish:
    """Measure the choice once more, beside the unpruned network and uniform ones near its latency."""
    predicted_ms = float(predict(np.array([widths]))[0])
    uniform = uniform_near(network, predict, math.sqrt(latency_ms * predicted_ms))  # both sides of what is predicted
    rows = np.vstack([np.array(network.max_widths), np.array(widths), uniform])
    milliseconds = measured_ms(device, network, rows)
    nearest = 2 + int(np.abs(np.log(milliseconds[2:] / milliseconds[1])).argmin())
    predicted = predict(rows[[0, 1, nearest]])
    return Finish(
        widths, tuple(map(int, rows[nearest])), accuracy, float(milliseconds[0]), float(milliseconds[1]),
        float(milliseconds[nearest]), (float(predicted[0]), float(predicted[1]), float(predicted[2])), tuple(measured),
    )  # fmt: skip


def _rows(candidates: Sequence[Candidate]) -> np.ndarray:
    return np.array([candidate.widths for candidate in candidates], dtype=np.int64)
