"""From kernel times to end-to-end time.

Profiled kernel times are shares; what counts is the unprofiled time of whole networks. Each kernel type gets a
non-negative factor, the network a constant, and the sum a monotone link that takes up what no sum can express (a small
network whose weights stay in the cache runs faster than the sum of its parts). The score before the link is a plain sum
over kernels, so budgets in ms translate exactly into budgets on a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

KNOTS = (0.0, 0.1, 0.3, 0.6, 1.0)
"""Quantiles of the scores between which the link is linear: closer together among the small networks."""

SMOOTHNESS = 0.005
LEAST_SLOPE = 0.2
BAND = (0.05, 0.95)
"""Quantiles between which a prediction's band is drawn: nominal coverage 90 %."""

FOLDS = 10


@dataclass(frozen=True)
class MonotoneLink:
    """An increasing map on a log-log scale, linear between knots and parallel to the identity beyond them."""

    log_scores: np.ndarray
    log_ms: np.ndarray

    @classmethod
    def fit(cls, scores: np.ndarray, ms: np.ndarray) -> MonotoneLink:
        """Smoothed least squares of log(ms / score) on hat functions around quantiles of the scores."""
        x = np.log(scores)
        knots = np.unique(np.quantile(x, KNOTS))
        hats = np.stack([np.interp(x, knots, row) for row in np.eye(len(knots))], axis=1)
        bends = np.diff(np.eye(len(knots)), 2, axis=0) * np.sqrt(SMOOTHNESS * len(x))
        target = np.concatenate([np.log(ms) - x, np.zeros(len(bends))])
        shift = np.linalg.lstsq(np.vstack([hats, bends]), target, rcond=None)[0]
        rises = np.maximum(np.diff(knots + shift), LEAST_SLOPE * np.diff(knots))
        return cls(knots, np.concatenate([[0.0], np.cumsum(rises)]) + knots[0] + shift[0])

    def to_ms(self, scores: Any) -> Any:
        """Milliseconds of scores, elementwise."""
        return _interpolated(scores, self.log_scores, self.log_ms)

    def to_score(self, ms: Any) -> Any:
        """The inverse of `to_ms`."""
        return _interpolated(ms, self.log_ms, self.log_scores)


def _interpolated(values: Any, x: np.ndarray, y: np.ndarray) -> Any:
    logs = np.log(np.maximum(values, 1e-12))
    inside = np.clip(logs, x[0], x[-1])
    return np.exp(np.interp(inside, x, y) + logs - inside)


@dataclass(frozen=True)
class Calibration:
    """score = constant + Σ factor[type] × kernel ms; latency = link(score), within `band` (ratios) nine times in ten."""

    constant: float
    factors: Mapping[str, float]
    link: MonotoneLink
    band: tuple[float, float]

    @classmethod
    def fit(cls, types: np.ndarray, kernel_ms: np.ndarray, structure: np.ndarray, latency_ms: np.ndarray) -> Calibration:
        """Least relative error over S structures.

        Args:
            types: str[N], kernel_ms: float64[N] (not fitted to these very rows), structure: int[N] in 0 … S-1.
            latency_ms: float64[S], end to end.
        """
        names = np.unique(types)
        sums = [np.bincount(structure[m], kernel_ms[m], minlength=len(latency_ms)) for m in (types == n for n in names)]
        design = np.stack([np.full(len(latency_ms), latency_ms.min()), *sums], axis=1)
        weights, link = _fitted(design, latency_ms)
        ratios = _held_out_ratios(design, latency_ms)
        spare = 1 + 1 / len(ratios)  # finite-sample correction of conformal prediction
        low, high = np.quantile(ratios, [max(0.0, 1 - (1 - BAND[0]) * spare), min(1.0, BAND[1] * spare)])
        factors = dict(zip(map(str, names), map(float, weights[1:]), strict=True))
        return cls(float(weights[0] * latency_ms.min()), factors, link, (float(low), float(high)))

    def factor(self, kernel_type: str) -> float:
        """Its own, or for a type without rows here the mean of all."""
        return self.factors.get(kernel_type, float(np.mean(list(self.factors.values()))))


def _fitted(design: np.ndarray, latency_ms: np.ndarray) -> tuple[np.ndarray, MonotoneLink]:
    """Weights of the columns of `design` [S, F], and the link over their sum."""
    weights = nnls(design / latency_ms[:, None], np.ones(len(latency_ms)))[0]
    return weights, MonotoneLink.fit(_scores(design, weights), latency_ms)


def _scores(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.maximum(design @ weights, 1e-6)


def _held_out_ratios(design: np.ndarray, latency_ms: np.ndarray) -> np.ndarray:
    """float64[S]: measured over predicted, each predicted by a fit that has not seen it."""
    fold = np.arange(len(latency_ms)) % min(FOLDS, len(latency_ms))
    ratios = np.ones(len(latency_ms))
    for held in (fold == number for number in range(fold.max() + 1)):
        if held.all():
            continue  # a single structure: nothing to hold it against
        weights, link = _fitted(design[~held], latency_ms[~held])
        ratios[held] = latency_ms[held] / link.to_ms(_scores(design[held], weights))
    return ratios
