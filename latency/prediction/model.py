"""The latency model of one network, or of networks never measured: what its kernels add up to, and how far off that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latency.prediction.calibration import Calibration, KernelRows
from latency.prediction.correction import Correction, Places

BAND = (0.05, 0.95)
"""Quantiles between which a prediction's band is drawn: nominal coverage 90 %."""

SESSION = 0.017
"""Relative deviation of all structures of a network together between two sessions of one machine, at one speed of the core:
held-out structures of a table were measured in its session and cannot show it. It is the root mean square of the "bias" that
tools/validate_lut.py printed for thirteen tables of an EPYC's core (0.1 to 3.8 %)."""

NORMAL = 1.645
"""Quantile of a normal distribution at the ends of BAND."""

OUTLIER = 3.0
"""Structures this many standard deviations from what all others say were disturbed without showing it; they are left out."""

FOLDS = 10
BAND_STRUCTURES = 300
"""Structures that are held out, a tenth at a time, to see how wide the band has to be."""


@dataclass(frozen=True)
class LatencyModel:
    """latency = link(score); score = constant + Σ cost × correction, over the kernels.

    Attributes:
        correction: None where the network has no structures of its own in the table.
        spread: relative standard deviation of a prediction, where there is no correction to say it.
        band: quantiles of the errors of held-out structures, in such standard deviations.
    """

    calibration: Calibration
    correction: Correction | None
    spread: float
    band: tuple[float, float]

    @classmethod
    def of_network(cls, rows: KernelRows, cin: np.ndarray, cout: np.ndarray, latency_ms: np.ndarray) -> LatencyModel:
        """Fitted to S structures of one network: `rows` of K kernels for each, channels int[S, K], latencies [S]."""
        calibration, correction = _fitted(rows, cin, cout, latency_ms)
        agreeing = correction.agreeing(OUTLIER)
        if not agreeing.all():
            rows, cin, cout, latency_ms = rows.of(agreeing), cin[agreeing], cout[agreeing], latency_ms[agreeing]
            calibration, correction = _fitted(rows, cin, cout, latency_ms)
        some = np.arange(len(latency_ms)) % max(1, len(latency_ms) // BAND_STRUCTURES) == 0
        held_out = _standardised(correction, rows.of(some), cin[some], cout[some], latency_ms[some])
        return cls(calibration, correction, correction.noise, _band(held_out))

    @classmethod
    def of_others(cls, rows: KernelRows, latency_ms: np.ndarray) -> LatencyModel:
        """For networks never measured, from S structures of others: kernels cost there what they cost here.

        Its spread is how far sums of kernels whose own rows were not seen are from end-to-end times.
        """
        calibration = Calibration.none()
        ratios = np.log(latency_ms / _predicted(calibration, rows))
        return cls(calibration, None, max(float(np.sqrt(np.mean(ratios**2))), 1e-3), (-NORMAL, NORMAL))

    def reach(self, quantile: float, deviation: np.ndarray) -> np.ndarray:
        """float64[P]: logarithm of an end of the band over the prediction, for structures of that deviation."""
        result: np.ndarray = np.copysign(np.hypot(quantile * deviation, NORMAL * SESSION), quantile)
        return result

    def corrected(
        self, costs: np.ndarray, cin: np.ndarray, cout: np.ndarray, places: Sequence[int] | None = None
    ) -> np.ndarray:
        """float64[P, K]: calibrated costs with what the network's own times say of each kernel.

        Args:
            places: which of the network's kernels the columns are; all of them, in order, unless given.
        """
        if self.correction is None:
            return costs
        places = range(costs.shape[1]) if places is None else places
        factors = [self.correction.factor(place, cin[:, k], cout[:, k]) for k, place in enumerate(places)]
        result: np.ndarray = costs * np.stack(factors, axis=1)
        return result


def _fitted(rows: KernelRows, cin: np.ndarray, cout: np.ndarray, latency_ms: np.ndarray) -> tuple[Calibration, Correction]:
    calibration = Calibration.fit(rows, latency_ms)
    places, errors = _places(calibration, rows, cin, cout, latency_ms)
    return calibration, Correction.fit(places, errors, latency_ms)


def _places(
    calibration: Calibration, rows: KernelRows, cin: np.ndarray, cout: np.ndarray, latency_ms: np.ndarray
) -> tuple[Places, np.ndarray]:
    """Shares of the calibrated score, and its relative errors float64[S]."""
    costs = calibration.costs(rows).reshape(cin.shape)
    scores = calibration.constant + costs.sum(axis=1)
    errors = calibration.link.to_score(latency_ms) / scores - 1
    return Places(costs / scores[:, None], np.log(cin), np.log(cout)), errors


def _predicted(calibration: Calibration, rows: KernelRows) -> np.ndarray:
    sums = np.bincount(rows.structure, calibration.costs(rows))
    result: np.ndarray = calibration.link.to_ms(calibration.constant + sums)
    return result


def _standardised(
    correction: Correction, rows: KernelRows, cin: np.ndarray, cout: np.ndarray, latency_ms: np.ndarray
) -> np.ndarray:
    """float64[S]: log of measured over predicted in standard deviations, each by a fit that has not seen it."""
    result = np.zeros(len(latency_ms))
    for held in _held(np.arange(len(latency_ms)) % FOLDS):
        calibration = Calibration.fit(rows.of(~held), latency_ms[~held])
        places, errors = _places(calibration, rows.of(~held), cin[~held], cout[~held], latency_ms[~held])
        fitted = Correction.conditioned(correction.prior, correction.noise, places, errors, latency_ms[~held])
        places, errors = _places(calibration, rows.of(held), cin[held], cout[held], latency_ms[held])
        remaining = (1 + errors) / (1 + fitted.error(places))
        result[held] = np.log(remaining) / fitted.deviation(places, latency_ms[held])
    return result


def _held(groups: np.ndarray) -> Iterator[np.ndarray]:
    for group in range(groups.max() + 1):
        yield groups == group


def _band(held_out: np.ndarray) -> tuple[float, float]:
    """Conformal quantiles: a little wider than the sample's own, since it is finite."""
    spare = 1 + 1 / len(held_out)
    low, high = np.quantile(held_out, [max(0.0, 1 - (1 - BAND[0]) * spare), min(1.0, BAND[1] * spare)])
    return min(float(low), -1e-9), max(float(high), 1e-9)
