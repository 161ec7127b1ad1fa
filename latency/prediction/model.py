"""The latency model of one network, or of networks never measured: what its kernels add up to, and how far off that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latency.prediction.calibration import Calibration, KernelRows, Sums
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
        types: of the network's kernels, in order; of none in particular where there is no correction.
        spread: relative standard deviation of a prediction, where there is no correction to say it.
        band: quantiles of the errors of held-out structures, in such standard deviations.
    """

    calibration: Calibration
    correction: Correction | None
    types: tuple[str, ...]
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
        folds = _folds(rows.of(some).sums(), latency_ms[some])
        held_out = correction.held_out(correction.seen.of(some), latency_ms[some], folds)
        return cls(calibration, correction, tuple(rows.types[: cin.shape[1]].tolist()), correction.noise, _band(held_out))

    @classmethod
    def of_others(cls, rows: KernelRows, latency_ms: np.ndarray) -> LatencyModel:
        """For networks never measured, from S structures of others: kernels cost there what they cost here.

        Its spread is how far sums of kernels whose own rows were not seen are from end-to-end times.
        """
        calibration = Calibration.none()
        ratios = np.log(latency_ms / np.bincount(rows.structure, calibration.costs(rows)))
        return cls(calibration, None, (), max(float(np.sqrt(np.mean(ratios**2))), 1e-3), (-NORMAL, NORMAL))

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
    sums = rows.sums()
    calibration = Calibration.fit(sums, latency_ms)
    shares = calibration.costs(rows).reshape(cin.shape) / calibration.scores(sums)[:, None]
    errors = calibration.errors(sums, latency_ms)
    return calibration, Correction.fit(Places(shares, np.log(cin), np.log(cout)), errors, latency_ms)


def _folds(sums: Sums, latency_ms: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A tenth of S structures at a time, bool[S], and all relative errors, float64[S], by a calibration to the others."""
    fold = np.arange(len(latency_ms)) % FOLDS
    for number in range(fold.max() + 1):
        held = fold == number
        yield held, Calibration.fit(sums.of(~held), latency_ms[~held]).errors(sums, latency_ms)


def _band(held_out: np.ndarray) -> tuple[float, float]:
    """Conformal quantiles: a little wider than the sample's own, since it is finite."""
    spare = 1 + 1 / len(held_out)
    low, high = np.quantile(held_out, [max(0.0, 1 - (1 - BAND[0]) * spare), min(1.0, BAND[1] * spare)])
    return min(float(low), -1e-9), max(float(high), 1e-9)
